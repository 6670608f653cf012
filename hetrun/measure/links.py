"""Times copies into and out of a device's memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from hetrun.calibration.table import LinkTimes
from hetrun.device import Buffer, Device, DeviceInfo
from hetrun.errors import AllocationError

_SIZES = (4 << 10, 256 << 10, 16 << 20)


def measure_links(
    device: Device, info: DeviceInfo, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, LinkTimes]:
    """Latency and bytes a second of both ways to the first memory, by its name; nothing where the host addresses it."""
    space = info.spaces[0]
    if space.upload is None or space.download is None:
        return {}
    times: dict[str, list[tuple[int, float]]] = {"up": [], "down": []}
    for nbytes in _SIZES:
        try:
            buffer = device.alloc(nbytes)
        except AllocationError:
            break
        for way, samples in _time_both(buffer, nbytes, rounds, clock).items():
            times[way].append((nbytes, statistics.median(samples)))
        buffer.close()
    if len(times["up"]) < 2:
        return {}
    return {space.name: LinkTimes(_line(times["up"]), _line(times["down"]))}


def _time_both(buffer: Buffer, nbytes: int, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    data = memoryview(bytearray(nbytes))
    buffer.write(data)  # a first touch of the memory is no copy's business
    samples: dict[str, list[float]] = {"up": [], "down": []}
    for _ in range(max(rounds, 3)):
        started = clock()
        buffer.write(data)
        between = clock()
        buffer.read(data)
        samples["up"].append(between - started)
        samples["down"].append(clock() - between)
    return samples


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(latency in seconds, bytes a second) through the smallest copy and the largest."""
    (small, small_s), (large, large_s) = points[0], points[-1]
    rate = (large - small) / max(large_s - small_s, 1e-12)
    return max(0.0, small_s - small / rate), rate
