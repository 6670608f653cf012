"""Ops of a segment -> native steps, fusing what stands next to each other.

- Matmuls with the same input share one PREPARE, which also does the RMS norm where only they read it.
- A bias, then a residual add, joins the matmul before it; gate, up and their activation are one matmul step.
- What gate and up give is prepared on the spot where only matmuls of codes read it.
- Rope joins the KV store (keys) and the attention (queries) that alone read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hetrun.device import Segment
from hetrun.errors import DeviceError
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    Experts,
    GatedActivation,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Route,
    Rows,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)
from hetrun.tensor import Weight
from hetrun_cpu.steps import FUNCTIONS, QUANTISED_TYPES, Flag, Kind, Step, prepared_width


@dataclass(frozen=True)
class Table:
    """A rope table, as in `hetrun.ops.Rope`."""

    frequencies: tuple[float, ...]
    magnitude: float
    max_position: int | None


@dataclass
class Lowered:
    """Steps without barriers; the values that they make, the scratch of PREPAREs among them; rope tables."""

    steps: list[Step] = field(default_factory=list)
    widths: dict[str, tuple[int, Rows]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class _Epilogue:
    """What is fused to a matmul: the value that comes out in the end.   ops: names, the matmul's first."""

    out: Value
    ops: tuple[str, ...]
    bias: Weight | None = None
    residual: Value | None = None


def lower(segment: Segment) -> Lowered:
    """Pure and deterministic. DeviceError for an op that the device has no step for."""
    return _Lowering(segment).run()


class _Lowering:
    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.result = Lowered()
        self.kept = {v.name for v in segment.outputs}
        self.producers: dict[str, Op] = {op.name: op for op in segment.ops}
        self.readers: dict[str, list[Op]] = {}
        for op in segment.ops:
            for value in op.inputs:
                self.readers.setdefault(value.name, []).append(op)
        self.available = {v.name for v in segment.inputs}
        self.done: set[str] = set()
        self.tables: dict[Table, int] = {}

    def run(self) -> Lowered:
        for value in self.segment.inputs:
            self.result.widths[value.name] = (value.width, value.rows)
        for op in self.segment.ops:
            if op.name not in self.done:
                self._lower(op)
        table_steps = [Step(Kind.ROPE_TABLE, ropes=(i, None)) for i in range(len(self.tables))]
        self.result.steps[:0] = table_steps
        self.result.tables = list(self.tables)
        return self.result

    def _emit(self, op: Op | None, step: Step, out: Value | None) -> None:
        if op is not None and not step.ops:
            step = replace(step, ops=(op.name,))
        self.result.steps.append(step)
        if out is not None:
            self.result.widths[out.name] = (out.width, out.rows)
            self.available.add(out.name)
        if op is not None:
            self.done.add(op.name)

    def _lower(self, op: Op) -> None:
        y = op.output
        if isinstance(op, Embedding):
            self._emit(op, Step(Kind.EMBED, y.name, weights=(op.weight, None)), y)
        elif isinstance(op, RmsNorm):
            if not self._folds_into_prepare(op):
                self._emit(op, Step(Kind.NORM, y.name, (op.x.name, None), (op.weight, None), f0=op.eps), y)
        elif isinstance(op, MatMul):
            self._matmuls(op)
        elif isinstance(op, Rope):
            if not self._folds_into_attention(op):
                ropes = (self._table(op), None)
                step = Step(Kind.ROPE, y.name, (op.x.name, None), ropes=ropes, flags=_half(op), head_dim=op.head_dim)
                self._emit(op, step, y)
        elif isinstance(op, Attention):
            self._attention(op)
        elif isinstance(op, GatedActivation):
            step = Step(Kind.GATED, y.name, (op.gate.name, op.up.name), function=FUNCTIONS[op.function])
            self._emit(op, step, y)
        elif isinstance(op, Route):
            flags = Flag.ROUTE_NORMALISE if op.normalise else Flag.NONE
            self._emit(op, Step(Kind.ROUTE, y.name, (op.x.name, None), flags=flags, n_used=op.n_used, f0=op.factor), y)
        elif isinstance(op, Experts):
            self._experts(op)
        elif isinstance(op, Add):
            self._emit(op, Step(Kind.ADD, y.name, (op.a.name, op.b.name)), y)
        elif isinstance(op, Bias):
            self._emit(op, Step(Kind.BIAS, y.name, (op.x.name, None), (op.weight, None)), y)
        elif isinstance(op, Scale):
            self._emit(op, Step(Kind.SCALE, y.name, (op.x.name, None), f0=op.factor), y)
        elif isinstance(op, SoftCap):
            self._emit(op, Step(Kind.SOFT_CAP, y.name, (op.x.name, None), f0=op.cap), y)
        elif isinstance(op, SelectRows):
            self._emit(op, Step(Kind.SELECT, y.name, (op.x.name, None)), y)
        else:
            raise DeviceError(f"{op.name}: the cpu device has no op {op.kind!r}")

    def _experts(self, op: Experts) -> None:
        """Two steps: what the experts of each row make of gate and up stands side by side between them."""
        hidden = Value(f"{op.name}#hidden", op.n_used * op.gate.shape[1], op.x.rows)
        up = Step(
            Kind.EXPERTS_UP,
            hidden.name,
            (op.x.name, op.routes.name),
            (op.gate, op.up),
            function=FUNCTIONS[op.function],
            n_used=op.n_used,
            ops=(op.name,),
        )
        self._emit(None, up, hidden)
        down = Step(Kind.EXPERTS_DOWN, op.name, (hidden.name, op.routes.name), (op.down, None), n_used=op.n_used)
        self._emit(op, down, op.output)

    def _only_reader(self, value: Value) -> Op | None:
        """The op that alone reads the value, or None where there are more, or the value leaves the segment."""
        readers = self.readers.get(value.name, [])
        return readers[0] if len(readers) == 1 and value.name not in self.kept else None

    def _folds_into_prepare(self, op: RmsNorm) -> bool:
        readers = self.readers.get(op.name, [])
        one_group = op.weight.shape[0] == op.x.width
        return one_group and op.name not in self.kept and bool(readers) and all(isinstance(r, MatMul) for r in readers)

    def _folds_into_attention(self, op: Rope) -> bool:
        reader = self._only_reader(op.output)
        if not isinstance(reader, Attention) or reader.kv.head_dim != op.head_dim:
            return False
        if reader.q_sink is not None and not self._ropes_alike(reader):
            return False
        return op.name != reader.v.name and [v.name for v in reader.inputs].count(op.name) == 1

    def _ropes_alike(self, op: Attention) -> bool:
        """Whether one flag says how both kinds of queries are rotated."""
        layouts = {rope.layout for v in op.inputs if isinstance(rope := self.producers.get(v.name), Rope)}
        return len(layouts) == 1

    def _table(self, op: Rope) -> int:
        return self.tables.setdefault(Table(op.frequencies, op.magnitude, op.max_position), len(self.tables))

    def _attention(self, op: Attention) -> None:
        def rotated(value: Value) -> tuple[str, int | None, Flag, tuple[str, ...]]:
            rope = self.producers.get(value.name)
            if isinstance(rope, Rope) and self._folds_into_attention(rope):
                self.done.add(rope.name)
                return rope.x.name, self._table(rope), _half(rope), (rope.name, op.name)
            return value.name, None, Flag.NONE, (op.name,)

        k, k_rope, k_flags, k_ops = rotated(op.k)
        q, q_rope, q_flags, q_ops = rotated(op.q)
        store = Step(
            Kind.KV_STORE, None, (k, op.v.name), state=op.kv.name, ropes=(k_rope, None), flags=k_flags, ops=k_ops
        )
        self._emit(None, store, None)
        q_sink, q_sink_rope, sink_flags, sink_ops = (None, None, Flag.NONE, ())
        if op.q_sink is not None:
            q_sink, q_sink_rope, sink_flags, sink_ops = rotated(op.q_sink)
        step = Step(
            Kind.ATTEND,
            op.name,
            (q, q_sink),
            state=op.kv.name,
            ropes=(q_rope, q_sink_rope),
            flags=q_flags | sink_flags,
            f0=op.scale,
            f1=op.soft_cap,
            ops=(*sink_ops[:-1], *q_ops),
        )
        self._emit(op, step, op.output)

    def _matmuls(self, first: MatMul) -> None:
        """All matmuls of one input, at the place of the first: they need nothing else, but for residuals."""
        x = first.x
        group = [r for r in self.readers[x.name] if isinstance(r, MatMul) and r.name not in self.done]
        types = {m.weight.type.name for m in group}
        floats = bool(types - QUANTISED_TYPES)
        int8 = bool(types & QUANTISED_TYPES)

        prepared = Value(_scratch_name(x), prepared_width(x.width, int8, floats), x.rows)
        flags = (Flag.PREPARE_INT8 if int8 else Flag.NONE) | (Flag.PREPARE_FLOAT if floats else Flag.NONE)
        norm = self.producers.get(x.name)
        if isinstance(norm, RmsNorm) and self._folds_into_prepare(norm):
            self.done.add(norm.name)
            prepare = Step(
                Kind.PREPARE,
                prepared.name,
                (norm.x.name, None),
                (norm.weight, None),
                flags=flags,
                f0=norm.eps,
                ops=(norm.name,),
            )
        else:
            names = tuple(m.name for m in group)
            prepare = Step(Kind.PREPARE, prepared.name, (x.name, None), flags=flags, ops=names)
        self._emit(None, prepare, prepared)

        # Only the first waits for a PREPARE that was shared out.
        waits = Flag.BARRIER_IF_SHARED
        for matmul in group:
            if matmul.name in self.done:
                continue
            step = self._gated(matmul, prepared, group) or self._single(matmul, prepared)
            self._emit(matmul, _with_flags(step, waits), self.segment_value(step))
            waits = Flag.NONE

    def segment_value(self, step: Step) -> Value:
        assert step.out is not None
        return self.producers[step.out].output

    def _single(self, matmul: MatMul, prepared: Value) -> Step:
        end = self._with_bias(matmul)
        add = self._only_reader(end.out)
        if isinstance(add, Add) and add.a.name != add.b.name:
            residual = add.b if add.a.name == end.out.name else add.a
            if residual.name in self.available:
                self.done.add(add.name)
                end = _Epilogue(add.output, (*end.ops, add.name), end.bias, residual)
        return Step(
            Kind.MATMUL,
            end.out.name,
            (prepared.name, None if end.residual is None else end.residual.name),
            (matmul.weight, None),
            (end.bias, None),
            ops=end.ops,
        )

    def _with_bias(self, matmul: MatMul) -> _Epilogue:
        bias = self._only_reader(matmul.output)
        if isinstance(bias, Bias):
            self.done.add(bias.name)
            return _Epilogue(bias.output, (matmul.name, bias.name), bias.weight)
        return _Epilogue(matmul.output, (matmul.name,))

    def _gated(self, matmul: MatMul, prepared: Value, group: list[MatMul]) -> Step | None:
        """One step for gate, up and activation where `matmul` is one half and the other is in the group."""
        gated = self._gate_reader(matmul)
        if gated is None:
            return None
        ends = {gated.gate.name: None, gated.up.name: None}
        halves: dict[str, MatMul] = {}
        for other in group:
            if other.name not in self.done and self._gate_reader(other) is gated:
                halves[self._end_name(other)] = other
        if len(ends) != 2 or set(halves) != set(ends):
            return None
        gate, up = halves[gated.gate.name], halves[gated.up.name]
        gate_end, up_end = self._with_bias(gate), self._with_bias(up)
        self.done |= {gate.name, up.name, gated.name}
        return Step(
            Kind.MATMUL,
            gated.name,
            (prepared.name, self._prepared_by(gated)),
            (gate.weight, up.weight),
            (gate_end.bias, up_end.bias),
            function=FUNCTIONS[gated.function],
            ops=(*gate_end.ops, *up_end.ops, gated.name),
        )

    def _prepared_by(self, gated: GatedActivation) -> str | None:
        """The scratch that the step of gate and up may fill itself: only matmuls of codes read the result."""
        readers = self.readers.get(gated.name, [])
        if gated.name in self.kept or not readers:
            return None
        of_codes = all(isinstance(r, MatMul) and r.weight.type.name in QUANTISED_TYPES for r in readers)
        return _scratch_name(gated.output) if of_codes else None

    def _end_name(self, matmul: MatMul) -> str:
        bias = self._only_reader(matmul.output)
        return bias.name if isinstance(bias, Bias) else matmul.name

    def _gate_reader(self, matmul: MatMul) -> GatedActivation | None:
        reader = self._only_reader(matmul.output)
        if isinstance(reader, Bias):
            reader = self._only_reader(reader.output)
        return reader if isinstance(reader, GatedActivation) else None


def _scratch_name(x: Value) -> str:
    return f"{x.name}#prepared"


def _half(op: Rope) -> Flag:
    return Flag.ROPE_HALF if op.layout == "half" else Flag.NONE


def _with_flags(step: Step, flags: Flag) -> Step:
    return replace(step, flags=step.flags | flags)


def _filled(step: Step) -> set[str]:
    """The scratch that a step of gate and up names as an input, and fills."""
    name = step.inputs[1] if step.kind is Kind.MATMUL and step.weights[1] is not None else None
    return set() if name is None else {name}


def step_reads(step: Step) -> set[str]:
    """Names of values, states and rope tables that the step reads."""
    names = {name for name in step.inputs if name is not None} - _filled(step)
    if step.kind is Kind.ATTEND and step.state is not None:
        names.add(f"kv:{step.state}")
    if step.kind is not Kind.ROPE_TABLE:
        names |= {f"rope:{rope}" for rope in step.ropes if rope is not None}
    return names


def step_writes(step: Step) -> set[str]:
    """Names of values, states and rope tables that the step writes."""
    names = _filled(step) if step.out is None else {step.out} | _filled(step)
    if step.kind is Kind.KV_STORE:
        names.add(f"kv:{step.state}")
    if step.kind is Kind.ROPE_TABLE:
        names.add(f"rope:{step.ropes[0]}")
    return names


def weights_of(steps: list[Step]) -> Mapping[str, Weight]:
    """Every weight that the steps read, by name, in order of first use."""
    return {w.name: w for step in steps for w in (*step.weights, *step.biases) if w is not None}
