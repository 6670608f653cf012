"""What a session did, step by step, for reports. Recording is off unless asked for.

Records are tuples, which are made in a fraction of a frozen dataclass's time: recording must not slow what it records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hetrun.device import Batch, Device, RunEvent
from hetrun.ops import Workload
from hetrun.plan.plan import Phase

if TYPE_CHECKING:
    from hetrun.run.build import Step


class RunRecord(NamedTuple):
    """One run of a segment. began_s, ended_s: by the host's clock (`time.perf_counter`).   event: by the device's own,
    None where it does not time itself.
    """

    device: str
    segment: str
    began_s: float
    ended_s: float
    event: RunEvent | None

    @property
    def seconds(self) -> float:
        """As the device says, else as the host saw it."""
        return self.ended_s - self.began_s if self.event is None else self.event.seconds


class CopyRecord(NamedTuple):
    """A value that went from one device's memory to another's ("host": to the session), by the host's clock."""

    value: str
    source: str
    target: str
    nbytes: int
    began_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


class StepRecord(NamedTuple):
    """One step of a session, by the host's clock."""

    phase: Phase
    workload: Workload
    began_s: float
    ended_s: float
    runs: tuple[RunRecord, ...]
    copies: tuple[CopyRecord, ...]

    @property
    def n_tokens(self) -> int:
        return self.workload.n_tokens

    @property
    def wall_s(self) -> float:
        return self.ended_s - self.began_s


@dataclass
class Trace:
    """Steps in order. With `enabled` off nothing is kept.   listener: is told of each step as it ends."""

    enabled: bool = False
    steps: list[StepRecord] = field(default_factory=list)
    listener: Callable[[StepRecord], None] | None = None

    def add(self, step: StepRecord) -> None:
        self.steps.append(step)
        if self.listener is not None:
            self.listener(step)

    def device_seconds(self) -> dict[str, float]:
        """Seconds by device, as the devices reported them."""
        seconds: dict[str, float] = {}
        for step in self.steps:
            for run in step.runs:
                seconds[run.device] = seconds.get(run.device, 0.0) + run.seconds
        return seconds


@dataclass(slots=True)
class _Run:
    """A run in the making."""

    device: str
    segment: str
    began_s: float
    returned_s: float
    wait_s: float = 0.0  # of the `synchronize` that finished it
    waited_s: float = 0.0  # when that returned
    event: RunEvent | None = None

    def record(self) -> RunRecord:
        return RunRecord(self.device, self.segment, self.began_s, self._ended_s(), self.event)

    def _ended_s(self) -> float:
        call_s = self.returned_s - self.began_s
        if self.event is not None and self.event.basis.startswith("measured"):
            # A run that takes longer than its call went on behind the host's back.
            return max(self.returned_s, self.began_s + self.event.seconds)
        # The longer of the two calls is the one that did the work.
        return self.returned_s if call_s >= self.wait_s else self.waited_s


class Recorder:
    """Runs the segments of a step as a session does, and notes when what happened."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._runs: list[_Run] = []
        self._open: dict[str, list[_Run]] = {name: [] for name in devices}
        self._copies: list[CopyRecord] = []
        self.began_s = time.perf_counter()

    def run(self, steps: Sequence[Step], batch: Batch) -> None:
        for step in steps:
            for name in step.waits:
                self._wait(name)
            for copy in step.copies:
                began_s = time.perf_counter()
                copy.run(batch)
                nbytes = 4 * copy.value.width * batch.rows(copy.value.rows)
                self.copied(copy.value.name, copy.made_on, step.device, nbytes, began_s)
            run = _Run(step.device, step.segment.name, time.perf_counter(), 0.0)
            step.executable.run(batch)
            run.returned_s = time.perf_counter()
            self._runs.append(run)
            self._open[step.device].append(run)
        for name in self._devices:
            self._wait(name)

    def copied(self, value: str, source: str, target: str, nbytes: int, began_s: float) -> None:
        """Notes a copy that has just ended."""
        self._copies.append(CopyRecord(value, source, target, nbytes, began_s, time.perf_counter()))

    def record(self, phase: Phase, workload: Workload) -> StepRecord:
        """The step, which ends now."""
        runs = tuple(run.record() for run in self._runs)
        return StepRecord(phase, workload, self.began_s, time.perf_counter(), runs, tuple(self._copies))

    def _wait(self, name: str) -> None:
        began_s = time.perf_counter()
        events = list(self._devices[name].synchronize())
        ended_s = time.perf_counter()
        runs, self._open[name] = self._open[name], []
        for run in runs:
            run.wait_s, run.waited_s = ended_s - began_s, ended_s
            # A device tells of its runs in their order, of each once, and need not tell of all.
            if events and events[0].segment == run.segment:
                run.event = events.pop(0)
