"""Values, workloads, and what all ops have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal

from hetrun.errors import GraphError
from hetrun.ops.kv import KvSpec
from hetrun.tensor import Weight

Rows = Literal["tokens", "outputs"]

VALUE_BYTES = 4  # values between ops are float32


@dataclass(frozen=True)
class Value:
    """A float32 matrix [rows, width] made by the op of the same name."""

    name: str
    width: int
    rows: Rows = "tokens"


@dataclass(frozen=True)
class Workload:
    """The size of one step, for costs.

    n_tokens: tokens of the batch.   n_past: tokens that each sequence already holds.   n_seqs: sequences in the batch.
    n_outputs: rows whose logits are wanted.   Decode: n_tokens = n_seqs = n_outputs.
    """

    n_tokens: int
    n_past: int
    n_seqs: int = 1
    n_outputs: int = 1

    def rows(self, rows: Rows) -> int:
        return self.n_tokens if rows == "tokens" else self.n_outputs


@dataclass(frozen=True)
class Op:
    """Base of all ops. `name` is unique in a graph and follows the file's tensor names (`blk.0.attn_q`)."""

    name: str

    kind: ClassVar[str]

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """Values that the op reads, in the order of its fields."""
        return tuple(v for f in fields(self) if isinstance(v := getattr(self, f.name), Value))

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Constants that the op reads."""
        return tuple(v for f in fields(self) if isinstance(v := getattr(self, f.name), Weight))

    @property
    def output(self) -> Value:
        """The value that the op makes: the shape rule."""
        raise NotImplementedError

    @cached_property
    def layer(self) -> int | None:
        """Number of the transformer block, or None outside the blocks."""
        head, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if head == "blk" and number.isdigit() else None

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """Equal for ops that cost the same: kind, shapes, types and attributes without names."""
        return (self.kind, *(anonymous(getattr(self, f.name)) for f in fields(self) if f.name != "name"))

    def flops(self, workload: Workload) -> int:
        """Floating point operations; a multiply-add counts as two."""
        return workload.rows(self.output.rows) * self.output.width

    def weight_bytes(self, workload: Workload) -> int:
        """Bytes of constants read from memory in one step."""
        return sum(w.nbytes for w in self.weights)

    def activation_bytes(self, workload: Workload) -> int:
        """Bytes of values read and written."""
        return VALUE_BYTES * sum(workload.rows(v.rows) * v.width for v in (*self.inputs, self.output))

    def kv_bytes(self, workload: Workload) -> int:
        """Bytes of the KV cache read and written."""
        return 0

    def _check(self, condition: bool, message: str) -> None:
        if not condition:
            raise GraphError(f"{self.name} ({self.kind}): {message}")

    def _check_same(self, a: Value, b: Value) -> None:
        self._check(
            (a.width, a.rows) == (b.width, b.rows),
            f"{a.name} is [{a.rows}, {a.width}] but {b.name} is [{b.rows}, {b.width}]",
        )


def anonymous(field: object) -> object:
    if isinstance(field, Value):
        return (field.width, field.rows)
    if isinstance(field, Weight):
        return (field.type.name, field.shape)
    if isinstance(field, KvSpec):
        return tuple(getattr(field, f.name) for f in fields(field) if f.name != "name")
    return field


@dataclass(frozen=True)
class Unary(Op):
    """Base of ops that make a value of the shape of their input."""

    x: Value

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.x.width, self.x.rows)
