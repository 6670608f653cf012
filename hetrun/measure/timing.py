"""Times patterns on an open device: loads them in several sizes, runs all in turn, and keeps medians."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from hetrun.calibration.table import Observation, is_reading
from hetrun.calibration.terms import footprint_bytes, rows_of, terms, with_again
from hetrun.device import Batch, Bindings, Buffer, Cost, Device, DeviceInfo, Executable, Segment, State
from hetrun.errors import AllocationError
from hetrun.measure.busy import ProcessorTime, after_others, others_since, wait_for_quiet
from hetrun.measure.patterns import N_CTX, Group, Pattern
from hetrun.measure.probe import DISTURBED, Probe
from hetrun.ops import Attention, Op, Workload
from hetrun.plugins import FoundDevice
from hetrun.run.random_blocks import tiled_blocks

Clock = Callable[[], float]

TOKENS = (1, 4, 16, 64, 256)
"""Numbers of rows that are timed; costs between them are interpolated."""

LEVELS = (8_000_000, 96_000_000, 256_000_000)
"""Bytes of weights that a step of one token runs through: in the caches of a processor, as many as the smallest models
have, of which caches hold some, and beyond them."""

_RUN_S = 0.01  # a program is made as long as this where there are weights for it
_SLOWEST_S = 0.3  # and left out where it takes longer
_LONG_S = 0.1  # from here on a program is timed twice, no oftener: it is itself a mean over many moments
_SHORT_S = 5e-3  # shorter runs are preceded by one that is not timed: caches and threads are then as in a long run
_SAMPLE_S = 2e-3  # and repeated for as long as this
_MOST_S = 5.0  # of all rounds of a group, beyond the third
_PROBE_REPETITIONS, _PROBE_TOKENS = 4, 64
_COMPUTING_S, _READING_S = 5e-4, 0.02  # probes have fewer repetitions where they take longer
_FILL_TOKENS = 256
_FILL_S = 0.5  # to fill the caches of a pattern; longer contexts are left out
_MOST_RUNS = 1000
_BETWEEN_ROUNDS_S = 0.05  # so that a moment in which others use the memory is not all that is seen
_PROBING_S = 1.0
_REST_S = 0.01  # what disturbs may have gone by then
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
    """seconds: of a run.   probe_s: of the probe that is like it, before and after it."""

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

    @cached_property
    def reading(self) -> bool:
        return is_reading(self.workload.n_tokens, footprint_bytes(self.ops, self.workload))

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
        self._probes: dict[bool, Probe] = {}
        self._just_probed: tuple[bool, float] | None = None
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

    def set_probes(self, pattern: Pattern) -> None:
        """Runs that pattern around samples from now on: several tokens around what computes, one token of as many
        weights as no cache holds around what reads memory.
        """
        most = self._most(pattern)
        for reading, n_tokens, longest_s in ((False, _PROBE_TOKENS, _COMPUTING_S), (True, 1, _READING_S)):
            wanted = LEVELS[1] // max(pattern.block_bytes, 1) if reading else _PROBE_REPETITIONS
            bound = self._bound(pattern, max(1, min(most, wanted)), self._resources)
            in_time = int(longest_s / max(self._repetition_s(pattern, n_tokens, bound), 1e-9))
            case = self._load(pattern, max(1, min(bound.most, in_time)), n_tokens, bound, self._resources)
            self._probes[reading] = Probe(partial(self._time, case))
        started = self.clock()
        for n in range(1000):
            if n >= 10 and self.clock() - started > _PROBING_S:
                break
            self.probe(reading=n % 2 == 1)

    def probe(self, reading: bool) -> float:
        """Seconds of a probe now, 1 where there is none."""
        probe_s = self._probes[reading]() if self._probes else 1.0
        self._just_probed = (reading, probe_s)
        return probe_s

    def unusual(self, reading: bool, probe_s: float) -> float:
        """How far a probe is from what it mostly takes, in logarithms."""
        return self._probes[reading].unusual(probe_s) if self._probes else 0.0

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
            self._just_probed = None
            for case in cases:
                if rounds <= 2 or case.run_s < _LONG_S:
                    self._sample(case)
        for case in cases:
            case.samples = sorted(case.samples, key=lambda s, c=case: self.unusual(c.reading, s.probe_s))[:rounds]  # type: ignore[misc]
        others = others_since(before)
        if others is not None:
            self.others.append(others)
        return others

    def _sample(self, case: Case) -> None:
        """Adds a sample, and more where it was disturbed. What is kept is chosen by the probe, never by its time."""
        reading = case.reading
        for n in range(self.effort.tries):
            if n:
                time.sleep(_REST_S)
                self._just_probed = None
            # The probe behind one sample serves as the one before the next.
            just = self._just_probed
            before_s = just[1] if just and just[0] == reading else self.probe(reading)
            if case.run_s < _SHORT_S:
                self._time(case)
            seconds = statistics.median(self._times(case, _SAMPLE_S))
            case.samples.append(Sample(seconds, math.sqrt(before_s * self.probe(reading))))
            if self.unusual(reading, case.samples[-1].probe_s) <= DISTURBED:
                return

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
