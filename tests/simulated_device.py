"""A device that computes nothing and takes, on a clock of its own, exactly the time that its law says: what calibration
finds can be held against the truth. As a plugin it runs on the real clock and takes next to none."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hetrun.calibration.terms import footprint_bytes, with_again
from hetrun.device import (
    API_VERSION,
    Batch,
    Bindings,
    Cost,
    DeviceInfo,
    Link,
    MemorySpace,
    RunEvent,
    Segment,
    Unsupported,
    Workload,
    residents,
    roofline,
)
from hetrun.errors import DeviceError
from hetrun.hookspecs import hookimpl
from hetrun.ops import Attention, KvSpec, MatMul, Op

BASIS = "analytic:planted"
CACHE_BYTES = 32_000_000


@dataclass
class Clock:
    """Time that passes only when somebody says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Law:
    """The true times. Rates by tensor type: (bytes a second from a cache, beyond it, operations a second)."""

    rates: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: {"Q8_0": (80e9, 40e9, 600e9), "Q4_0": (60e9, 30e9, 500e9)}
    )
    other_rates: tuple[float, float, float] = (50e9, 25e9, 400e9)
    prepare_s: float = 1.5e-6  # of a matmul's input, once a value
    prepare_element_s: float = 3e-10
    op_s: float = 4e-7
    element_s: float = 2e-10
    attention_s: float = 3e-6
    attention_flops_per_s: float = 60e9
    launch_s: float = 20e-6
    noise: float = 0.0

    def op_seconds(self, op: Op, workload: Workload, footprint: int, again: bool) -> float:
        rows = workload.rows(op.output.rows)
        if isinstance(op, MatMul):
            cached, beyond, flops_per_s = self.rates.get(op.weight.type.name, self.other_rates)
            reading = op.weight.nbytes / (beyond if footprint > CACHE_BYTES else cached)
            input_s = 0.0 if again else self.prepare_s + self.prepare_element_s * op.x.width * rows
            times = reading + 2 * op.weight.n_elements * (rows - 1) / flops_per_s
            return input_s + times + self.element_s * op.output.width * rows
        if isinstance(op, Attention):
            return self.attention_s + op.flops(workload) / self.attention_flops_per_s
        return self.op_s + self.element_s * op.output.width * rows

    def step_seconds(self, ops: Sequence[Op], workload: Workload) -> float:
        """Of one run, its launch included."""
        footprint = footprint_bytes(ops, workload)
        return self.launch_s + sum(self.op_seconds(op, workload, footprint, again) for op, again in with_again(ops))


@dataclass(frozen=True)
class SimulatedProgram:
    segment: Segment
    resident: Mapping[tuple[str, str], int]


@dataclass
class SimulatedDriver:
    """refuses: op kinds and tensor types.   model: what the estimates go by, as wrong as a test wants it."""

    law: Law | None = None
    clock: Clock = field(default_factory=Clock)
    refuses: frozenset[str] = frozenset()
    link: Link | None = None
    model: Mapping[str, float] = field(default_factory=lambda: {"flops_per_s": 1e12, "bytes_per_s": 1e12})
    fails_after: int = 1 << 60
    error: Callable[[], BaseException] = KeyboardInterrupt
    name: str = "sim"
    api_version: int = API_VERSION
    runs: int = 0

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        name = "host" if self.link is None else "sim:0/ram"
        threads = config.get("threads", 1)
        return [
            DeviceInfo(
                id="sim:0",
                description=f"simulated, {threads} threads",
                backing="hardware",
                spaces=(MemorySpace(name, 8 << 30, 64, self.link, self.link),),
                launch=Cost(1e-9, BASIS),
                model=self.model,
            )
        ]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        names = {op.kind, *(w.type.name for w in op.weights)}
        if names & self.refuses:
            return Unsupported(f"no {', '.join(sorted(names & self.refuses))}")
        return roofline(op, workload, info, BASIS)

    def compile(self, info: DeviceInfo, segment: Segment) -> SimulatedProgram:
        resident: dict[tuple[str, str], int] = {}
        for op in segment.ops:
            resident.update(residents(op, info.spaces[-1].name))
        return SimulatedProgram(segment, resident)

    def open(self, info: DeviceInfo) -> SimulatedDevice:
        return SimulatedDevice(self)


class SimulatedBuffer:
    def __init__(self, driver: SimulatedDriver, nbytes: int) -> None:
        self.nbytes = nbytes
        self._driver = driver
        self._data = bytearray(nbytes)

    def write(self, data: memoryview, offset: int = 0) -> None:
        view = memoryview(data).cast("B")
        self._data[offset : offset + view.nbytes] = view
        self._copied(view.nbytes)

    def read(self, out: memoryview, offset: int = 0) -> None:
        view = memoryview(out).cast("B")
        view[:] = self._data[offset : offset + view.nbytes]
        self._copied(view.nbytes)

    def _copied(self, nbytes: int) -> None:
        if self._driver.link and self._driver.law:
            self._driver.clock.now_s += TRUE_LINK.seconds(nbytes)

    def host_view(self) -> memoryview | None:
        return memoryview(self._data) if self._driver.link is None else None

    def close(self) -> None:
        pass


TRUE_LINK = Link(7e-6, 3e9, "measured:by law")


@dataclass
class SimulatedState:
    """Knows how many tokens it holds, so that a batch behind a gap is refused."""

    n_tokens: int = 0

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        pass

    def close(self) -> None:
        pass


class SimulatedExecutable:
    def __init__(self, driver: SimulatedDriver, segment: Segment, states: Sequence[SimulatedState]) -> None:
        self._driver, self._segment, self._states = driver, segment, states
        self._times: dict[object, float] = {}
        self._noise = random.Random(1)

    def run(self, batch: Batch) -> None:
        driver = self._driver
        driver.runs += 1
        for state in self._states:
            if batch.positions[0] > state.n_tokens:
                raise DeviceError(f"sim:0: position {batch.positions[0]} of a cache of {state.n_tokens} tokens")
            state.n_tokens = max(state.n_tokens, batch.positions[0] + batch.n_tokens)
        if driver.runs > driver.fails_after:
            raise driver.error()
        law = driver.law
        if law is None:
            return
        workload = Workload(batch.n_tokens, batch.positions[0] if batch.n_tokens else 0, 1, batch.n_outputs)
        if workload not in self._times:
            self._times[workload] = law.step_seconds(self._segment.ops, workload)
        driver.clock.now_s += self._times[workload] * self._noise.uniform(1 - law.noise, 1 + law.noise)

    def close(self) -> None:
        pass


class SimulatedDevice:
    def __init__(self, driver: SimulatedDriver) -> None:
        self._driver = driver

    def alloc(self, nbytes: int) -> SimulatedBuffer:
        return SimulatedBuffer(self._driver, nbytes)

    def state(self, kv: KvSpec) -> SimulatedState:
        return SimulatedState()

    def load(
        self, program: SimulatedProgram, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> SimulatedExecutable:
        for weight in (w for op in program.segment.ops for w in op.weights):
            if weights[weight.name].nbytes != weight.nbytes:
                raise DeviceError(f"sim:0: {weight.name} is not {weight.nbytes} bytes long")
        specs = [op.kv.name for op in program.segment.ops if isinstance(op, Attention)]
        return SimulatedExecutable(self._driver, program.segment, [bindings.states[name] for name in specs])

    def synchronize(self) -> Sequence[RunEvent]:
        return []

    def close(self) -> None:
        pass


@hookimpl
def hetrun_drivers() -> list[SimulatedDriver]:
    return [SimulatedDriver()]
