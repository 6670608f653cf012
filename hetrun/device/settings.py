"""What a driver's probe is given: its own table of a system file, and what all drivers may be told."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from hetrun.device.info import Unavailable
from hetrun.errors import ConfigError

COMMON_SETTINGS = frozenset(("threads", "modelled"))
"""Settings that every driver's probe may be given beside those of its own table, and ignores if it has no use for them.
threads: int.   modelled: False where only devices that run are wanted."""


def check_settings(driver: str, config: Mapping[str, object], known: Collection[str]) -> None:
    """ConfigError for a setting that is neither among `known` nor common."""
    unknown = sorted(config.keys() - set(known) - COMMON_SETTINGS)
    if unknown:
        raise ConfigError(f"driver {driver}: unknown setting {unknown[0]!r}", remedy=f"it takes {', '.join(known)}")


def host_threads(config: Mapping[str, object], most: int) -> int:
    """Threads of this machine that an emulation may use: as many as it was given, else a core each; `most` at most."""
    threads = config.get("threads")
    if not isinstance(threads, int) or threads_problem(config):
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(threads, most)


def threads_problem(config: Mapping[str, object]) -> Unavailable | None:
    """What is wrong with the threads that an emulation was given, or None."""
    threads = config.get("threads")
    if threads is None or (isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1):
        return None
    return Unavailable(f"{threads!r} threads", "choose a whole number of threads, from 1 on")
