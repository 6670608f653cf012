"""A segment compiled for the cpu device: the step table and the layout of its scratch memory, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from hetrun.device import Segment, residents
from hetrun.errors import DeviceError
from hetrun.ops import Attention, KvSpec, Op
from hetrun.tensor import Weight
from hetrun_cpu.arena import lifetimes, place, with_barriers
from hetrun_cpu.lower import Lowered, lower, weights_of
from hetrun_cpu.steps import PANEL_TOKENS, Kind, Step, as_stored

SPACE = "host"
_NO_POSITION = (1 << 31) - 1


@dataclass(frozen=True)
class PlannedValue:
    """width: floats a row.   offset: place in the arena in bytes, or None for a value that the bindings hold."""

    name: str
    width: int
    outputs: bool
    nbytes: int
    offset: int | None


@dataclass(frozen=True)
class PlannedRope:
    """first: index of its first frequency.   offset: place of its table in the arena, in bytes.

    max_position: positions beyond it count as it.
    """

    first: int
    n_pairs: int
    magnitude: float
    offset: int
    max_position: int


@dataclass(frozen=True)
class CpuProgram:
    """steps: with barriers, in order.   arena_bytes: address space; pages are taken when a step first touches them."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]
    steps: tuple[Step, ...]
    values: tuple[PlannedValue, ...]
    weights: tuple[Weight, ...]
    states: tuple[KvSpec, ...]
    ropes: tuple[PlannedRope, ...]
    frequencies: tuple[float, ...]
    arena_bytes: int

    @property
    def multiplied(self) -> tuple[Weight, ...]:
        """The weights that matmuls read."""
        found = {w.name: w for step in self.steps if step.kind is Kind.MATMUL for w in step.weights if w is not None}
        return tuple(found.values())


def compile_segment(segment: Segment) -> CpuProgram:
    """Pure and deterministic. DeviceError where the segment's values do not hang together."""
    lowered = lower(segment)
    _check_connected(segment, lowered)
    steps, phases = with_barriers(lowered.steps)
    lives = lifetimes(steps, phases)

    bound = {v.name for v in (*segment.inputs, *segment.outputs)}
    scratch = {s.out for s in steps if s.kind is Kind.PREPARE}
    nbytes = {
        name: 4 * width * _memory_rows(segment.max_rows(rows), name in scratch)
        for name, (width, rows) in lowered.widths.items()
        if name in lives or name in bound
    }
    sizes = {name: size for name, size in nbytes.items() if name not in bound}
    for i, table in enumerate(lowered.tables):
        sizes[f"rope:{i}"] = 8 * len(table.frequencies) * segment.max_tokens
    offsets, arena_bytes = place(sizes, lives)

    values = tuple(
        PlannedValue(name, lowered.widths[name][0], lowered.widths[name][1] == "outputs", size, offsets.get(name))
        for name, size in nbytes.items()
    )
    ropes, frequencies = _ropes(lowered, offsets)
    resident: dict[tuple[str, str], int] = {}
    for op in segment.ops:
        resident.update(residents(as_run(op), SPACE))
    resident[SPACE, f"{segment.name}#arena"] = arena_bytes
    states = {op.kv.name: op.kv for op in segment.ops if isinstance(op, Attention)}
    return CpuProgram(
        segment,
        resident,
        tuple(steps),
        values,
        tuple(weights_of(steps).values()),
        tuple(states.values()),
        ropes,
        frequencies,
        arena_bytes,
    )


def as_run(op: Op) -> Op:
    """The op with its weights in the types that memory holds them in."""
    if all(as_stored(w) is w for w in op.weights):
        return op
    values = {f.name: getattr(op, f.name) for f in fields(op)}
    return replace(op, **{name: as_stored(v) for name, v in values.items() if isinstance(v, Weight)})


def _memory_rows(rows: int, scratch: bool) -> int:
    return -(-rows // PANEL_TOKENS) * PANEL_TOKENS if scratch else rows


def _check_connected(segment: Segment, lowered: Lowered) -> None:
    made = {v.name for v in segment.inputs}
    for op in segment.ops:
        for value in op.inputs:
            if value.name not in made:
                raise DeviceError(
                    f"segment {segment.name}: {op.name} reads {value.name}, which nothing before it makes"
                )
        made.add(op.name)
    for value in segment.outputs:
        if value.name not in lowered.widths:
            raise DeviceError(f"segment {segment.name}: no op makes its output {value.name}")


def _ropes(lowered: Lowered, offsets: Mapping[str, int]) -> tuple[tuple[PlannedRope, ...], tuple[float, ...]]:
    ropes: list[PlannedRope] = []
    frequencies: list[float] = []
    for i, table in enumerate(lowered.tables):
        most = _NO_POSITION if table.max_position is None else table.max_position
        ropes.append(PlannedRope(len(frequencies), len(table.frequencies), table.magnitude, offsets[f"rope:{i}"], most))
        frequencies += table.frequencies
    return tuple(ropes), tuple(frequencies)
