"""A segment as launches: matmuls in waves, each of which reads only what earlier ones wrote, and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetrun.device import Segment
from hetrun.errors import DeviceError
from hetrun.ops import GatedActivation, MatMul, Op, Value
from hetrun.tensor import Weight
from hetrun_pynq_z1.definition import definition, super_blocks

SPACE, HOST = "ddr", "host"


@dataclass(frozen=True)
class Fused:
    """Two matmuls whose results meet in the engine as silu(gate) * up.

    block: of the codes that later matmuls of the same launch read, 32 or 256; 0 where floats go to memory.
    """

    gate: MatMul
    up: MatMul
    op: GatedActivation
    block: int

    def mode(self, matmul: MatMul) -> str:
        """What becomes of the results of gate or up, by the names of HETRUN_PYNQ_MODE_*."""
        if matmul is self.gate:
            return "GATE"
        return f"CODES_{self.block}" if self.block else "ACTIVATE"


@dataclass(frozen=True)
class Launches:
    """waves: the matmuls of each launch in the order of its ring; a gate stands right before its up.   fused: by the
    names of gate and up.   hosted: activations that the host works out before the launch of that number.
    """

    waves: tuple[tuple[MatMul, ...], ...]
    fused: Mapping[str, Fused]
    hosted: tuple[tuple[int, GatedActivation], ...]

    @property
    def matmuls(self) -> tuple[MatMul, ...]:
        return tuple(op for wave in self.waves for op in wave)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What matmuls read."""
        return tuple({op.x.name: op.x for op in self.matmuls}.values())

    @property
    def coded(self) -> frozenset[str]:
        """Values that the engine writes as codes, for itself alone."""
        return frozenset(f.op.name for f in self.fused.values() if f.block)

    def written(self, matmul: MatMul) -> Value | None:
        """The floats that a matmul leaves in memory."""
        fused = self.fused.get(matmul.name)
        if fused is None:
            return matmul.output
        return fused.op.output if matmul is fused.up and not fused.block else None

    def mode(self, matmul: MatMul) -> str:
        """What becomes of a matmul's results, by the names of HETRUN_PYNQ_MODE_*."""
        fused = self.fused.get(matmul.name)
        return fused.mode(matmul) if fused else "WRITE"

    @property
    def stored(self) -> tuple[Value, ...]:
        """Values that are floats in memory."""
        values = [v for v in self.inputs if v.name not in self.coded]
        values += [v for op in self.matmuls if (v := self.written(op))]
        values += [v for _, op in self.hosted for v in (op.gate, op.up, op.output)]
        return tuple({v.name: v for v in values}.values())


@dataclass(frozen=True)
class PynqProgram:
    """A segment and its launches."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]
    launches: Launches


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
    if isinstance(op, GatedActivation):
        return None if op.function == "silu" else f"the engine's activation is silu, it has no {op.function}"
    if not isinstance(op, MatMul):
        return f"the engine has matmuls and the activation between them, no {op.kind}"
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
    for op in segment.ops:
        if reason := refusal(op):
            raise DeviceError(f"{op.name}: {reason}")
    matmuls = [op for op in segment.ops if isinstance(op, MatMul)]
    resident = {(space, op.weight.name): stream_bytes(op.weight) for op in matmuls}
    return PynqProgram(segment, resident, launches_of(segment))


def launches_of(segment: Segment, fuse: bool = True) -> Launches:
    """The launches of a segment of accepted ops.   fuse: False where results of matmuls cannot meet in the engine."""
    pairs = {f.op.name: f for f in _pairs(segment)} if fuse else {}
    fused = {name: f for f in pairs.values() for name in (f.gate.name, f.up.name)}
    ready: dict[str, int] = {}  # the first wave that can read a value
    waves: list[list[MatMul]] = []
    hosted: list[tuple[int, GatedActivation]] = []

    def launch(*matmuls: MatMul) -> int:
        wave = max(ready.get(op.x.name, 0) for op in matmuls)
        waves.extend([] for _ in range(wave + 1 - len(waves)))
        waves[wave] += matmuls
        return wave

    for op in segment.ops:
        if isinstance(op, MatMul):
            if op.name not in fused:
                ready[op.name] = launch(op) + 1
        elif isinstance(op, GatedActivation):
            pair = pairs.get(op.name)
            if pair:
                ready[op.name] = launch(pair.gate, pair.up) + (0 if pair.block else 1)
            else:
                ready[op.name] = max(ready.get(op.gate.name, 0), ready.get(op.up.name, 0))
                hosted.append((ready[op.name], op))
    hosted.sort(key=lambda at: at[0])
    return Launches(tuple(map(tuple, waves)), fused, tuple(hosted))


def _pairs(segment: Segment) -> list[Fused]:
    """The activations whose gate and up are matmuls of the segment that nothing else reads."""
    made = {op.name: op for op in segment.ops}
    outputs = {value.name for value in segment.outputs}
    readers: dict[str, list[Op]] = {}
    for op in segment.ops:
        for name in {value.name for value in op.inputs}:
            readers.setdefault(name, []).append(op)

    def alone(name: str) -> MatMul | None:
        op = made.get(name)
        return op if isinstance(op, MatMul) and len(readers[name]) == 1 and name not in outputs else None

    found = []
    for op in segment.ops:
        if not isinstance(op, GatedActivation) or op.gate.name == op.up.name:
            continue
        gate, up = alone(op.gate.name), alone(op.up.name)
        if gate and up:
            codes = op.name not in outputs
            found.append(Fused(gate, up, op, _block(readers.get(op.name, [])) if codes else 0))
    return found


def _block(readers: Sequence[Op]) -> int:
    """The block of codes that all readers take, or 0."""
    blocks = {r.weight.type.block_size if isinstance(r, MatMul) else 0 for r in readers}
    return blocks.pop() if len(blocks) == 1 else 0
