"""What a placement costs: ops, launches, copies and resident bytes, as the drivers estimate them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from hetrun.device import Cost, DeviceInfo, Fusing, Link, Segment, Unsupported
from hetrun.errors import PluginError
from hetrun.graph.graph import Graph
from hetrun.ops import VALUE_BYTES, Op, Workload
from hetrun.plan.plan import PhaseCost
from hetrun.plan.segment import last_readers, runs, segment_of
from hetrun.plugins import FoundDevice

HOST = "host"


def values_domain(info: DeviceInfo) -> str:
    """Where a device's values live: one name for all devices that the host's memory serves without copies."""
    space = info.spaces[0]
    return HOST if space.upload is None and space.download is None else info.id


@dataclass(frozen=True)
class Terms:
    """What an objective counts of one phase: so much for each second and for each joule of a step."""

    per_second: float = 1.0
    per_joule: float = 0.0

    def of(self, cost: PhaseCost) -> float:
        """What a step counts. Unknown joules count nothing: whoever asks for them sees that they are known."""
        return self.per_second * cost.total_s + self.per_joule * (cost.joules or 0.0)


@dataclass(frozen=True)
class CostTable:
    """Every device's answer for every op of a graph under one workload. Costs are asked once, here.

    answers: what placing goes by.   alone: the same, had no device fused ops.   fusing: devices that do.
    """

    graph: Graph
    workload: Workload
    devices: tuple[DeviceInfo, ...]
    answers: tuple[Mapping[str, Cost | Unsupported], ...]
    alone: tuple[Mapping[str, Cost | Unsupported], ...]
    fusing: Mapping[str, FoundDevice] = field(default_factory=dict)

    @classmethod
    def ask(cls, graph: Graph, workload: Workload, devices: Sequence[FoundDevice]) -> CostTable:
        """PluginError where a driver's answer is no cost."""
        for device in devices:
            check_info(device)
        answers = tuple({d.info.id: estimate(d, op, workload) for d in devices} for op in graph.ops)
        if any(d.calibration for d in devices):
            answers = tuple(_calibrated(graph, workload, devices, answers))
        # What was measured of a calibrated device's ops holds.
        fusing = {d.info.id: d for d in devices if isinstance(d.driver, Fusing) and not d.calibration}
        return cls(graph, workload, tuple(d.info for d in devices), answers, answers, fusing)

    def fused(self, allowed: Sequence[Sequence[str]]) -> CostTable:
        """With answers as of ops in the longest runs that a device may have, by the devices allowed for each op.

        So they are right where a run has all of a pattern, and no more than the price where one has a part of it.
        """
        if not self.fusing:
            return self
        answers = [dict(by_device) for by_device in self.alone]
        for device in self.fusing:
            here = [device if device in ids else "" for ids in allowed]
            for _, start, end in (run for run in runs(here) if run[0]):
                for i, cost in self._fused_in(device, start, end).items():
                    answers[i][device] = cost
        return replace(self, answers=tuple(answers))

    def cost(self, op: int, device: str) -> Cost:
        """What a device that accepts the op takes for it."""
        answer = self.answers[op][device]
        assert isinstance(answer, Cost)
        return answer

    def in_runs(self, placement: Sequence[str]) -> list[Cost]:
        """What each op takes in the run that the placement makes of it."""
        costs = [self.alone[i][device] for i, device in enumerate(placement)]
        for device, start, end in runs(placement):
            if device in self.fusing:
                for i, cost in self._fused_in(device, start, end).items():
                    costs[i] = cost
        return [cost for cost in costs if isinstance(cost, Cost)]

    def _fused_in(self, device: str, start: int, end: int) -> Mapping[int, Cost]:
        """What ops of one run take that they would not alone, by their numbers."""
        known = self._fusions.get((device, start, end))
        if known is None:
            n_tokens, n_outputs = self.workload.n_tokens, self.workload.n_outputs
            segment = segment_of(self.graph, self._last_reader, start, end, n_tokens, n_outputs)
            found = fused_costs(self.fusing[device], segment, self.workload)
            number = {op.name: start + i for i, op in enumerate(segment.ops)}
            known = {number[name]: cost for name, cost in found.items()}
            self._fusions[device, start, end] = known
        return known

    @cached_property
    def _fusions(self) -> dict[tuple[str, int, int], Mapping[int, Cost]]:
        return {}

    @cached_property
    def _last_reader(self) -> Mapping[str, int]:
        return last_readers(self.graph)

    def price(self, placement: Sequence[str]) -> PhaseCost:
        """Predicted time and energy of one step. `placement` names a device for each op, in order, all of which accept
        their op.
        """
        return self._price(placement, self.in_runs(placement))

    def bound(self, placement: Sequence[str]) -> PhaseCost:
        """What placing goes by: the price, or less where a run has a part of what its device would fuse."""
        return self._price(placement, [self.cost(i, device) for i, device in enumerate(placement)])

    def _price(self, placement: Sequence[str], costs: Sequence[Cost]) -> PhaseCost:
        infos = {d.id: d for d in self.devices}
        segments = runs(placement)
        copies = list(self.copies(placement))
        joules: float | None = None
        if all(cost.joules is not None for cost in costs):
            joules = sum(cost.joules or 0.0 for cost in costs) + sum(copy_joules(*c) for c in copies)
            joules += sum(launch_joules(infos[device]) for device, _, _ in segments)
        return PhaseCost(
            ops_s=sum(cost.seconds for cost in costs),
            launch_s=sum(infos[device].launch.seconds for device, _, _ in segments),
            copy_s=sum(copy_seconds(*c) for c in copies),
            n_segments=len(segments),
            n_copies=len(copies),
            joules=joules,
        )

    def bases(self, placement: Sequence[str]) -> set[str]:
        """Where each number of `price` comes from: those of ops, launches and links."""
        infos = {d.id: d for d in self.devices}
        found = {cost.basis for cost in self.in_runs(placement)}
        found |= {infos[device].launch.basis for device, _, _ in runs(placement) if infos[device].launch.seconds}
        return found | {link.basis for c in self.copies(placement) for link in _links(c[0], c[1])}

    def resident(self, placement: Sequence[str]) -> dict[tuple[str, str, str], int]:
        """Bytes by (device, space, block name); ops that name the same block share it."""
        blocks: dict[tuple[str, str, str], int] = {}
        for i, device in enumerate(placement):
            blocks.update({(device, space, name): n for (space, name), n in self.cost(i, device).resident.items()})
        return blocks

    @cached_property
    def _sharers(self) -> Counter[tuple[str, tuple[str, str]]]:
        """How many ops name each block of a device."""
        return Counter(
            (d, b) for answers in self.answers for d, a in answers.items() if isinstance(a, Cost) for b in a.resident
        )

    def memory_price(self, op: int, device: str, prices: Mapping[str, float]) -> float:
        """Seconds for the bytes that an op keeps, where a byte of a space costs prices[space].

        A block that several ops name is divided among them, and each of the two phases pays half: so the prices of a
        placement never sum to more than its bytes do, which makes them a bound.
        """
        answer = self.answers[op][device]
        if not prices or not isinstance(answer, Cost):
            return 0.0
        shares = (
            prices[space] * nbytes / self._sharers[device, (space, name)]
            for (space, name), nbytes in answer.resident.items()
            if space in prices
        )
        return sum(shares) / 2

    def copies(self, placement: Sequence[str]) -> Iterator[tuple[DeviceInfo, DeviceInfo | None, int]]:
        """(from, to, bytes) of each copy: a value is copied once into each domain that reads it; the logits go to the
        host (None). Only what takes links is listed."""
        infos = {d.id: d for d in self.devices}
        domains = {d.id: values_domain(d) for d in self.devices}
        made_on: dict[str, str] = {}
        present: set[tuple[str, str]] = set()
        for op, device in zip(self.graph.ops, placement, strict=True):
            domain = domains[device]
            for value in op.inputs:
                if (value.name, domain) not in present:
                    present.add((value.name, domain))
                    nbytes = VALUE_BYTES * value.width * self.workload.rows(value.rows)
                    yield infos[made_on[value.name]], infos[device], nbytes
            made_on[op.name] = device
            present.add((op.name, domain))
        if domains[placement[-1]] != HOST:
            yield infos[placement[-1]], None, VALUE_BYTES * self.graph.n_vocab * self.workload.n_outputs


def copy_seconds(source: DeviceInfo, target: DeviceInfo | None, nbytes: int) -> float:
    """A copy out of `source`'s memory and into `target`'s (None: the host's)."""
    return sum(link.seconds(nbytes) for link in _links(source, target))


def copy_joules(source: DeviceInfo, target: DeviceInfo | None, nbytes: int) -> float:
    """The devices behind the links are busy while they copy; a link has no power of its own."""
    ends = [(source, source.spaces[0].download), (target, target.spaces[0].upload if target else None)]
    return sum(link.seconds(nbytes) * _watts(info) for info, link in ends if info and link)


def launch_joules(info: DeviceInfo) -> float:
    """Energy of one launch, where the device tells it or its power."""
    return info.launch.seconds * _watts(info) if info.launch.joules is None else info.launch.joules


def _links(source: DeviceInfo, target: DeviceInfo | None) -> list[Link]:
    download = source.spaces[0].download
    upload = target.spaces[0].upload if target else None
    return [link for link in (download, upload) if link]


def _watts(info: DeviceInfo) -> float:
    return info.model.get("watts", 0.0)


_BASIS_KINDS = ("measured:", "simulated:", "analytic:")


def check_info(device: FoundDevice) -> None:
    """PluginError where what the device tells of its launch, links or memory cannot be."""
    info = device.info
    faults = [f"launch {_fault(info.launch)}"] if _fault(info.launch) else []
    for space in info.spaces:
        if not space.capacity_bytes >= 0:
            faults.append(f"space {space.name} has {space.capacity_bytes!r} bytes")
        for link in (space.upload, space.download):
            if link and not (0 <= link.latency_s < math.inf and link.bytes_per_s > 0):
                faults.append(f"a link of {space.name} takes {link.latency_s!r} s and {link.bytes_per_s!r} bytes/s")
            elif link and not str(link.basis).startswith(_BASIS_KINDS):
                faults.append(f"a link of {space.name} has no basis")
    if faults:
        raise PluginError.broken_contract(info.id, device.plugin, faults[0])


def _calibrated(
    graph: Graph,
    workload: Workload,
    devices: Sequence[FoundDevice],
    answers: Sequence[Mapping[str, Cost | Unsupported]],
) -> Iterator[dict[str, Cost | Unsupported]]:
    """The answers, with the times that measurements give them where a device has been calibrated."""
    from hetrun.calibration.terms import footprint_bytes, with_again

    footprint = footprint_bytes(graph.ops, workload)
    measured = {d.info.id: d.calibration for d in devices if d.calibration}
    for (op, again), by_device in zip(with_again(graph.ops), answers, strict=True):
        yield {
            device: measured[device].cost(answer, op, workload, footprint, again)
            if isinstance(answer, Cost) and device in measured
            else answer
            for device, answer in by_device.items()
        }


def estimate(device: FoundDevice, op: Op, workload: Workload) -> Cost | Unsupported:
    """The driver's answer, asked for once where the device keeps answers. PluginError where it is none."""
    if device.answers is None:
        return _asked(device, op, workload)
    key = op.name, workload
    if key not in device.answers:
        device.answers[key] = _asked(device, op, workload)
    return device.answers[key]


def _asked(device: FoundDevice, op: Op, workload: Workload) -> Cost | Unsupported:
    try:
        answer = device.driver.estimate(device.info, op, workload)
    except Exception as error:
        fault = f"estimate of {op.name} ({op.kind}) raised {type(error).__name__}: {error}"
        raise PluginError.broken_contract(device.info.id, device.plugin, fault) from error
    if isinstance(answer, Unsupported):
        return answer
    wrong = _fault(answer)
    if wrong:
        fault = f"estimate of {op.name} ({op.kind}) {wrong}"
        raise PluginError.broken_contract(device.info.id, device.plugin, fault)
    return answer


def fused_costs(device: FoundDevice, segment: Segment, workload: Workload) -> Mapping[str, Cost]:
    """What a `Fusing` driver says of a run of ops that it accepts. PluginError where that cannot be."""
    assert isinstance(device.driver, Fusing)
    try:
        found = device.driver.fuse(device.info, segment, workload)
    except Exception as error:
        fault = f"fuse of {segment.name} raised {type(error).__name__}: {error}"
        raise PluginError.broken_contract(device.info.id, device.plugin, fault) from error
    ops = {op.name: op for op in segment.ops}
    for name, cost in found.items():
        wrong = _fault(cost) if name in ops else "is no op of the run"
        if not wrong:
            alone = estimate(device, ops[name], workload)
            if isinstance(alone, Cost) and cost.seconds > alone.seconds:
                wrong = f"takes {cost.seconds!r} seconds, more than the {alone.seconds!r} that it takes alone"
        if wrong:
            fault = f"fuse of {segment.name}: {name} {wrong}"
            raise PluginError.broken_contract(device.info.id, device.plugin, fault)
    return found


def _fault(cost: object) -> str | None:
    """What makes an answer no cost, or None."""
    if not isinstance(cost, Cost):
        return f"is no cost: {cost!r:.80}"
    try:
        if not 0 <= cost.seconds < math.inf:
            return f"is no cost: {cost.seconds!r} seconds"
        if cost.joules is not None and not 0 <= cost.joules < math.inf:
            return f"is no cost: {cost.joules!r} joules"
        for (space, name), nbytes in cost.resident.items():
            if not 0 <= nbytes < math.inf:
                return f"is no cost: {nbytes!r} bytes of {name} in {space}"
        if not cost.basis.startswith(_BASIS_KINDS):
            return f"is no cost: its basis is {cost.basis!r}, not measured:, simulated: or analytic: and a source"
    except (TypeError, ValueError, AttributeError) as error:
        return f"is no cost: {error}"
    return None
