"""Where values live: phases between barriers, and memory shared by values that are never alive together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hetrun_cpu.lower import step_reads, step_writes
from hetrun_cpu.steps import Flag, Kind, Step

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """First and last phase in which a value is written or read; both included."""

    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def with_barriers(steps: Iterable[Step]) -> tuple[list[Step], list[int]]:
    """The steps with a barrier wherever one reads what another thread may still be writing, and the phase of each.

    The scratch of a PREPARE is no such case: its matmuls wait by BARRIER_IF_SHARED.
    """
    result: list[Step] = []
    phases: list[int] = []
    phase = 0
    written: set[str] = set()
    read: set[str] = set()
    for step in steps:
        reads, writes = step_reads(step), step_writes(step)
        if step.kind is Kind.MATMUL:
            reads.discard(step.inputs[0] or "")
        if reads & written or writes & (written | read):
            step = replace(step, flags=step.flags | Flag.BARRIER)
            phase += 1
            written, read = set(), set()
        written |= writes
        read |= reads
        result.append(step)
        phases.append(phase)
    return result, phases


def lifetimes(steps: Sequence[Step], phases: Sequence[int]) -> dict[str, Lifetime]:
    """Lifetimes of all values, states and rope tables that the steps name."""
    result: dict[str, Lifetime] = {}
    for step, phase in zip(steps, phases, strict=True):
        for name in sorted(step_reads(step) | step_writes(step)):
            first = result[name].first if name in result else phase
            result[name] = Lifetime(first, phase)
    return result


def place(sizes: Mapping[str, int], lives: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """Byte offsets of the values in one arena, and its size. No two values alive in one phase share a byte.

    First fit in order of birth: a few percent above the peak for transformers, in time linear in the number of values.
    """
    offsets: dict[str, int] = {}
    alive: list[tuple[int, int, int]] = []  # offset, end, last phase
    total = 0
    for name in sorted(sizes, key=lambda n: (lives[n].first, -sizes[n], n)):
        size = -(-max(1, sizes[name]) // ALIGNMENT) * ALIGNMENT
        alive = [a for a in alive if a[2] >= lives[name].first]
        offset = 0
        for start, end, _ in alive:
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[name] = offset
        alive.append((offset, offset + size, lives[name].last))
        alive.sort()
        total = max(total, offset + size)
    return offsets, total
