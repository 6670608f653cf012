"""Whether weights and caches fit the memories at all, whatever time that costs: packing, op by op.

A way to pack so far is what it uses of each memory that could overflow; one that uses no less of any is dropped. With
one such memory that leaves a single way, with a few it is exact on small graphs, and a search along a beam on others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetrun.device import Cost
from hetrun.plan.cost import CostTable
from hetrun.plan.plan import PHASES, Phase

_BEAM = 400
_RIVALS = 24
_MOST_CHOICES = 256  # ways to place the ops that share a block


@dataclass(frozen=True)
class Packing:
    """allowed: the one device of each op that keeps something in memory; the others are as they were.

    used: bytes by space.   exact: no packing has fewer bytes above the limits.
    """

    allowed: Sequence[Sequence[str]]
    used: Mapping[str, int]
    exact: bool


# What a group of ops uses of each space, for one choice of their devices.
_Use = tuple[tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True)
class _Way:
    """used: bytes by space.   before, devices: the choices that led here."""

    used: tuple[int, ...]
    before: _Way | None = None
    devices: tuple[str, ...] = ()


def pack(tables: Mapping[Phase, CostTable], allowed: Sequence[Sequence[str]], limits: Mapping[str, float]) -> Packing:
    """The packing with the fewest bytes above the limits. Both phases are alike: what one alone needs never fits
    better for being kept twice."""
    spaces = sorted({s for t in tables.values() for answers in t.answers for a in answers.values() for s in _spaces(a)})
    groups = _groups(tables, allowed)
    choices = [_choices(tables, allowed, group, spaces) for group in groups]
    exact = all(complete for _, complete in choices)
    uses = [use for use, _ in choices]
    tight = [s for s in range(len(spaces)) if sum(max(u[s] for u, _ in use) for use in uses) > limits.get(spaces[s], 0)]

    ways = [_Way((0,) * len(spaces))]
    order = sorted(range(len(groups)), key=lambda g: -min(sum(u) for u, _ in uses[g]))
    for group in order:
        ways = [
            _Way(tuple(a + b for a, b in zip(way.used, used, strict=True)), way, devices)
            for way in ways
            for used, devices in uses[group]
        ]
        ways = _undominated(ways, tight)
        if len(ways) > _BEAM:
            exact = False
            ways = [ways[i * (len(ways) - 1) // (_BEAM - 1)] for i in range(_BEAM)]

    def overflow(way: _Way) -> float:
        return sum(max(0.0, n - limits.get(space, 0)) for space, n in zip(spaces, way.used, strict=True))

    way: _Way | None = min(ways, key=overflow)
    assert way is not None
    used = {space: n for space, n in zip(spaces, way.used, strict=True) if n}
    result = list(allowed)
    for group in reversed(order):
        assert way is not None
        for op, device in zip(groups[group], way.devices, strict=True):
            result[op] = (device,)
        way = way.before
    return Packing(result, used, exact)


def _spaces(answer: object) -> set[str]:
    return {space for space, _ in answer.resident} if isinstance(answer, Cost) else set()


def _blocks(tables: Mapping[Phase, CostTable], op: int, device: str) -> dict[tuple[str, str, str], int]:
    """What an op keeps on a device, in either phase."""
    blocks: dict[tuple[str, str, str], int] = {}
    for phase in PHASES:
        blocks.update({(device, s, n): size for (s, n), size in tables[phase].cost(op, device).resident.items()})
    return blocks


def _groups(tables: Mapping[Phase, CostTable], allowed: Sequence[Sequence[str]]) -> list[list[int]]:
    """Ops that keep something, those that share a block together."""
    group_of: dict[tuple[str, str, str], list[int]] = {}
    groups: list[list[int]] = []
    for op, devices in enumerate(allowed):
        blocks = [block for device in devices for block in _blocks(tables, op, device)]
        if not blocks:
            continue
        group = [op]
        for other in [g for g in groups if any(group_of.get(b) is g for b in blocks)]:
            group = other + group
            groups.remove(other)
        groups.append(group)
        for member in group:
            for device in allowed[member]:
                for block in _blocks(tables, member, device):
                    group_of[block] = group
    return groups


def _choices(
    tables: Mapping[Phase, CostTable], allowed: Sequence[Sequence[str]], group: Sequence[int], spaces: Sequence[str]
) -> tuple[list[_Use], bool]:
    """What each choice of devices uses, and whether these are all choices that matter."""
    n_choices = 1
    for op in group:
        n_choices *= len(allowed[op])
    complete = n_choices <= _MOST_CHOICES
    if complete:
        chosen: list[tuple[str, ...]] = list(itertools.product(*(allowed[op] for op in group)))
    else:
        mains = dict.fromkeys(device for op in group for device in allowed[op])
        chosen = [tuple(m if m in allowed[op] else allowed[op][0] for op in group) for m in mains]
    best: dict[tuple[int, ...], tuple[str, ...]] = {}
    for devices in chosen:
        blocks: dict[tuple[str, str, str], int] = {}
        for op, device in zip(group, devices, strict=True):
            blocks.update(_blocks(tables, op, device))
        used = tuple(sum(n for (_, s, _), n in blocks.items() if s == space) for space in spaces)
        best.setdefault(used, devices)
    return list(best.items()), complete


def _undominated(ways: Sequence[_Way], tight: Sequence[int]) -> list[_Way]:
    """Those of which no other uses as little of every tight space."""
    unique: dict[tuple[int, ...], _Way] = {}
    for way in ways:
        unique.setdefault(tuple(way.used[s] for s in tight), way)
    kept: list[tuple[tuple[int, ...], _Way]] = []
    for key, way in sorted(unique.items(), key=lambda item: item[0]):
        # In ascending order of the first space, only an earlier one can dominate; of two spaces, the last kept does if
        # any does. Of more, not all are looked at: what is kept in vain costs time, not truth.
        rivals = kept[-1:] if len(tight) <= 2 else kept[-_RIVALS:]
        if not any(all(a <= b for a, b in zip(rival, key, strict=True)) for rival, _ in rivals):
            kept.append((key, way))
    return [way for _, way in kept]
