"""The immutable graph: topologically ordered ops, consistent by construction, and passes that make it canonical."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

from hetrun.errors import GraphError
from hetrun.ops import Attention, KvSpec, Op, Scale, SelectRows, Value
from hetrun.tensor import Weight


@dataclass(frozen=True)
class Graph:
    """Ops in an order in which they can run; the last one makes the logits [outputs, n_vocab].

    Construction validates: names are unique, every input is made by an earlier op with the same shape, weights and KV
    caches that share a name are the same, and the last op has one row an output. GraphError names the op otherwise.
    """

    ops: tuple[Op, ...]

    def __post_init__(self) -> None:
        if not self.ops:
            raise GraphError("a graph needs at least one op")
        made: dict[str, Value] = {}
        named: dict[str, Weight | KvSpec] = {}
        for op in self.ops:
            if op.name in made:
                raise GraphError(f"{op.name}: two ops of that name")
            for value in op.inputs:
                if made.get(value.name) != value:
                    raise GraphError(
                        f"{op.name}: reads {value}, but {made.get(value.name, 'no earlier op')} is what there is"
                    )
            shared: list[Weight | KvSpec] = [*op.weights]
            if isinstance(op, Attention):
                shared.append(op.kv)
            for constant in shared:
                if named.setdefault(constant.name, constant) != constant:
                    raise GraphError(f"{op.name}: {constant} differs from the earlier {named[constant.name]}")
            made[op.name] = op.output
        if self.output.rows != "outputs":
            raise GraphError(f"{self.ops[-1].name}: the last op must have one row an output")

    @property
    def output(self) -> Value:
        """The logits."""
        return self.ops[-1].output

    @property
    def n_vocab(self) -> int:
        return self.output.width

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every constant once, by name."""
        return {w.name: w for op in self.ops for w in op.weights}

    @cached_property
    def kv_specs(self) -> Mapping[str, KvSpec]:
        """Every KV cache once, by name."""
        return {op.kv.name: op.kv for op in self.ops if isinstance(op, Attention)}

    @cached_property
    def fingerprint(self) -> str:
        """Equal for graphs of the same ops, shapes and types; a saved plan names it.

        A checksum, no cryptographic digest: `hashlib` would map 3.5 MB of OpenSSL into every run.
        """
        text = repr([(op.name, op.signature) for op in self.ops]).encode()
        return f"{zlib.crc32(text):08x}{zlib.crc32(text[::-1]):08x}"


def canonical(ops: Iterable[Op]) -> Graph:
    """The graph of `ops` without identities and unused ops, and with rows selected as early as the data allows."""
    return Graph(select_rows_early(drop_unused(drop_identities(tuple(ops)))))


def drop_identities(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Without scales by one."""
    kept: list[Op] = []
    renamed: dict[str, Value] = {}
    for op in ops:
        op = _with_inputs(op, renamed)
        if isinstance(op, Scale) and op.factor == 1.0:
            renamed[op.name] = op.x
        else:
            kept.append(op)
    return tuple(kept)


def drop_unused(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Without ops that the last op does not need. Attention stays: it writes the cache that later steps read."""
    needed = {ops[-1].name}
    kept: list[Op] = []
    for op in reversed(ops):
        if op.name in needed or isinstance(op, Attention):
            kept.append(op)
            needed.update(v.name for v in op.inputs)
    return tuple(reversed(kept))


def select_rows_early(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Moves `SelectRows` up to the last op that mixes rows (attention).

    In prefill the last layer's feed-forward and the head then run on the wanted rows alone.
    """
    late = _late_ops(ops)
    result: list[Op] = []
    selected: dict[str, Value] = {}  # the [outputs, width] form of a value, by the name that later ops know it by

    def select(value: Value) -> Value:
        if value.name not in selected:
            op = SelectRows(f"{value.name}_rows", value)
            result.append(op)
            selected[value.name] = op.output
        return selected[value.name]

    for op in ops:
        if isinstance(op, SelectRows):
            selected[op.name] = select(op.x)
        elif op.name in late:
            moved = _with_inputs(op, {v.name: select(v) for v in op.inputs})
            result.append(moved)
            selected[op.name] = moved.output
        else:
            result.append(
                _with_inputs(
                    op, {v.name: selected[v.name] for v in op.inputs if v.rows == "outputs" and v.name in selected}
                )
            )
    return tuple(result)


def _late_ops(ops: tuple[Op, ...]) -> set[str]:
    """Ops with one row a token of which only the selected rows are read, and which work row by row."""
    read_in_full: set[str] = set()
    late: set[str] = set()
    for op in reversed(ops):
        if isinstance(op, SelectRows):
            continue
        row_wise = bool(op.inputs) and not isinstance(op, Attention)
        if op.output.rows == "tokens" and row_wise and op.name not in read_in_full:
            late.add(op.name)
        else:
            read_in_full.update(v.name for v in op.inputs if v.rows == "tokens")
    return late


def _with_inputs(op: Op, values: Mapping[str, Value]) -> Op:
    """The op with those inputs exchanged, by their present names."""
    changed = {
        f.name: values[v.name] for f in fields(op) if isinstance(v := getattr(op, f.name), Value) and v.name in values
    }
    return replace(op, **changed) if changed else op  # type: ignore[arg-type]  # fields are known by name only
