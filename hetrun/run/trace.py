"""What a session did, step by step, for reports. Recording is off unless asked for.

While steps run, only times are noted; records are made of them when somebody asks. Between the steps of a small model
the caches hold weights, and Python's own code is read from memory: each line counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter as clock
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


class Trace:
    """Steps in order. With `enabled` off nothing is kept.   listener: is told of each step as it ends."""

    def __init__(self) -> None:
        self.enabled = False
        self.listener: Callable[[StepRecord], None] | None = None
        self._steps: list[StepRecord] = []
        self._notes: list[Notes] = []

    @property
    def steps(self) -> list[StepRecord]:
        """The steps that have ended. Clearing the list forgets them."""
        notes, self._notes = self._notes, []
        self._steps += [n.record() for n in notes]
        return self._steps

    def add(self, notes: Notes) -> None:
        """Keeps a step that has ended."""
        self._notes.append(notes)
        if self.listener is not None:
            self.listener(self.steps[-1])

    def device_seconds(self) -> dict[str, float]:
        """Seconds by device, as the devices reported them."""
        seconds: dict[str, float] = {}
        for step in self.steps:
            for run in step.runs:
                seconds[run.device] = seconds.get(run.device, 0.0) + run.seconds
        return seconds


class Notes:
    """Runs the segments of a step as a session does, and notes when what happened."""

    __slots__ = ("_copies", "_ended_s", "_first", "_n_outputs", "_n_tokens", "_phase", "_runs", "_waits", "began_s")

    def __init__(self) -> None:
        self._runs: list[tuple[str, str, float, float]] = []  # device, segment, called, returned
        # Device, runs that were called before, called, returned, events.
        self._waits: list[tuple[str, int, float, float, Sequence[RunEvent]]] = []
        self._copies: list[CopyRecord] = []
        self.began_s = clock()

    def run(
        self,
        steps: Sequence[Step],
        devices: Mapping[str, Device],
        batch: Batch,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        for step in steps:
            for name in step.waits:
                self._wait(name, devices[name])
            for copy in step.copies:
                began_s = clock()
                copy.run(batch)
                nbytes = 4 * copy.value.width * batch.rows(copy.value.rows)
                self.copied(copy.value.name, copy.made_on, step.device, nbytes, began_s)
            began_s = clock()
            step.executable.run(batch)
            self._runs.append((step.device, step.segment.name, began_s, clock()))
        if meanwhile is not None:
            meanwhile()
        for name, device in devices.items():
            self._wait(name, device)

    def copied(self, value: str, source: str, target: str, nbytes: int, began_s: float) -> None:
        """Notes a copy that has just ended."""
        self._copies.append(CopyRecord(value, source, target, nbytes, began_s, clock()))

    def end(self, phase: Phase, batch: Batch, first: Mapping[int, int]) -> None:
        """The step ends now.   first: the first position of each slot in the batch."""
        self._ended_s = clock()
        self._phase = phase
        self._n_tokens, self._n_outputs, self._first = len(batch.tokens), len(batch.outputs), first

    def record(self) -> StepRecord:
        """The step, once it has ended."""
        n_past = sum(self._first.values()) // max(1, len(self._first))
        workload = Workload(self._n_tokens, n_past, len(self._first), self._n_outputs)
        return StepRecord(
            self._phase, workload, self.began_s, self._ended_s, tuple(self._finished()), tuple(self._copies)
        )

    def _wait(self, name: str, device: Device) -> None:
        began_s = clock()
        events = device.synchronize()
        self._waits.append((name, len(self._runs), began_s, clock(), events))

    def _finished(self) -> list[RunRecord]:
        """Each run with the wait that finished it, and the event that tells of it."""
        records: list[RunRecord | None] = [None] * len(self._runs)
        for name, n_called, began_s, ended_s, given in self._waits:
            events = list(given)
            for i, (device, segment, called_s, returned_s) in enumerate(self._runs[:n_called]):
                if device != name or records[i] is not None:
                    continue
                # A device tells of its runs in their order, of each once, and need not tell of all.
                event = events.pop(0) if events and events[0].segment == segment else None
                until_s = _end_of_run(called_s, returned_s, began_s, ended_s, event)
                records[i] = RunRecord(device, segment, called_s, until_s, event)
        return [r for r in records if r is not None]


def _end_of_run(called_s: float, returned_s: float, wait_s: float, waited_s: float, event: RunEvent | None) -> float:
    """When a run ended, from its call and return, and those of the wait that finished it."""
    if event is not None and event.basis.startswith("measured"):
        # A run that takes longer than its call went on behind the host's back.
        return max(returned_s, called_s + event.seconds)
    # The longer of the two calls is the one that did the work.
    return returned_s if returned_s - called_s >= waited_s - wait_s else waited_s
