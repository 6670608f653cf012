"""Ops of a segment -> instructions.

- A value is quantised once for all the matrices that read it one after the other.
- A value that nothing within the segment reads goes to DDR, straight from a matmul.
- Inputs are loaded when they are first read.
"""

from __future__ import annotations

from hetrun.device import Segment
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    GatedActivation,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Scale,
    SelectRows,
    Value,
)
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.instruction import Instruction, Place, Rotation
from hetrun_alveo_u280.vector_memory import VectorMemory
from hetrun_alveo_u280.weights import format_of

NO_BOUND = 0xFFFFFFFF  # of positions


def lower(segment: Segment) -> tuple[tuple[Instruction, ...], tuple[Value, ...]]:
    """(instructions, values that wait in DDR between ops). Pure and deterministic, of ops that the engine takes."""
    return _Lowering(segment).run()


class _Lowering:
    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._kept = {v.name for v in segment.outputs}
        self._uses: dict[str, list[int]] = {}
        for i, op in enumerate(segment.ops):
            for value in op.inputs:
                self._uses.setdefault(value.name, []).append(i)
        floats = definition().numbers["VECTOR_FLOATS"]
        self._memory = VectorMemory(floats, self._uses, self._load, self._put_by)
        self._in_ddr = {v.name for v in segment.inputs}
        self._spilled: list[Value] = []
        self._quantised: str | None = None  # whose codes the activations are
        self._source = ""
        self._instructions: list[Instruction] = []

    def run(self) -> tuple[tuple[Instruction, ...], tuple[Value, ...]]:
        for i, op in enumerate(self._segment.ops):
            self._source = op.name
            # Of an attention that nothing reads, keys and values are still to be kept.
            if op.name in self._uses or op.name in self._kept or isinstance(op, Attention):
                self._lower(op, i)
            self._memory.release(i)
        self._source = ""
        self._emit("END")
        return tuple(self._instructions), tuple(self._spilled)

    def _lower(self, op: Op, number: int) -> None:
        if isinstance(op, MatMul):
            self._matmul(op, number)
        else:
            self._memory.bring(op.inputs, op.output, number)
            self._vector_op(op)
        if op.name in self._kept and op.name not in self._in_ddr:
            self._store(op.output)

    def _matmul(self, op: MatMul, number: int) -> None:
        read = op.name in self._uses
        if self._quantised != op.x.name:
            self._memory.bring([op.x], None, number)
            self._emit("QUANTIZE", op.x, a=self._at(op.x), n=op.x.width)
            self._quantised = op.x.name
        matrix = {"n_rows": op.weight.shape[0], "n_columns": op.weight.shape[1], "format": _format(op)}
        if read:
            self._memory.bring([], op.output, number)
            self._emit("MATMUL", op.output, hbm=op.weight.name, dst=self._at(op.output), **matrix)
        else:
            self._in_ddr.add(op.name)
            place = (Place.VALUE, op.name)
            self._emit("MATMUL", op.output, hbm=op.weight.name, ddr=place, stride=op.output.width, **matrix)

    def _vector_op(self, op: Op) -> None:
        at, dst = self._at, self._at(op.output)
        match op:
            case Embedding(weight=weight):
                rows, columns = weight.shape
                self._emit(
                    "EMBED", op.output, hbm=weight.name, dst=dst, n_rows=rows, n_columns=columns, format=_format(op)
                )
            case RmsNorm(x=x, weight=weight, eps=eps):
                vector, group = (Place.VECTOR, weight.name), weight.shape[0]
                self._emit("NORM", op.output, ddr=vector, a=at(x), dst=dst, n=x.width, group=group, f0=eps)
            case Bias(x=x, weight=weight):
                self._emit("BIAS", op.output, ddr=(Place.VECTOR, weight.name), a=at(x), dst=dst, n=x.width)
            case Add(a=a, b=b):
                self._emit("ADD", op.output, a=at(a), b=at(b), dst=dst, n=a.width)
            case Scale(x=x, factor=factor):
                self._emit("SCALE", op.output, a=at(x), dst=dst, n=x.width, f0=factor)
            case GatedActivation(gate=gate, up=up):
                self._emit("GATE", op.output, a=at(gate), b=at(up), dst=dst, n=gate.width)
            case SelectRows(x=x):
                self._emit("SELECT", op.output, a=at(x), dst=dst, n=x.width)
            case Rope():
                self._rope(op)
            case Attention():
                self._attend(op)
            case _:
                raise AssertionError(f"{op.name}: no instruction for {op.kind}")

    def _rope(self, op: Rope) -> None:
        self._emit(
            "ROPE",
            op.output,
            ddr=(Place.ROTATION, Rotation(op.frequencies, op.magnitude)),
            a=self._at(op.x),
            dst=self._at(op.output),
            n=op.x.width,
            group=op.head_dim,
            n_pairs=len(op.frequencies),
            stride=2 * len(op.frequencies),
            max_position=NO_BOUND if op.max_position is None else min(op.max_position, NO_BOUND),
            flags=definition().numbers["FLAG_HALF"] if op.layout == "half" else 0,
        )

    def _attend(self, op: Attention) -> None:
        kv = op.kv
        self._emit(
            "ATTEND",
            op.output,
            hbm=kv.name,
            a=self._at(op.q),
            b=self._at(op.k),
            c=self._at(op.v),
            d=self._at(op.q if op.q_sink is None else op.q_sink),
            dst=self._at(op.output),
            f0=op.scale,
            flags=definition().numbers["FLAG_HADAMARD"] if kv.format == "kv4h" else 0,
            n_heads=op.n_heads,
            n_heads_kv=kv.n_heads_kv,
            head_dim=kv.head_dim,
            n_slots=kv.n_slots,
            n_cells=kv.n_cells,
            n_ctx=kv.n_ctx,
            sink=kv.sink,
            window=kv.window,
        )

    def _load(self, value: Value) -> None:
        place = (Place.VALUE, value.name)
        self._emit("LOAD", value, ddr=place, dst=self._at(value), n=value.width, stride=value.width)

    def _put_by(self, value: Value) -> None:
        """Before a value gives way in the vector memory."""
        if value.name not in self._in_ddr:
            self._spilled.append(value)
            self._store(value)

    def _store(self, value: Value) -> None:
        self._in_ddr.add(value.name)
        place = (Place.VALUE, value.name)
        self._emit("STORE", value, ddr=place, a=self._at(value), n=value.width, stride=value.width)

    def _at(self, value: Value) -> int:
        return self._memory.offset(value)

    def _emit(
        self,
        op: str,
        value: Value | None = None,
        hbm: str | None = None,
        ddr: tuple[Place, str | Rotation] | None = None,
        **numbers: float,
    ) -> None:
        """value: whose rows it makes or moves."""
        outputs = value is not None and value.rows == "outputs"
        rows = definition().numbers["ROWS_OUTPUTS" if outputs else "ROWS_TOKENS"]
        self._instructions.append(Instruction(op, self._source, {"rows": rows, **numbers}, hbm, ddr))


def _format(op: Embedding | MatMul) -> int:
    number = format_of(op.weight.type)
    assert number is not None, f"{op.weight.name}: the engine does not read {op.weight.type}"
    return number
