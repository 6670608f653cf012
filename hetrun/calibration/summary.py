"""What a calibration found, in figures for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from hetrun.calibration.table import Calibration, Observation
from hetrun.tensor import TENSOR_TYPES

DISTURBED_SHARE = 0.05
DISTURBED_CHANGE = 1.12


def summary(calibration: Calibration) -> dict[str, Any]:
    """The calibration without its prices: an object of `hetrun calibrate --json`."""
    groups = list(dict.fromkeys(o.group for o in calibration.observations))
    return {
        "device": calibration.device,
        "description": calibration.description,
        "fingerprint": calibration.fingerprint,
        "date": calibration.date,
        "basis": calibration.basis,
        "launch_s": calibration.launch_s,
        "links": {name: vars(times) for name, times in calibration.links.items()},
        "alike": dict(calibration.alike),
        "others": calibration.others,
        "disturbed": disturbed(calibration),
        "groups": [_group(calibration, name) for name in groups],
        "checks": [
            {**vars(c), "error_before": c.before_s / c.measured_s - 1, "error_after": c.after_s / c.measured_s - 1}
            for c in calibration.checks
        ],
    }


def disturbed(calibration: Calibration) -> str | None:
    """What says that something else ran while this was measured, or None."""
    if calibration.others is not None and calibration.others > DISTURBED_SHARE:
        return f"other programs took {100 * calibration.others:.0f}% of the processor"
    seen = [(o.probe_s, calibration.speeds.of(o.reading)) for o in calibration.observations]
    changes = [max(probe_s / usual_s, usual_s / probe_s) for probe_s, usual_s in seen if usual_s and probe_s]
    if changes and statistics.median(changes) > DISTURBED_CHANGE:
        return f"its speed changed by a factor of {statistics.median(changes):.1f} meanwhile"
    return None


def _group(calibration: Calibration, name: str) -> dict[str, Any]:
    observations = [o for o in calibration.observations if o.group == name]
    speeds = calibration.speeds
    after = [(calibration.priced(o.terms, o.n_tokens, o.footprint), o.at_speeds(speeds)) for o in observations]
    return {
        "group": name,
        "programs": len(observations),
        "error_before": _median_error([(o.estimate_s, o.seconds) for o in observations]),
        "error_after": _median_error(after),
        **(_rates(observations) if name.startswith("matmul ") else {}),
    }


def _median_error(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Median of |predicted / measured - 1|."""
    return statistics.median(abs(a / b - 1) for a, b in pairs) if pairs else None


def _rates(observations: Sequence[Observation]) -> dict[str, float]:
    """Of matmuls: bytes a second with one token and the most weights, operations a second with the most tokens."""
    matmuls = [(o, w) for o in observations if (w := _weight_bytes(o))]
    if not matmuls:
        return {}
    decode = max((o.footprint, w / o.seconds) for o, w in matmuls if o.n_tokens == min(m.n_tokens for m, _ in matmuls))
    prefill = max((o.n_tokens, _flops(o) / o.seconds) for o, _ in matmuls)
    return {"bytes_per_s": decode[1], "flops_per_s": prefill[1]}


def _weight_bytes(observation: Observation) -> float:
    return sum(n for name, n in observation.terms.items() if name.endswith("/bytes"))


def _flops(observation: Observation) -> float:
    total = 0.0
    for name, n_bytes in observation.terms.items():
        if name.endswith("/bytes"):
            kind = TENSOR_TYPES[name.split("/")[1]]
            total += 2 * observation.n_tokens * n_bytes / kind.block_bytes * kind.block_size
    return total
