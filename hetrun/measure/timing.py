"""Times patterns on an open device: loads them in several sizes, runs all in turn, and keeps medians."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from hetrun.calibration.table import Observation
from hetrun.calibration.terms import footprint_bytes, rows_of, terms, with_again
from hetrun.device import Batch, Bindings, Buffer, Cost, Device, DeviceInfo, Executable, Segment, State
from hetrun.errors import AllocationError
from hetrun.measure.busy import ProcessorTime, after_others, others_since, wait_for_quiet
from hetrun.measure.patterns import N_CTX, Group, Pattern
from hetrun.ops import Attention, Op, Workload
from hetrun.plugins import FoundDevice
from hetrun.run.random_blocks import tiled_blocks

Clock = Callable[[], float]

TOKENS = (1, 4, 16, 64, 256)
"""Numbers of rows that are timed; costs between them are interpolated."""

LEVELS = (8_000_000, 64_000_000, 256_000_000)
"""Bytes of weights that a step of one token runs through: in the caches of a processor, partly so, and beyond them."""

_RUN_S = 0.01  # a program is made as long as this where there are weights for it
_SLOWEST_S = 0.3  # and left out where it takes longer
_LONG_S = 0.1  # from here on a program is timed twice, no oftener: it is itself a mean over many moments
_SHORT_S = 5e-3  # shorter runs are preceded by one that is not timed: caches and threads are then as in a long run
_SAMPLE_S = 2e-3  # and repeated for as long as this
_MOST_S = 5.0  # of all rounds of a group, beyond the third
_PROBE_REPETITIONS, _PROBE_TOKENS, _PROBE_RUNS = 4, 64, 3
_PROBE_S = 5e-4  # it has fewer repetitions where they take longer
_FILL_TOKENS = 256
_FILL_S = 0.5  # to fill the caches of a pattern; longer contexts are left out
_REMEMBERED = 400  # probes
_MOST_RUNS = 1000
_BETWEEN_ROUNDS_S = 0.05  # so that a moment in which others use the memory is not all that is seen
_PROBING_S = 1.0
_REST_S = 0.01  # what disturbs may have gone by then
DISTURBED = math.log(1.12)
"""A probe that takes this much more or less time than usual, in logarithms, says that the machine is not as usual."""

_NEAR = 2.5  # a repetition larger than this many times a level says nothing about the level
_MOST_REPETITIONS = 1400  # 256 MB of the smallest matrices that are timed, in 2 bits
_MOST_RESIDENT_BYTES = 512_000_000
_FEW_REPETITIONS = 8  # of patterns without weights, whose caches take memory


@dataclass(frozen=True)
class Effort:
    """rounds: times that each program is timed, in turn with the others.   levels: see LEVELS.

    tries: samples at most, for each one wanted, where something disturbs.
    """

    rounds: int = 7
    tries: int = 2
    levels: tuple[int, ...] = LEVELS


QUICK = Effort(rounds=3, tries=1, levels=LEVELS[1:])


@dataclass(frozen=True)
class Sample:
    """seconds: of a run.   probe_s: of the probe, before and after it."""

    seconds: float
    probe_s: float


@dataclass
class Case:
    """A program that is loaded, on one batch."""

    pattern: Pattern
    ops: tuple[Op, ...]
    executable: Executable
    batch: Batch
    workload: Workload
    run_s: float
    samples: list[Sample] = field(default_factory=list)

    @property
    def name(self) -> str:
        past = f" behind {self.workload.n_past}" if self.pattern.pasts != (0,) else ""
        return f"{self.pattern.name}, {self.workload.n_tokens} tokens{past}"


class Bench:
    """An open device, and what its programs are bound to. A context manager."""

    def __init__(self, found: FoundDevice, effort: Effort, clock: Clock = time.perf_counter) -> None:
        self.found = found
        self.effort = effort
        self.clock = clock
        self.others: list[float] = []
        self._probes: list[float] = []
        self._probe_case: Case | None = None
        self._resources = ExitStack()
        self.device: Device = found.driver.open(found.info)
        self._resources.callback(self.device.close)
        self._most_bytes = _most_bytes(found.info)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def measure(self, group: Group, launch_s: float) -> list[Observation]:
        """Times every pattern of a group, at each number of tokens."""
        with ExitStack() as stack:
            cases = list(self._cases(group, stack))
            others = self._rounds(cases)
            return [self._observation(group.name, case, launch_s, others) for case in cases]

    def set_probe(self, pattern: Pattern) -> None:
        """Runs that pattern around samples from now on: what slows it slows them. Another machine on the same host, a
        neighbour on the same core or a lower clock may be seen nowhere else.
        """
        bound = self._bound(pattern, min(self._most(pattern), _PROBE_REPETITIONS), self._resources)
        repetition_s = self._repetition_s(pattern, _PROBE_TOKENS, bound)
        n = max(1, min(bound.most, round(_PROBE_S / max(repetition_s, 1e-9))))
        self._probe_case = self._load(pattern, n, _PROBE_TOKENS, bound, self._resources)
        started = self.clock()
        while len(self._probes) < 10 or self.clock() - started < _PROBING_S:
            self.probe()

    def probe(self) -> float:
        """Seconds of the probe now, 1 where none is set."""
        if self._probe_case is None:
            return 1.0
        # Threads may sleep, and others have filled the caches: that is over after the first runs.
        times = [self._time(self._probe_case) for _ in range(2 + _PROBE_RUNS)]
        self._probes.append(statistics.median(times[2:]))
        return self._probes[-1]

    def unusual(self, probe_s: float) -> float:
        """How far the probe is from what it mostly takes: the logarithm of the ratio, without its sign."""
        if not self._probes or probe_s <= 0:
            return 0.0
        return abs(math.log(probe_s / max(statistics.median(self._probes[-_REMEMBERED:]), 1e-12)))

    def launch(self, op: Op) -> tuple[float, float]:
        """Seconds of a run of one small op, which is what a run costs beside its ops and as good as nothing more: one
        after the other, and where others have used the caches meanwhile.
        """
        pattern = Pattern("launch", op.inputs[0].width, lambda i, x: (op,), op.inputs[1:])
        with ExitStack() as stack:
            case = self._load(pattern, 1, 1, self._bound(pattern, 1, stack), stack)
            self._rounds([case])
            hot_s = statistics.median(s.seconds for s in case.samples)
            return hot_s, statistics.median(after_others(lambda: self._time(case)))

    def _cases(self, group: Group, stack: ExitStack) -> Iterator[Case]:
        for pattern in group.patterns:
            try:
                bound = self._filled(pattern, self._bound(pattern, self._most(pattern), stack))
                repetition_s = 0.0
                for n_tokens in TOKENS:
                    if repetition_s * 2 > _SLOWEST_S:
                        break
                    repetition_s = self._repetition_s(pattern, n_tokens, bound)
                    for n in self._repetitions(pattern, n_tokens, repetition_s, bound.most):
                        yield from self._at_pasts(self._load(pattern, n, n_tokens, bound, stack), bound)
            except AllocationError:
                continue  # too large for this device: smaller patterns say what there is to say

    def _repetition_s(self, pattern: Pattern, n_tokens: int, bound: _Bound) -> float:
        """Seconds of a repetition, from one short run."""
        n = min(2, bound.most)
        with ExitStack() as stack:
            return self._load(pattern, n, n_tokens, bound, stack).run_s / n

    def _repetitions(self, pattern: Pattern, n_tokens: int, repetition_s: float, most: int) -> list[int]:
        """How long programs are made: for every level of bytes where one token runs through them, else long enough."""
        most = min(most, max(1, int(_SLOWEST_S / max(repetition_s, 1e-9))))
        if n_tokens == 1 and pattern.block_bytes:
            levels = self.effort.levels if pattern.at_footprints else self.effort.levels[:1]
            near = [level for level in levels if pattern.block_bytes < _NEAR * level] or levels[-1:]
            return sorted({max(1, min(most, round(level / pattern.block_bytes))) for level in near})
        wanted = round(_RUN_S / max(repetition_s, 1e-7))
        if pattern.block_bytes:
            most = min(most, max(2, LEVELS[1] // pattern.block_bytes))
        return [max(min(2, most), min(most, wanted))]

    def _most(self, pattern: Pattern) -> int:
        if not pattern.repeatable:
            return 1
        if not pattern.block_bytes:
            return _FEW_REPETITIONS if pattern.pasts != (0,) else 64
        largest = min(self.effort.levels[-1] // pattern.block_bytes, self._most_bytes // self._resident(pattern))
        return max(1, min(_MOST_REPETITIONS, largest))

    def _resident(self, pattern: Pattern) -> int:
        """Bytes that a repetition takes once it is loaded, which may be more than its blocks have."""
        answers = (self.found.driver.estimate(self.found.info, op, Workload(1, 0)) for op in pattern.ops(1))
        kept = sum(sum(a.resident.values()) for a in answers if isinstance(a, Cost))
        return max(kept, pattern.block_bytes)

    def _bound(self, pattern: Pattern, most: int, stack: ExitStack) -> _Bound:
        ops = pattern.ops(most)
        return _Bound(
            most,
            {w.name: tiled_blocks(w).toreadonly() for op in ops for w in op.weights},
            {op.kv.name: self._kept(self.device.state(op.kv), stack) for op in ops if isinstance(op, Attention)},
        )

    def _kept(self, state: State, stack: ExitStack) -> State:
        stack.callback(state.close)
        return state

    def _load(self, pattern: Pattern, n: int, n_tokens: int, bound: _Bound, stack: ExitStack) -> Case:
        """n repetitions, loaded and run once."""
        ops = pattern.ops(n)
        read = {v.name for op in ops for v in op.inputs}
        inputs = tuple(v for v in (pattern.x, *pattern.inputs) if v.name in read)
        segment = Segment(f"{pattern.name} x {n}", ops, inputs, (ops[-1].output,), n_tokens, n_tokens)
        buffers: dict[str, Buffer] = {}
        for value in (*inputs, *segment.outputs):
            buffers[value.name] = self.device.alloc(segment.value_bytes(value))
            stack.callback(buffers[value.name].close)
        for value in inputs:
            buffers[value.name].write(_values(segment.value_bytes(value)))
        weights = {w.name: bound.weights[w.name] for op in ops for w in op.weights}
        states = {op.kv.name: bound.states[op.kv.name] for op in ops if isinstance(op, Attention)}
        program = self.found.driver.compile(self.found.info, segment)
        executable = self.device.load(program, weights, Bindings(buffers, states))
        stack.callback(executable.close)
        case = Case(pattern, ops, executable, _batch(n_tokens, 0), Workload(n_tokens, 0), 0.0)
        case.run_s = self._time(case)
        if case.run_s < _LONG_S:
            case.run_s = self._time(case)  # the first one touches memory
        return case

    def _filled(self, pattern: Pattern, bound: _Bound) -> _Bound:
        """With the keys and values that the pattern's contexts ask for: fewer repetitions where those take long to
        fill, and fewer tokens where one repetition does. A device may rely on positions without gaps.
        """
        wanted = max(pattern.pasts)
        if wanted == 0:
            return bound
        with ExitStack() as stack:
            chunk, most = min(wanted, _FILL_TOKENS), bound.most
            if not pattern.block_bytes:  # else there are as many as there are to be bytes of weights
                # Attention over one chunk after the other takes 1, 3, 5, ... times as long as over the first.
                each_s = self._repetition_s(pattern, chunk, bound) * math.ceil(wanted / chunk) ** 2
                most = max(1, min(most, int(_FILL_S / max(each_s, 1e-9))))
            case = self._load(pattern, most, chunk, bound, stack)
            filled, started = 0, self.clock()
            while filled < wanted and self.clock() - started < _FILL_S:
                n_tokens = min(chunk, wanted - filled)
                case.executable.run(_batch(n_tokens, filled))
                self.device.synchronize()
                filled += n_tokens
        return replace(bound, most=most, filled=filled)

    def _at_pasts(self, case: Case, bound: _Bound) -> Iterator[Case]:
        """The program once for each context that the pattern is to be timed with."""
        n_tokens = case.workload.n_tokens
        for past in case.pattern.pasts:
            if past > bound.filled or past + n_tokens > N_CTX:
                continue
            behind = replace(case, batch=_batch(n_tokens, past), workload=Workload(n_tokens, past), samples=[])
            if past:
                behind.run_s = self._time(behind)
            if behind.run_s > _SLOWEST_S and past:
                break
            yield behind

    def _time(self, case: Case) -> float:
        started = self.clock()
        case.executable.run(case.batch)
        self.device.synchronize()
        return self.clock() - started

    def _times(self, case: Case, at_least_s: float) -> list[float]:
        """Seconds of runs, as many as take that long together."""
        times: list[float] = []
        left_s = at_least_s
        while left_s > 0 and len(times) < _MOST_RUNS:
            times.append(self._time(case))
            left_s -= times[-1]
        return times

    def _rounds(self, cases: Sequence[Case]) -> float | None:
        """Times all cases in turn, several times. Share of the processor that others took."""
        wait_for_quiet()
        before = ProcessorTime.now()
        started = self.clock()
        rounds = 0
        while rounds < self.effort.rounds and (rounds < 3 or self.clock() - started < _MOST_S):
            rounds += 1
            time.sleep(_BETWEEN_ROUNDS_S)
            probe_s = self.probe()
            for case in cases:
                if rounds <= 2 or case.run_s < _LONG_S:
                    probe_s = self._sample(case, probe_s)
        for case in cases:
            case.samples = sorted(case.samples, key=lambda s: self.unusual(s.probe_s))[:rounds]
        others = others_since(before)
        if others is not None:
            self.others.append(others)
        return others

    def _sample(self, case: Case, probe_s: float) -> float:
        """Adds a sample, and more where it was disturbed. What is kept is chosen by the probe, never by its time.

        probe_s: of the probe just now.   Returns that of the one afterwards.
        """
        for n in range(self.effort.tries):
            if n:
                time.sleep(_REST_S)
                probe_s = self.probe()
            if case.run_s < _SHORT_S:
                self._time(case)
            seconds = statistics.median(self._times(case, _SAMPLE_S))
            before_s, probe_s = probe_s, self.probe()
            case.samples.append(Sample(seconds, math.sqrt(before_s * probe_s)))
            if self.unusual(case.samples[-1].probe_s) <= DISTURBED:
                break
        return probe_s

    def _observation(self, group: str, case: Case, launch_s: float, others: float | None) -> Observation:
        total: dict[str, float] = {}
        estimated: dict[str, float] = {}
        for op, again in with_again(case.ops):
            for name, quantity in terms(op, case.workload, again).items():
                total[name] = total.get(name, 0.0) + quantity
            answer = self.found.driver.estimate(self.found.info, op, case.workload)
            seconds = answer.seconds if isinstance(answer, Cost) else 0.0
            estimated[op.kind] = estimated.get(op.kind, 0.0) + seconds
        seconds = statistics.median(s.seconds for s in case.samples)
        return Observation(
            group=group,
            program=case.name,
            n_tokens=rows_of(case.ops[0], case.workload),
            footprint=footprint_bytes(case.ops, case.workload),
            seconds=max(seconds - launch_s, 1e-9),
            estimate_s=sum(estimated.values()),
            terms=total,
            kinds=estimated,
            others=others,
            probe_s=statistics.median(s.probe_s for s in case.samples),
        )


@dataclass(frozen=True)
class _Bound:
    """What the programs of a pattern share.   most: repetitions that there are weights for.

    filled: tokens in the caches of all of them.
    """

    most: int
    weights: Mapping[str, memoryview]
    states: Mapping[str, State]
    filled: int = 0


def _most_bytes(info: DeviceInfo) -> int:
    """Bytes that the weights of one pattern may take: a small share of the device's memory."""
    return min(_MOST_RESIDENT_BYTES, min(space.capacity_bytes for space in info.spaces) // 16)


def _batch(n_tokens: int, past: int) -> Batch:
    tokens = [7 * i % 8191 for i in range(n_tokens)]
    return Batch.of(tokens, range(past, past + n_tokens), [0] * n_tokens, [n_tokens - 1])


def _values(nbytes: int) -> memoryview:
    """float32 around zero, as activations are."""
    pattern = array("f", [((i * 37) % 101 - 50) / 25 for i in range(101)])
    return memoryview((pattern * (nbytes // 404 + 1))[: nbytes // 4]).cast("B")
