"""What the operating system knows of this process."""

from __future__ import annotations

import os
import sys
import time

_IMPORTED = time.monotonic()


def age_s() -> float:
    """Seconds since the process was started, to 0.01 s on Linux; elsewhere since hetrun was imported."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # Field 22, counted behind the program's name, which may hold anything but ends with the last bracket.
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return time.monotonic() - _IMPORTED
    return max(age, time.monotonic() - _IMPORTED)


def peak_rss_bytes() -> int | None:
    """The most memory that was resident at once; None where the system does not say.

    On Linux not `getrusage`, whose figure begins with that of the process that started this one.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            line = next(line for line in file if line.startswith(b"VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
