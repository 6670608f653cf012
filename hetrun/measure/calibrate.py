"""Calibrates a device: times its programs group by group, finds prices, and keeps what is known after each group."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hetrun import __version__
from hetrun.calibration.store import fingerprint
from hetrun.calibration.table import Calibration
from hetrun.device import Cost, Unsupported, Workload
from hetrun.errors import DeviceError
from hetrun.measure.fit import fit, ratios, usual_speeds
from hetrun.measure.links import measure_links
from hetrun.measure.patterns import BASE_TYPES, Accepts, Group, Pattern, groups
from hetrun.measure.timing import Bench, Effort
from hetrun.measure.whole import launch_seconds, runs_whole, whole_checks
from hetrun.ops import Add, MatMul, Op, RmsNorm, Scale, Value
from hetrun.plugins import FoundDevice
from hetrun.tensor import TENSOR_TYPES, Weight

COMMON_TYPES = ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "Q4_1", "Q5_K", "Q3_K", "Q2_K", "Q5_0", "F16")
"""Tensor types of most files, the most common first."""

QUICK_TYPES = COMMON_TYPES[:4]

Progress = Callable[[str, int, int], None]
"""Called with what is measured next, its number from 1, and how many there are."""


@dataclass(frozen=True)
class Wanted:
    """types: of weights.   kv_formats: of caches. What the device refuses is left out."""

    types: Sequence[str] = COMMON_TYPES
    kv_formats: Sequence[str] = ("f16",)


def calibrate(
    found: FoundDevice,
    wanted: Wanted,
    effort: Effort,
    before: Calibration | None,
    keep: Callable[[Calibration], None],
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measures a device that is here.

    found: without a calibration.   before: an earlier one, whose groups stay where they are not measured again.
    keep: gets all that is known after every group, so that nothing measured is lost where this is interrupted.
    DeviceError where there is nothing to measure on the device, or it fails.
    """
    check_measurable(found)
    accepts = accepts_of(found)
    alike = alike_types(found, accepts)
    to_do = groups([t for t in wanted.types if t not in alike], wanted.kv_formats, accepts)
    if not to_do:
        raise DeviceError(
            f"{found.info.id} takes no op that can be timed", remedy='"hetrun devices" says what it computes'
        )
    base = next((t for t in BASE_TYPES if runs_whole(found, t)), None)
    n_parts = len(to_do) + 1 + (base is not None)
    result = replace(before, checks=(), launch_s=None) if before else _empty(found)
    result = replace(result, alike={**result.alike, **alike})
    with Bench(found, effort, clock) as bench:
        progress("launches and links", 1, n_parts)
        bench.set_probes(probe_of(to_do))
        run_s, cold_run_s = bench.launch(_small_op(accepts, found))
        links = measure_links(bench.device, found.info, effort.rounds, clock)
        result = replace(result, launch_s=cold_run_s, links=links)
        for number, group in enumerate(to_do, 2):
            progress(group.name, number, n_parts)
            new = bench.measure(group, run_s)
            kept = [o for o in result.observations if o.group != group.name]
            observations = (*kept, *new)
            result = replace(
                result,
                date=_now(),
                observations=observations,
                prices=fit(observations),
                ratios=ratios(observations),
                others=statistics.median(bench.others) if bench.others else None,
                speeds=usual_speeds(observations),
            )
            keep(result)
    if base is not None:
        progress("whole steps of a small model", n_parts, n_parts)
        result = replace(result, launch_s=launch_seconds(found, base, cold_run_s, clock))
        result = replace(result, checks=whole_checks(found, base, result, effort.rounds, clock))
        keep(result)
    return result


def alike_types(found: FoundDevice, accepts: Accepts) -> dict[str, str]:
    """Tensor types that need no timing, and one that stands for each: the device keeps both in one form, which is
    neither's own, and takes as long for both by its own estimate.
    """

    def kept(name: str) -> tuple[float, ...] | None:
        op = _matmul(name)
        answers = [found.driver.estimate(found.info, op, Workload(n, 0)) for n in (1, 64)]
        costs = [a for a in answers if isinstance(a, Cost)]
        nbytes = float(sum(sum(c.resident.values()) for c in costs[:1]))
        return None if nbytes in (0.0, op.weight.nbytes) else (nbytes, *(c.seconds for c in costs))

    base = next((t for t in BASE_TYPES if accepts(_matmul(t))), None)
    if base is None or (form := kept(base)) is None:
        return {}
    # Rows of whole blocks of one type are to be whole blocks of the other.
    whole = TENSOR_TYPES[base].block_size
    fits = [name for name, t in TENSOR_TYPES.items() if t.block_size % whole == 0 and t.block_size <= 256]
    return {t: base for t in fits if t != base and accepts(_matmul(t)) and kept(t) == form}


def _matmul(name: str) -> MatMul:
    return MatMul("sample", Value("x", 768), Weight("sample.weight", TENSOR_TYPES[name], (768, 768)))


def probe_of(to_do: Sequence[Group]) -> Pattern:
    """What shows how fast the machine is: the first matmul that there is, else whatever comes first."""
    patterns = [p for group in to_do for p in group.patterns]
    return next((p for p in patterns if p.name.startswith("matmul ")), patterns[0])


def check_measurable(found: FoundDevice) -> None:
    """DeviceError where measuring the device says nothing about it."""
    info = found.info
    if info.unavailable:
        raise DeviceError(f"{info.id}: {info.unavailable.reason}", remedy=info.unavailable.remedy)
    if info.backing != "hardware":
        raise DeviceError(
            f"{info.id} is {info.backing}: there is no hardware to measure", remedy="its times come from its own model"
        )


def accepts_of(found: FoundDevice) -> Accepts:
    """Whether the device takes an op."""

    def accepts(op: Op) -> bool:
        return not isinstance(found.driver.estimate(found.info, op, Workload(1, 0)), Unsupported)

    return accepts


def _small_op(accepts: Accepts, found: FoundDevice) -> Op:
    x, other = Value("x", 256), Value("other", 256)
    candidates: list[Op] = [
        Add("small", x, other),
        Scale("small", x, 0.5),
        RmsNorm("small", x, Weight("small.weight", TENSOR_TYPES["F32"], (256,)), 1e-5),
        *(MatMul("small", x, Weight("small.weight", TENSOR_TYPES[t], (256, 256))) for t in BASE_TYPES),
    ]
    small = next(filter(accepts, candidates), None)
    if small is None:
        raise DeviceError(
            f"{found.info.id} takes no op that can be timed", remedy='"hetrun devices" says what it computes'
        )
    return small


def _empty(found: FoundDevice) -> Calibration:
    return Calibration(
        device=found.info.id,
        fingerprint=fingerprint(found.driver, found.info),
        description=found.info.description,
        version=__version__,
        date=_now(),
        launch_s=None,
        prices={},
        ratios={},
        links={},
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
