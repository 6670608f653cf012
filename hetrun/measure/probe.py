"""A probe of the machine's speed: one program, run beside every sample. Another machine on the same host, a neighbour
on the same core or a lower clock may be seen nowhere else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

DISTURBED = math.log(1.12)
"""A probe that takes this much more or less time than usual, in logarithms, says that the machine is not as usual."""

_WARM_UP, _RUNS = 2, 3  # threads may sleep, and others have filled the caches: that is over after the first runs
_REMEMBERED = 400


class Probe:
    """run: runs the program once, and returns its seconds."""

    def __init__(self, run: Callable[[], float]) -> None:
        self._run = run
        self._times: list[float] = []

    def __call__(self) -> float:
        """Seconds of the program now."""
        self._times.append(statistics.median([self._run() for _ in range(_WARM_UP + _RUNS)][_WARM_UP:]))
        return self._times[-1]

    def unusual(self, probe_s: float) -> float:
        """How far that is from what it mostly takes: the logarithm of the ratio, without its sign."""
        if not self._times or probe_s <= 0:
            return 0.0
        return abs(math.log(probe_s / max(statistics.median(self._times[-_REMEMBERED:]), 1e-12)))
