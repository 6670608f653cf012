"""The calibration of one device: prices of terms, found by measuring, and the costs that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hetrun.calibration.terms import Terms, by_context, family, rows_of, terms, visible_keys
from hetrun.device import Basis, Cost, DeviceInfo, Link, MemorySpace
from hetrun.ops import MatMul, Op, Workload
from hetrun.tensor import TENSOR_TYPES

Levels = tuple[tuple[float, float], ...]
"""(footprint in bytes or keys that a query sees, seconds a unit), ascending; one entry where neither matters."""

_BEYOND_CACHES_BYTES = 32_000_000


def is_reading(n_tokens: int, footprint: int) -> bool:
    """Whether a program's time is that of reading weights from memory, whose speed is not that of arithmetic."""
    return n_tokens == 1 and footprint > _BEYOND_CACHES_BYTES


@dataclass(frozen=True)
class Speeds:
    """What two probes of the machine took: one computes, one reads weights from memory. 0 where there was none."""

    computing_s: float = 0.0
    reading_s: float = 0.0

    def of(self, reading: bool) -> float:
        return self.reading_s if reading else self.computing_s


@dataclass(frozen=True)
class LinkTimes:
    """Links of one memory space, as measured."""

    upload: tuple[float, float]
    download: tuple[float, float]


@dataclass(frozen=True)
class Observation:
    """One program that was timed.

    group: what was measured together.   terms: sum over the program's ops.   n_tokens: rows.   footprint: bytes of its
    weights and keys.   seconds: median of a run, without the launch.   estimate_s: the driver's own answer.
    others: share of the processor that other programs took, or None where the system does not say.
    probe_s: what the probe that is like the program took meanwhile, 0 where there was none.
    """

    group: str
    program: str
    n_tokens: int
    footprint: int
    seconds: float
    estimate_s: float
    terms: Terms
    kinds: Mapping[str, float]
    others: float | None = None
    probe_s: float = 0.0

    @property
    def reading(self) -> bool:
        return is_reading(self.n_tokens, self.footprint)

    def at_speeds(self, speeds: Speeds) -> float:
        """Seconds where the probes take that long: the program takes as much longer as the one that is like it."""
        usual_s = speeds.of(self.reading)
        return self.seconds * usual_s / self.probe_s if usual_s and self.probe_s else self.seconds


@dataclass(frozen=True)
class Check:
    """A small model that the prices were not found from, in whole steps.   before_s: by the driver's own estimate.

    after_s: by the prices.
    """

    what: str
    measured_s: float
    before_s: float
    after_s: float


@dataclass(frozen=True)
class Calibration:
    """prices: seconds a unit of each term, by number of rows.   ratios: measured over estimated time, by op kind.

    launch_s: one run of a segment, as a session sees it.   links: (latency_s, bytes_per_s) by memory space.
    speeds: what the probes took while the machine was as these figures have it.   date: ISO, UTC.
    alike: tensor types that were not timed, as the device keeps them in the same form as one that was.
    others: share of the processor that other programs took meanwhile, None where not known.
    """

    device: str
    fingerprint: str
    description: str
    version: str
    date: str
    launch_s: float | None
    prices: Mapping[int, Mapping[str, Levels]]
    ratios: Mapping[str, float]
    links: Mapping[str, LinkTimes]
    observations: tuple[Observation, ...] = ()
    checks: tuple[Check, ...] = ()
    others: float | None = None
    speeds: Speeds = Speeds()
    alike: Mapping[str, str] = field(default_factory=dict)
    _answers: dict[object, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def basis(self) -> Basis:
        return f"measured:calibration of {self.date[:10]}, interpolated"

    def cost(self, estimate: Cost, op: Op, workload: Workload, footprint: int, again: bool) -> Cost:
        """The driver's answer with the time that measurements give it.

        Where the op's kind was measured, but not its tensor type or KV format, the estimate is scaled as its kind was
        off; where its kind was not, it stays as it is. Joules follow the seconds.
        """
        seconds, basis = self.seconds(op, workload, footprint, again), self.basis
        if seconds is None:
            ratio = self.ratios.get(op.kind)
            if ratio is None:
                return estimate
            seconds = estimate.seconds * ratio
            basis = f"{estimate.basis}, scaled by the calibration of {self.date[:10]}"
        joules = estimate.joules
        if joules is not None and estimate.seconds > 0:
            joules *= seconds / estimate.seconds
        return replace(estimate, seconds=seconds, basis=basis, joules=joules)

    def seconds(self, op: Op, workload: Workload, footprint: int, again: bool) -> float | None:
        """Predicted time inside a run, or None where nothing like the op was measured."""
        rows = rows_of(op, workload)
        if rows <= 0:
            return 0.0
        parts = terms(self._as_timed(op), workload, again)
        key = (rows, footprint, *parts.items())
        if key not in self._answers:
            found = self._interpolated(parts, rows, footprint)
            if found is None:
                return None
            self._answers[key] = found
        return self._answers[key]

    def _as_timed(self, op: Op) -> Op:
        """The op with the tensor type that stands for its own."""
        if not isinstance(op, MatMul) or op.weight.type.name not in self.alike:
            return op
        return replace(op, weight=replace(op.weight, type=TENSOR_TYPES[self.alike[op.weight.type.name]]))

    def refine(self, info: DeviceInfo) -> DeviceInfo:
        """`info` with launch and links as measured."""
        launch = info.launch
        if self.launch_s is not None:
            scale = self.launch_s / launch.seconds if launch.seconds > 0 else 1.0
            joules = None if launch.joules is None else launch.joules * scale
            launch = replace(launch, seconds=self.launch_s, basis=self._measured, joules=joules)
        return replace(info, launch=launch, spaces=tuple(map(self._refine_space, info.spaces)))

    @property
    def _measured(self) -> Basis:
        return f"measured:calibration of {self.date[:10]}"

    def _refine_space(self, space: MemorySpace) -> MemorySpace:
        times = self.links.get(space.name)
        if times is None or space.upload is None or space.download is None:
            return space
        upload, download = (Link(*t, self._measured) for t in (times.upload, times.download))
        return replace(space, upload=upload, download=download)

    def _interpolated(self, parts: Terms, rows: int, footprint: int) -> float | None:
        """Along a power law between the numbers of rows that were measured; in proportion beyond the largest."""
        kind = family(next(iter(parts)))
        grid = sorted(n for n, prices in self.prices.items() if kind in prices)
        if not grid:
            return None
        low = max((n for n in grid if n <= rows), default=grid[0])
        high = min((n for n in grid if n >= rows), default=grid[-1])
        at_low, at_high = (self.priced(parts, n, footprint) for n in (low, high))
        if low == high:
            return at_low * max(1.0, rows / low)
        if at_low <= 0 or at_high <= 0:
            return at_low + (at_high - at_low) * (rows - low) / (high - low)
        share = math.log(rows / low) / math.log(high / low)
        return math.exp((1 - share) * math.log(at_low) + share * math.log(at_high))

    def priced(self, parts: Terms, n: int, footprint: int) -> float:
        """Seconds of terms at a number of rows that was timed.   parts: of one op, or summed over several alike."""
        prices = self.prices[n]
        total = 0.0
        for name, quantity in parts.items():
            at = visible_keys(parts) if by_context(name, n) else float(footprint)
            total += quantity * _at(prices.get(name, ()), at)
        return total


def _at(levels: Sequence[tuple[float, float]], at: float) -> float:
    """A price between levels: linear in the level's logarithm, constant beyond the ends."""
    if not levels:
        return 0.0
    for (low, a), (high, b) in pairwise(levels):
        if at <= low:
            return a
        if at < high:
            return a + (b - a) * math.log(at / low) / math.log(high / low)
    return levels[-1][1]
