"""A recorded run summed up: predicted beside measured, by device, kind of op, layer and part; prefill and decode apart.

docs/profiling.md says what each figure means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, TypeVar

from hetrun.device import DeviceInfo
from hetrun.plan.plan import PHASES, Phase
from hetrun.run.build import Runtime
from hetrun.run.predict import NOTHING, Group, OpCost, Prediction
from hetrun.run.trace import RunRecord, StepRecord, Trace

E = TypeVar("E", bound="Entry")

OUTSIDE = "outside the layers"

Clock = Literal["measured", "simulated", "modelled", "mixed"]
CLOCK_OF: dict[str, Clock] = {"measured": "measured", "simulated": "simulated", "analytic": "modelled"}


@dataclass(frozen=True)
class Entry:
    """Times of something that ran, summed over all steps of a phase.

    name: a kind of op, a layer, or a part ("ffn_gate + ffn_up + ffn_act").   flops, nbytes: by the ops' definition.
    divided: some of measured_s is of ops that were timed together, divided as their predictions are.
    """

    name: str
    device: str
    measured_s: float = 0.0
    predicted_s: float = 0.0
    flops: int = 0
    nbytes: int = 0
    divided: bool = False

    def plus(self: E, measured_s: float, cost: OpCost, divided: bool = False) -> E:
        return replace(
            self,
            measured_s=self.measured_s + measured_s,
            predicted_s=self.predicted_s + cost.seconds,
            flops=self.flops + cost.flops,
            nbytes=self.nbytes + cost.nbytes,
            divided=self.divided or divided,
        )


@dataclass(frozen=True)
class Cell(Entry):
    """A part in one layer: what was timed as one, ops that the device fuses.   layer: None outside the layers, or of
    several.   whole: the device times its segments as a whole, and this is one.
    """

    ops: tuple[str, ...] = ()
    layer: int | None = None
    whole: bool = False


@dataclass(frozen=True)
class Copies:
    """Values that went from one device to another ("host": to the session). measured_s: by the host's clock."""

    source: str
    target: str
    n: int = 0
    nbytes: int = 0
    measured_s: float = 0.0
    predicted_s: float = 0.0


@dataclass(frozen=True)
class DeviceTotal:
    """What a device did in a phase.

    parts: its ops; figures as of an `Entry`.   launch_s: its runs less their parts.   busy_s: both.
    idle_s: the phase's time less busy_s.   basis: of the measured side.   predicted_basis: of the other.
    """

    device: str
    parts: Entry
    n_runs: int
    launch_s: float
    launch_predicted_s: float
    idle_s: float
    basis: tuple[str, ...]
    predicted_basis: tuple[str, ...]

    @property
    def busy_s(self) -> float:
        return self.parts.measured_s + self.launch_s

    @property
    def predicted_s(self) -> float:
        return self.parts.predicted_s + self.launch_predicted_s


@dataclass(frozen=True)
class PhaseProfile:
    """All steps of a phase.

    wall_s: by the host's clock.   device_time_s: the runs one after another as the devices' own clocks say, and copies
    as predicted: what the phase takes where devices are emulated; None where all measured on the host's clock.
    predicted_s: ops, launches and copies.   between_s: the host's time between steps: sampling, text, the caller's own.
    """

    phase: Phase
    n_steps: int
    n_tokens: int
    wall_s: float
    device_time_s: float | None
    predicted_s: float
    between_s: float
    devices: tuple[DeviceTotal, ...]
    kinds: tuple[Entry, ...]
    layers: tuple[Entry, ...]
    parts: tuple[Entry, ...]
    cells: tuple[Cell, ...]
    copies: tuple[Copies, ...]

    @property
    def time_s(self) -> float:
        """What predicted_s is compared with."""
        return self.wall_s if self.device_time_s is None else self.device_time_s

    @property
    def clock(self) -> Clock:
        """How time_s and the times of the parts are known: as their bases say, "mixed" where those differ."""
        kinds = {basis.partition(":")[0] for device in self.devices for basis in device.basis}
        return CLOCK_OF.get(kinds.pop(), "mixed") if len(kinds) == 1 else "mixed"


@dataclass(frozen=True)
class Roof:
    """What a device can do at most, as its cost model says. None: the model does not say."""

    info: DeviceInfo
    flops_per_s: float | None
    bytes_per_s: float | None


@dataclass(frozen=True)
class Profile:
    phases: tuple[PhaseProfile, ...]
    roofs: tuple[Roof, ...]


def make_profile(trace: Trace, runtime: Runtime) -> Profile:
    """Sums up the steps recorded; phases without steps are left out."""
    prediction = Prediction(runtime)
    phases = []
    for phase in PHASES:
        if steps := [s for s in trace.steps if s.phase == phase]:
            phases.append(_Summing(phase, prediction, between_s(trace.steps, phase)).sum_up(steps))
    roofs = [
        Roof(f.info, f.info.model.get("flops_per_s"), f.info.model.get("bytes_per_s")) for f in prediction.devices()
    ]
    return Profile(tuple(phases), tuple(roofs))


def between_s(steps: Sequence[StepRecord], phase: Phase) -> float:
    """Time between each step of the phase and the step before it, whatever that one's phase."""
    return sum(after.began_s - before.ended_s for before, after in pairwise(steps) if after.phase == phase)


@dataclass
class _OnDevice:
    """What a device did, while it is being summed."""

    n_runs: int = 0
    launch_s: float = 0.0
    launch_predicted_s: float = 0.0
    bases: set[str] = field(default_factory=set)


class _Summing:
    def __init__(self, phase: Phase, prediction: Prediction, between: float) -> None:
        self.phase = phase
        self.prediction = prediction
        self.between_s = between
        self.cells: dict[tuple[str, Group], Cell] = {}
        self.parts: dict[tuple[str, str], Entry] = {}
        self.kinds: dict[tuple[str, str], Entry] = {}
        self.layers: dict[tuple[str, str], Entry] = {}
        self.copies: dict[tuple[str, str], Copies] = {}
        self.devices: dict[str, _OnDevice] = {}

    def sum_up(self, steps: Sequence[StepRecord]) -> PhaseProfile:
        for step in steps:
            for run in step.runs:
                self._run(run, step)
            self._copy(step)
        wall_s = sum(s.wall_s for s in steps)
        copies_s = sum(c.predicted_s for c in self.copies.values())
        runs = [run for step in steps for run in step.runs]
        emulated = any(run.event and not run.event.basis.startswith("measured") for run in runs)
        device_time_s = sum(run.seconds for run in runs) + copies_s if emulated else None
        time_s = wall_s if device_time_s is None else device_time_s
        devices = tuple(self._device(name, time_s) for name in self.devices)
        return PhaseProfile(
            phase=self.phase,
            n_steps=len(steps),
            n_tokens=sum(s.n_tokens for s in steps),
            wall_s=wall_s,
            device_time_s=device_time_s,
            predicted_s=sum(d.predicted_s for d in devices) + copies_s,
            between_s=self.between_s,
            devices=devices,
            kinds=tuple(sorted(self.kinds.values(), key=lambda e: -e.measured_s)),
            layers=tuple(sorted(self.layers.values(), key=_layer_order)),
            parts=tuple(sorted(self.parts.values(), key=lambda e: -e.measured_s)),
            cells=tuple(self.cells.values()),
            copies=tuple(self.copies.values()),
        )

    def _run(self, run: RunRecord, step: StepRecord) -> None:
        parts_s = 0.0
        for group in self.prediction.groups(run):
            measured_s = group.measured_s(run)
            parts_s += measured_s
            self._cell(run.device, group, step, measured_s)
        device = self.devices.setdefault(run.device, _OnDevice())
        device.n_runs += 1
        device.launch_predicted_s += self.prediction.launch_s(run.device)
        device.bases.add(run.event.basis if run.event else "measured:host")
        whole_s = run.seconds
        if run.event is None or run.event.basis.startswith("measured"):
            whole_s = run.ended_s - run.began_s  # the call's own cost with it
        device.launch_s += max(0.0, whole_s - parts_s)

    def _cell(self, device: str, group: Group, step: StepRecord, measured_s: float) -> None:
        costs = self.prediction.ops(device, group, step.workload)
        whole = sum(costs, NOTHING)
        layer = group.layers[0] if len(group.layers) == 1 else None
        key = (device, group)
        if key not in self.cells:
            self.cells[key] = Cell(group.title, device, ops=group.names, layer=layer, whole=group.steps is None)
        self.cells[key] = self.cells[key].plus(measured_s, whole)
        self._add(self.parts, group.title, device, measured_s, whole)

        name = f"layer {layer}" if layer is not None else OUTSIDE if not group.layers else _span(group.layers)
        self._add(self.layers, name, device, measured_s, whole)
        kinds = {op.kind for op in group.ops}
        if len(kinds) == 1:
            self._add(self.kinds, kinds.pop(), device, measured_s, whole)
        elif group.steps is None or not whole.seconds:
            # Dividing a whole segment would only give the prediction back.
            self._add(self.kinds, group.title, device, measured_s, whole)
        else:
            for op, cost in zip(group.ops, costs, strict=True):
                share_s = measured_s * cost.seconds / whole.seconds
                self._add(self.kinds, op.kind, device, share_s, cost, divided=True)

    def _add(
        self,
        entries: dict[tuple[str, str], Entry],
        name: str,
        device: str,
        measured_s: float,
        cost: OpCost,
        divided: bool = False,
    ) -> None:
        entry = entries.get((name, device)) or Entry(name, device)
        entries[name, device] = entry.plus(measured_s, cost, divided)

    def _copy(self, step: StepRecord) -> None:
        for copy in step.copies:
            key = (copy.source, copy.target)
            c = self.copies.get(key) or Copies(*key)
            predicted_s = c.predicted_s + self.prediction.copy_s(copy)
            self.copies[key] = Copies(*key, c.n + 1, c.nbytes + copy.nbytes, c.measured_s + copy.seconds, predicted_s)

    def _device(self, name: str, time_s: float) -> DeviceTotal:
        found = self.devices[name]
        parts = total(name, (c for c in self.cells.values() if c.device == name))
        busy_s = parts.measured_s + found.launch_s
        return DeviceTotal(
            device=name,
            parts=parts,
            n_runs=found.n_runs,
            launch_s=found.launch_s,
            launch_predicted_s=found.launch_predicted_s,
            idle_s=max(0.0, time_s - busy_s),
            basis=tuple(sorted(found.bases)),
            predicted_basis=self.prediction.basis(name),
        )


def total(device: str, entries: Iterable[Entry]) -> Entry:
    """The sum of a device's entries."""
    result = Entry("all ops", device)
    for e in entries:
        result = result.plus(e.measured_s, OpCost(e.predicted_s, e.flops, e.nbytes), e.divided)
    return result


def _span(layers: Sequence[int]) -> str:
    return f"layers {layers[0]} to {layers[-1]}"


def _layer_order(entry: Entry) -> tuple[int, int]:
    first = entry.name.split()[1]
    return (0, int(first)) if first.isdigit() else (1, 0)
