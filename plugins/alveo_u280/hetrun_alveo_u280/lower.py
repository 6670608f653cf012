"""Ops of a segment -> instructions.

- A value is quantised once for all the matrices that read it one after the other.
- A value that nothing within the segment reads goes to DDR, straight from a matmul.
- A sum or gate that alone reads the matmul before it is made of its results as they come.
- The last matmul of a value stands behind what is done with the results of the others; the lanes do it meanwhile.
- Inputs are loaded when they are first read.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self._ops = _ordered(segment.ops)
        self._kept = {v.name for v in segment.outputs}
        self._uses: dict[str, list[int]] = {}
        for i, op in enumerate(self._ops):
            for value in op.inputs:
                self._uses.setdefault(value.name, []).append(i)
        floats = definition().numbers["VECTOR_FLOATS"]
        self._memory = VectorMemory(floats, self._uses, self._load, self._put_by)
        self._in_ddr = {v.name for v in segment.inputs}
        self._spilled: list[Value] = []
        self._quantised: str | None = None  # whose codes the activations are
        self._sources: tuple[str, ...] = ()
        self._instructions: list[Instruction] = []

    def run(self) -> tuple[tuple[Instruction, ...], tuple[Value, ...]]:
        done = -1
        for i, op in enumerate(self._ops):
            if i <= done:
                continue
            self._sources = (op.name,)
            if joined := self._joined(i):
                done = i + 1
                self._sources = (op.name, self._ops[done].name)
                self._matmul_into(*joined, i)
                self._memory.release(done)
                continue
            # Of an attention that nothing reads, keys and values are still to be kept.
            if op.name in self._uses or op.name in self._kept or isinstance(op, Attention):
                self._lower(op, i)
            self._memory.release(i)
        self._sources = ()
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
        self._quantise(op, number)
        if read:
            self._memory.bring([], op.output, number)
            self._emit("MATMUL", op.output, hbm=op.weight.name, dst=self._at(op.output), **_shape(op))
        else:
            self._in_ddr.add(op.name)
            place = (Place.VALUE, op.name)
            self._emit("MATMUL", op.output, hbm=op.weight.name, ddr=place, stride=op.output.width, **_shape(op))

    def _joined(self, number: int) -> tuple[MatMul, Op, Value, str] | None:
        """(a matmul, the op behind it that alone reads it, that op's other operand, the flag that makes both one)."""
        ops = self._ops[number : number + 2]
        if len(ops) < 2 or not isinstance(ops[0], MatMul) or self._uses.get(ops[0].name) != [number + 1]:
            return None
        matmul, reader = ops
        if matmul.name in self._kept or not (reader.name in self._uses or reader.name in self._kept):
            return None
        match reader:
            case GatedActivation(gate=other, up=up) if up.name == matmul.name:
                return matmul, reader, other, "FLAG_GATE"
            case Add(a=a, b=b):
                return matmul, reader, b if a.name == matmul.name else a, "FLAG_ADD"
        return None

    def _matmul_into(self, matmul: MatMul, reader: Op, other: Value, flag: str, number: int) -> None:
        self._quantise(matmul, number)
        self._memory.release(number)  # its codes are with the lanes
        self._memory.bring([other], reader.output, number + 1)
        at = {"b": self._at(other), "dst": self._at(reader.output), "flags": definition().numbers[flag]}
        self._emit("MATMUL", reader.output, hbm=matmul.weight.name, **_shape(matmul), **at)
        if reader.name in self._kept and reader.name not in self._in_ddr:
            self._store(reader.output)

    def _quantise(self, op: MatMul, number: int) -> None:
        if self._quantised != op.x.name:
            self._memory.bring([op.x], None, number)
            self._emit("QUANTIZE", op.x, a=self._at(op.x), n=op.x.width)
            self._quantised = op.x.name

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
        self._instructions.append(Instruction(op, self._sources, {"rows": rows, **numbers}, hbm, ddr))


def _ordered(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Values are made before they are read, as they were."""
    ordered = list(ops)
    for i in range(len(ordered) - 2, 0, -1):
        before, last = ordered[i - 1 : i + 1]
        if not (isinstance(before, MatMul) and isinstance(last, MatMul) and before.x.name == last.x.name):
            continue
        end = i + 1
        while end < len(ordered) and _goes_before(ordered[end], last):
            end += 1
        ordered[i:end] = [*ordered[i + 1 : end], last]
    return tuple(ordered)


def _goes_before(op: Op, last: MatMul) -> bool:
    of_rows = isinstance(op, (Rope, Bias, Scale, RmsNorm))
    return of_rows and all(value.name != last.name for value in op.inputs)


def _shape(op: MatMul) -> dict[str, float]:
    return {"n_rows": op.weight.shape[0], "n_columns": op.weight.shape[1], "format": _format(op)}


def _format(op: Embedding | MatMul) -> int:
    number = format_of(op.weight.type)
    assert number is not None, f"{op.weight.name}: the engine does not read {op.weight.type}"
    return number
