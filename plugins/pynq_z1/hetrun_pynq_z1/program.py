"""A segment as launches: matmuls in waves, each of which reads only what earlier ones wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hetrun.device import Segment
from hetrun.errors import DeviceError
from hetrun.ops import MatMul, Op, Value
from hetrun.tensor import Weight
from hetrun_pynq_z1.definition import definition, super_blocks

SPACE, HOST = "ddr", "host"


@dataclass(frozen=True)
class PynqProgram:
    """waves: the matmuls of each launch, in order.   inputs: values that matmuls read."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]
    waves: tuple[tuple[MatMul, ...], ...]
    inputs: tuple[Value, ...]


def stream_bytes(weight: Weight) -> int:
    """Bytes of a weight as the engine reads it: rows padded to 8, columns to 64."""
    rows, columns = weight.shape
    tile_rows = definition().numbers["TILE_ROWS"]
    return weight.type.row_bytes(padded_columns(weight)) * (-(-rows // tile_rows) * tile_rows) if columns else 0


def padded_columns(weight: Weight) -> int:
    chunk = 256 if super_blocks(weight.type.name) else 64
    return -(-weight.shape[1] // chunk) * chunk


def refusal(op: Op) -> str | None:
    """Why the engine cannot run an op, or None."""
    if not isinstance(op, MatMul):
        return f"the engine multiplies matrices only, it has no {op.kind}"
    name, columns = op.weight.type.name, op.weight.shape[1]
    known = definition()
    if name not in known.formats:
        return f"{op.weight.name} has type {op.weight.type}; the engine reads {', '.join(known.formats)}"
    if columns % op.weight.type.block_size:
        return f"{op.weight.name} has rows of {columns}, no multiple of {name}'s block of {op.weight.type.block_size}"
    most = known.numbers["MAX_COLUMNS"]
    if padded_columns(op.weight) > most:
        return f"{op.weight.name} has rows of {columns}; the engine's block RAM holds activations of {most}"
    return None


def compile_segment(segment: Segment, space: str) -> PynqProgram:
    """DeviceError for an op that the engine refuses."""
    wave_of: dict[str, int] = {}
    waves: list[list[MatMul]] = []
    for op in segment.ops:
        reason = refusal(op)
        if reason or not isinstance(op, MatMul):
            raise DeviceError(f"{op.name}: {reason}")
        wave = wave_of.get(op.x.name, -1) + 1
        wave_of[op.name] = wave
        if wave == len(waves):
            waves.append([])
        waves[wave].append(op)
    inputs = {op.x.name: op.x for wave in waves for op in wave}
    resident = {(space, op.weight.name): stream_bytes(op.weight) for wave in waves for op in wave}
    return PynqProgram(segment, resident, tuple(map(tuple, waves)), tuple(inputs.values()))
