"""What this machine offers: processors that this process may use, and memory."""

from __future__ import annotations

import os
from contextlib import suppress
from math import ceil
from pathlib import Path

MAX_THREADS = 1024
"""As many as the library takes (kMaxThreads in kernels/cpu/abi.cpp)."""

_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> set[int]:
    """Hardware threads within the affinity mask, by their numbers."""
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Physical cores within the affinity mask, bounded by the cgroup's quota; at least 1."""
    cores = {_core(cpu) for cpu in usable_cpus()}
    quota = _cpu_quota()
    return max(1, min(len(cores), ceil(quota)) if quota else len(cores))


def _core(cpu: int) -> str:
    """Hardware threads of one core list the same siblings; where the system does not say, each is a core."""
    with suppress(OSError):
        return (_CPU / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    return str(cpu)


def _cgroup_folders() -> list[Path]:
    """Folders of this process's cgroup (version 2) and of its parents, which bound it too."""
    folders = [_CGROUP]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                folder = _CGROUP
                for part in line[3:].strip("/").split("/"):
                    folder = folder / part
                    folders.append(folder)
    return folders


def _cpu_quota() -> float | None:
    """Cores that the cgroup grants in time, or None where it sets no bound."""
    quotas: list[float] = []
    for folder in _cgroup_folders():
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
    with suppress(OSError, ValueError):
        microseconds = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        if microseconds > 0:
            quotas.append(microseconds / int((_CGROUP / "cpu/cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def memory_bytes() -> int:
    """Memory of the machine, bounded by the cgroup's limit."""
    sizes: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                sizes.append(int(line.split()[1]) * 1024)
    if not sizes:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder in _cgroup_folders():
        with suppress(OSError, ValueError):
            sizes.append(int((folder / "memory.max").read_text()))
    return min(sizes)


def processor_name() -> str:
    """The processor's name as the system gives it, or the name of its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return os.uname().machine
