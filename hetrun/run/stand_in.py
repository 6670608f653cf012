"""Stand-ins: a device that is only modelled, run by one that is here.

The results are those of the device that is here, the times those of the model: every event of a run says how long the
modelled device would have taken, with the basis of its model, and its counters how long the host took ("host_s").
A stand-in is a driver like any other: plans, sessions and the conformance kit need not know of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakSet

from hetrun.device import (
    API_VERSION,
    Batch,
    Bindings,
    Buffer,
    Cost,
    Device,
    DeviceInfo,
    Driver,
    Executable,
    KvSpec,
    Link,
    Program,
    RunEvent,
    Segment,
    State,
    StepTimes,
    Unsupported,
    Workload,
)
from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import Op
from hetrun.plugins import FoundDevice

P = TypeVar("P", "StandInBuffer", "StandInState", "StandInExecutable")

HOST_S, COPY_S = "host_s", "copy_s"
"""Counters of an event: seconds that the stand-in took on the host; modelled seconds of copies since the run before."""


class Actor:
    """A device that is here and stands in for others: opened once for all of them, so that its threads are, too."""

    def __init__(self, found: FoundDevice) -> None:
        self.driver, self.info = found.driver, found.info
        self._device: Device | None = None
        self._users = 0

    def open(self) -> Device:
        """The device; each opening wants a `close`."""
        if self._device is None:
            self._device = self.driver.open(self.info)
        self._users += 1
        return self._device

    def close(self) -> None:
        self._users -= 1
        if self._device and self._users == 0:
            self._device.close()
            self._device = None


def stand_in(modelled: FoundDevice, actor: Actor) -> FoundDevice:
    """`modelled` as a device that runs: by `actor`."""
    driver = StandInDriver(modelled, actor)
    return FoundDevice(driver, driver.info, modelled.plugin)


class StandInDriver:
    """Drives one modelled device.   info: the device as it is shown, "emulated" and with the stand-in named."""

    api_version = API_VERSION

    def __init__(self, modelled: FoundDevice, actor: Actor) -> None:
        self._modelled = modelled.driver
        self.actor = actor
        self.name = modelled.driver.name
        description = f"{modelled.info.description}; {actor.info.id} stands in for it, its times are modelled"
        self.info = replace(modelled.info, description=description, backing="emulated", unavailable=None)

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        return [self.info]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        """The model's answer, or the refusal of the stand-in where it has no kernel for the op."""
        answer = self._modelled.estimate(info, op, workload)
        if isinstance(answer, Unsupported):
            return answer
        acted = self.actor.driver.estimate(self.actor.info, op, workload)
        if isinstance(acted, Unsupported):
            return Unsupported(f"{self.actor.info.id}, which stands in for {info.id}, refuses it: {acted.reason}")
        return answer

    def compile(self, info: DeviceInfo, segment: Segment) -> StandInProgram:
        modelled = self._modelled.compile(info, segment)
        return StandInProgram(segment, modelled.resident, self.actor.driver.compile(self.actor.info, segment))

    def open(self, info: DeviceInfo) -> StandInDevice:
        return StandInDevice(info, self._modelled, self.actor)


@dataclass(frozen=True)
class StandInProgram:
    """A segment compiled for both.   resident: as on the modelled device.   acted: the stand-in's program."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]
    acted: Program


@dataclass
class ModelledTime:
    """Seconds of the modelled device by phase, launches and copies among them.   host_s: of the host, for the same."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    host_s: float = 0.0
    basis: str = ""


class StandInDevice:
    """An open stand-in.   time: of all runs so far.

    Buffers and states take from the modelled device's memory, so that it runs out as it would.
    """

    def __init__(self, info: DeviceInfo, modelled: Driver, actor: Actor) -> None:
        self.info = info
        self._modelled = modelled
        self._actor = actor
        self._acting: Device | None = actor.open()
        self._parts: WeakSet[StandInBuffer | StandInState | StandInExecutable] = WeakSet()
        self._free = {space.name: space.capacity_bytes for space in info.spaces}
        self.time = ModelledTime()
        self.acting_id = actor.info.id
        self._events: list[RunEvent] = []
        self._copy_s = 0.0
        self.profiling = False

    def profile(self, on: bool) -> None:
        """Whether events of later runs carry the modelled seconds of each op."""
        self.profiling = on

    def alloc(self, nbytes: int) -> StandInBuffer:
        acting, space = self._open(), self.info.spaces[0]
        self._take(space.name, nbytes)
        try:
            return self._owned(StandInBuffer(self, acting.alloc(nbytes), space.upload, space.download))
        except BaseException:
            self.give(space.name, nbytes)
            raise

    def state(self, kv: KvSpec) -> StandInState:
        acting, space = self._open(), self.info.spaces[-1].name
        self._take(space, kv.nbytes)
        try:
            return self._owned(StandInState(self, kv, acting.state(kv)))
        except BaseException:
            self.give(space, kv.nbytes)
            raise

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> StandInExecutable:
        acting = self._open()
        if not isinstance(program, StandInProgram):
            raise DeviceError(f"{self.info.id}: {program.segment.name} was compiled by another driver")
        values = {name: self._inner_buffer(name, buffer) for name, buffer in bindings.values.items()}
        states = {name: self._inner_state(name, state) for name, state in bindings.states.items()}
        loaded = acting.load(program.acted, weights, Bindings(values, states))
        times = SegmentTimes(self.info, self._modelled, program.segment)
        return self._owned(StandInExecutable(self, loaded, times))

    def synchronize(self) -> Sequence[RunEvent]:
        self._open()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for part in tuple(self._parts):
            part.close()
        acting, self._acting = self._acting, None
        if acting:
            self._actor.close()

    def act(self, run: Executable, batch: Batch) -> float:
        """Runs on the stand-in to the end; the seconds that it took."""
        acting = self._open()
        started = time.perf_counter()
        run.run(batch)
        acting.synchronize()
        return time.perf_counter() - started

    def note(self, times: SegmentTimes, workload: Workload, host_s: float) -> None:
        cost = times.cost(workload)
        steps = times.steps(workload) if self.profiling else None
        counters = {HOST_S: host_s, COPY_S: self._copy_s}
        self._events.append(RunEvent(times.segment.name, cost.seconds, cost.basis, counters, steps))
        seconds = cost.seconds + self._copy_s
        if workload.n_tokens == workload.n_seqs:
            self.time.decode_s += seconds
        else:
            self.time.prefill_s += seconds
        self.time.host_s += host_s
        self.time.basis = cost.basis
        self._copy_s = 0.0

    def note_copy(self, link: Link | None, nbytes: int) -> None:
        self._copy_s += link.seconds(nbytes) if link else 0.0

    def give(self, space: str, nbytes: int) -> None:
        self._free[space] += nbytes

    def _open(self) -> Device:
        if self._acting is None:
            raise DeviceError(f"{self.info.id} is closed")
        return self._acting

    def _owned(self, part: P) -> P:
        self._parts.add(part)
        return part

    def _take(self, space: str, nbytes: int) -> None:
        if nbytes > self._free[space]:
            raise AllocationError(
                f"{self.info.id}: {nbytes} bytes asked for, {self._free[space]} free in {space}",
                remedy="use a shorter context or fewer sequences",
            )
        self._free[space] -= nbytes

    def _inner_buffer(self, name: str, buffer: Buffer) -> Buffer:
        if isinstance(buffer, StandInBuffer):
            return buffer.inner
        if self.info.spaces[0].upload is not None:
            raise DeviceError(f"{self.info.id}: the buffer bound to {name} was not made here")
        return buffer

    def _inner_state(self, name: str, state: State) -> State:
        if not isinstance(state, StandInState):
            raise DeviceError(f"{self.info.id}: the state bound to {name} was not made here")
        return state.inner


class StandInBuffer:
    """Memory of the stand-in. Where the modelled device is behind a link, the host has no view of it, and copies take
    the link's time."""

    def __init__(self, device: StandInDevice, inner: Buffer, upload: Link | None, download: Link | None) -> None:
        self.inner = inner
        self._device: StandInDevice | None = device
        self._upload, self._download = upload, download

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def write(self, data: memoryview, offset: int = 0) -> None:
        self.inner.write(data, offset)
        if self._device:
            self._device.note_copy(self._upload, data.nbytes)

    def read(self, out: memoryview, offset: int = 0) -> None:
        self.inner.read(out, offset)
        if self._device:
            self._device.note_copy(self._download, out.nbytes)

    def host_view(self) -> memoryview | None:
        return None if self._upload else self.inner.host_view()

    def close(self) -> None:
        device, self._device = self._device, None
        if device:
            device.give(device.info.spaces[0].name, self.inner.nbytes)
        self.inner.close()


class StandInState:
    """The stand-in's KV cache, counted as the modelled device's."""

    def __init__(self, device: StandInDevice, kv: KvSpec, inner: State) -> None:
        self.inner = inner
        self._device: StandInDevice | None = device
        self._kv = kv

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        self.inner.copy(src_slot, dst_slot, n_tokens)

    def close(self) -> None:
        device, self._device = self._device, None
        if device:
            device.give(device.info.spaces[-1].name, self._kv.nbytes)
        self.inner.close()


class StandInExecutable:
    """Runs on the stand-in, and notes what the modelled device would have taken."""

    def __init__(self, device: StandInDevice, inner: Executable, times: SegmentTimes) -> None:
        self._device = device
        self._inner = inner
        self._times = times

    def run(self, batch: Batch) -> None:
        host_s = self._device.act(self._inner, batch)
        self._device.note(self._times, workload_of(batch), host_s)

    def close(self) -> None:
        self._inner.close()


class SegmentTimes:
    """What a segment takes on the modelled device. Ops that differ in their names alone are asked for once a batch."""

    def __init__(self, info: DeviceInfo, driver: Driver, segment: Segment) -> None:
        self.segment = segment
        self._info = info
        self._driver = driver
        ops = {op.signature: op for op in segment.ops}
        counts = Counter(op.signature for op in segment.ops)
        self._ops = [(ops[key], n) for key, n in counts.items()]
        self._names = tuple((op.name,) for op in segment.ops)

    def cost(self, workload: Workload) -> Cost:
        """Of one run: its launch and its ops."""
        costs = [(self._driver.estimate(self._info, op, workload), n) for op, n in self._ops]
        answers = [(c, n) for c, n in costs if isinstance(c, Cost)]
        seconds = self._info.launch.seconds + sum(n * c.seconds for c, n in answers)
        return Cost(seconds, answers[0][0].basis if answers else self._info.launch.basis)

    def steps(self, workload: Workload) -> StepTimes:
        """The ops in their order; what a run takes beyond them is its launch."""
        answers = {op.signature: self._driver.estimate(self._info, op, workload) for op, _ in self._ops}
        by_op = [answers[op.signature] for op in self.segment.ops]
        seconds = [a.seconds if isinstance(a, Cost) else 0.0 for a in by_op]
        return StepTimes(self._names, seconds)


def workload_of(batch: Batch) -> Workload:
    """The size of a batch, for costs: n_past is the mean of its sequences'."""
    first: dict[int, int] = {}
    for slot, position in zip(batch.slots, batch.positions, strict=True):
        first.setdefault(slot, position)
    n_past = round(sum(first.values()) / len(first)) if first else 0
    return Workload(batch.n_tokens, n_past, max(1, len(first)), batch.n_outputs)
