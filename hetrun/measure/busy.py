"""How much of the processor other programs take while something is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

DISTURBED = 0.05
"""Share of the processor beyond which times are not to be trusted: threads that wait for each other are slowed by
more than the share."""

_WINDOW_S = 0.03
_CACHE_BYTES = 4 << 20  # a core's own caches, and what it has of those that all share
_TIMES = 60


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds summed over all processors since the system started: busy ones, all, and this process's own."""

    busy_s: float
    all_s: float
    own_s: float

    @classmethod
    def now(cls) -> ProcessorTime | None:
        """None where the system does not say."""
        try:
            with open("/proc/stat", "rb") as file:
                ticks = [int(field) for field in file.readline().split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        idle = ticks[3] + ticks[4]
        unit = 100.0  # USER_HZ, which is 100 on every Linux
        return cls((sum(ticks) - idle) / unit, sum(ticks) / unit, time.process_time())


def others_since(start: ProcessorTime | None) -> float | None:
    """Share of the processor that other programs took since `start`, or None where that is not known."""
    now = ProcessorTime.now()
    if start is None or now is None or now.all_s <= start.all_s:
        return None
    busy = now.busy_s - start.busy_s - (now.own_s - start.own_s)
    return min(1.0, max(0.0, busy / (now.all_s - start.all_s)))


def after_others(measure: Callable[[], float]) -> list[float]:
    """What is measured where something else has just used the caches, as one device does between the runs of another.
    Python's own code is then not in them, either, which makes a call several times as long.
    """
    source, target = bytearray(_CACHE_BYTES), bytearray(_CACHE_BYTES)
    found = []
    for _ in range(_TIMES):
        target[:] = source
        found.append(measure())
    return found


def wait_for_quiet(longest_s: float = 0.5) -> None:
    """Waits until others leave the processor alone, but not for ever."""
    deadline = time.monotonic() + longest_s
    while time.monotonic() < deadline:
        before = ProcessorTime.now()
        time.sleep(_WINDOW_S)
        if (others_since(before) or 0.0) <= DISTURBED:
            return
