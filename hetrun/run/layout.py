"""Which values of a step may share a buffer: those that never live at the same time, in any phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hetrun.device import Segment
from hetrun.ops import Value

Key = tuple[str, str]
"""A value's name and the memory in which it stands."""

Run = tuple[str, Segment]
"""A segment and the id of its device."""


@dataclass(frozen=True)
class Place:
    """A value in one memory.   lives: by phase, the numbers of the first and last segment while it is needed."""

    key: Key
    nbytes: int
    lives: Mapping[str, tuple[int, int]]


def waits(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Devices that must have finished before each segment starts, as a value that it reads was made there.

    Runs of one device keep their order, so a segment never waits for its own.
    """
    made_on = {op.name: device for device, segment in runs for op in segment.ops}
    finished: set[str] = set()
    result = []
    for device, segment in runs:
        sources = dict.fromkeys(made_on[v.name] for v in segment.inputs)
        awaited = tuple(s for s in sources if s != device and s not in finished)
        finished.update(awaited)
        finished.discard(device)
        result.append(awaited)
    return result


def lives(runs: Sequence[Run], domain: Callable[[Value, str], str], output: str) -> dict[Key, tuple[int, int]]:
    """When each value is needed in each memory.   domain: the memory in which a device sees a value.

    A device may still read after its run was started, so what it reads lives until somebody has waited for it. The
    graph's `output` lives on.
    """
    awaited = waits(runs)
    made_on = {op.name: device for device, segment in runs for op in segment.ops}

    def read_until(device: str, start: int) -> int:
        later = (i - 1 for i in range(start + 1, len(runs)) if device in awaited[i])
        return next(later, len(runs))

    result: dict[Key, tuple[int, int]] = {}

    def touch(key: Key, first: int, last: int) -> None:
        begin, end = result.get(key, (first, last))
        result[key] = (min(begin, first), max(end, last))

    for number, (device, segment) in enumerate(runs):
        for value in segment.inputs:
            touch((value.name, domain(value, device)), number, read_until(device, number))
            touch((value.name, domain(value, made_on[value.name])), number, number)
        for value in segment.outputs:
            end = len(runs) if value.name == output else read_until(device, number)
            touch((value.name, domain(value, device)), number, end)
    return result


def share(places: Sequence[Place]) -> dict[Key, tuple[int, int]]:
    """(number, bytes) of the buffer of each place: first fit, the largest first. A buffer stays in one memory."""
    buffers: list[tuple[str, int, list[Place]]] = []  # memory, bytes, who lives there
    chosen: dict[Key, int] = {}
    for place in sorted(places, key=lambda p: -p.nbytes):
        number = next(
            (
                i
                for i, (memory, _, others) in enumerate(buffers)
                if memory == place.key[1] and not any(_meet(place, other) for other in others)
            ),
            len(buffers),
        )
        if number == len(buffers):
            buffers.append((place.key[1], place.nbytes, []))
        buffers[number][2].append(place)
        chosen[place.key] = number
    return {key: (number, buffers[number][1]) for key, number in chosen.items()}


def _meet(a: Place, b: Place) -> bool:
    return any(
        a.lives[phase][0] <= b.lives[phase][1] and b.lives[phase][0] <= a.lives[phase][1]
        for phase in a.lives.keys() & b.lives.keys()
    )
