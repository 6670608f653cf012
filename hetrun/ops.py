"""The canonical op vocabulary: what a transformer step is made of, with shapes, FLOPs and bytes.

An op is a frozen dataclass whose fields are its inputs (`Value`), constants (`Weight`) and attributes. It makes
exactly one value, which bears the op's name; the shape rule is the constructor, so a malformed op cannot exist
(`GraphError`). Values are float32 matrices [rows, width], row-major; rows is the number of tokens of the batch, or
of its outputs. What each op means is defined by `hetrun.reference`; how ops are fused is each device's own business.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal, get_args

from hetrun.errors import GraphError
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


# Bits of an element, those of its block's scale among them. kv4 and kv4h have 32 more for each head and token.
KV_FORMAT_BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "kv4": 4.0, "kv4h": 4.0}
_KV_HEAD_BITS = {"kv4": 32, "kv4h": 32}


@dataclass(frozen=True)
class KvSpec:
    """The KV cache of one attention op: what it holds and which keys a query sees.

    Key j is visible from query i iff j <= i and (window == 0 or j < sink or j > i - window), in absolute positions.
    n_slots: sequences.   n_ctx: tokens a sequence may reach.   window: 0 means full attention.
    slack: cells beyond sink + window, at least max(max_tokens, max_rollback) - 1, so that a chunk never overwrites a
    key that one of its queries still sees, and a rollback finds its keys.
    format: how each head's key and value is rounded when it is stored; `hetrun.reference.kv` has the meaning.
    """

    name: str
    n_slots: int
    n_ctx: int
    n_heads_kv: int
    head_dim: int
    format: str = "f16"
    sink: int = 0
    window: int = 0
    slack: int = 0

    def __post_init__(self) -> None:
        for field in ("n_slots", "n_ctx", "n_heads_kv", "head_dim"):
            if getattr(self, field) < 1:
                raise GraphError(f"{self.name}: {field} must be at least 1, not {getattr(self, field)}")
        if min(self.sink, self.window, self.slack) < 0:
            raise GraphError(f"{self.name}: sink, window and slack must not be negative")

    @property
    def format_refusal(self) -> str | None:
        """Why heads of this size cannot be stored in this format, or None."""
        n = self.head_dim
        if self.format == "q8_0" and n % 32:
            return f"KV format q8_0 needs heads of a multiple of 32, not {n}"
        if self.format == "kv4" and n % 2:
            return f"KV format kv4 needs heads of an even size, not {n}"
        if self.format == "kv4h" and (n < 2 or n & (n - 1)):
            return f"KV format kv4h needs heads of a power of two, not {n}"
        return None

    @property
    def width(self) -> int:
        """Elements of a token's key (and of its value)."""
        return self.n_heads_kv * self.head_dim

    @property
    def n_cells(self) -> int:
        """Tokens that a slot stores: all of the context, or sink + window + slack where that is less."""
        if self.window == 0:
            return self.n_ctx
        return min(self.n_ctx, self.sink + self.window + self.slack)

    def cell(self, position: int) -> int:
        """Where a slot keeps that position: sinks are pinned, the rest is a ring."""
        if self.n_cells == self.n_ctx or position < self.sink:
            return position
        return self.sink + (position - self.sink) % (self.n_cells - self.sink)

    def n_visible(self, position: int) -> int:
        """Number of keys that the query at `position` sees, itself included."""
        if self.window == 0:
            return position + 1
        return min(position + 1, self.sink + self.window)

    def token_bytes(self) -> int:
        """Bytes of one token's key and value."""
        head_bits = self.head_dim * KV_FORMAT_BITS.get(self.format, 16.0) + _KV_HEAD_BITS.get(self.format, 0)
        return int(2 * self.n_heads_kv * head_bits / 8)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache, all slots."""
        return self.n_slots * self.n_cells * self.token_bytes()


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
        return (self.kind, *(_anonymous(getattr(self, f.name)) for f in fields(self) if f.name != "name"))

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


def _anonymous(field: object) -> object:
    if isinstance(field, Value):
        return (field.width, field.rows)
    if isinstance(field, Weight):
        return (field.type.name, field.shape)
    if isinstance(field, KvSpec):
        return tuple(getattr(field, f.name) for f in fields(field) if f.name != "name")
    return field


@dataclass(frozen=True)
class Embedding(Op):
    """Rows of the table for the batch's token ids.   weight: [n_vocab, n_embd]."""

    weight: Weight
    kind: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        self._check(len(self.weight.shape) == 2, f"the table must be a matrix, not {self.weight.shape}")

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.weight.shape[1])

    def flops(self, workload: Workload) -> int:
        return 0

    def weight_bytes(self, workload: Workload) -> int:
        return workload.n_tokens * self.weight.type.row_bytes(self.weight.shape[1])


@dataclass(frozen=True)
class Unary(Op):
    """Base of ops that make a value of the shape of their input."""

    x: Value

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.x.width, self.x.rows)


@dataclass(frozen=True)
class RmsNorm(Unary):
    """x / sqrt(mean(x^2) + eps) * weight over groups of len(weight) elements (one group, or one a head)."""

    weight: Weight
    eps: float
    kind: ClassVar[str] = "rms_norm"

    def __post_init__(self) -> None:
        self._check(len(self.weight.shape) == 1, f"the weight must be a vector, not {self.weight.shape}")
        self._check(
            self.x.width % self.weight.shape[0] == 0, f"{self.x.width} elements in groups of {self.weight.shape[0]}"
        )

    def flops(self, workload: Workload) -> int:
        return 4 * super().flops(workload)


@dataclass(frozen=True)
class MatMul(Op):
    """y = x W^T.   x: [rows, n_in].   weight: [n_out, n_in]."""

    x: Value
    weight: Weight
    kind: ClassVar[str] = "matmul"

    def __post_init__(self) -> None:
        self._check(len(self.weight.shape) == 2, f"the weight must be a matrix, not {self.weight.shape}")
        self._check(
            self.weight.shape[1] == self.x.width,
            f"{self.weight.name} has rows of {self.weight.shape[1]} but {self.x.name} is {self.x.width} wide",
        )

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.weight.shape[0], self.x.rows)

    def flops(self, workload: Workload) -> int:
        return 2 * workload.rows(self.x.rows) * self.weight.n_elements


@dataclass(frozen=True)
class Bias(Unary):
    """y = x + weight, the same vector for every row.   weight: [width]."""

    weight: Weight
    kind: ClassVar[str] = "bias"

    def __post_init__(self) -> None:
        self._check(
            self.weight.shape == (self.x.width,), f"a bias of {self.weight.shape} for a width of {self.x.width}"
        )


@dataclass(frozen=True)
class Rope(Unary):
    """Rotates pairs of each head by position * frequency; elements beyond the pairs pass through.

    frequencies: radians a position, one for each pair, all scaling kinds already applied.   magnitude: factor on the
    rotated elements (YaRN).   layout: pair i is elements (2i, 2i+1) "interleaved", or (i, i + n_pairs) "half".
    max_position: a token beyond it is rotated as one that stands there; None for no such bound.
    """

    head_dim: int
    layout: Literal["interleaved", "half"]
    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    max_position: int | None = None
    kind: ClassVar[str] = "rope"

    def __post_init__(self) -> None:
        self._check(self.layout in ("interleaved", "half"), f"unknown layout {self.layout!r}")
        self._check(
            self.head_dim > 0 and self.x.width % self.head_dim == 0, f"{self.x.width} in heads of {self.head_dim}"
        )
        self._check(
            2 * len(self.frequencies) <= self.head_dim, f"{len(self.frequencies)} pairs in a head of {self.head_dim}"
        )
        self._check(self.max_position is None or self.max_position >= 0, f"no position is below {self.max_position}")

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """Costs go by the number of pairs, so a plan made of a header alone serves the file with its factors."""
        return (self.kind, _anonymous(self.x), self.head_dim, self.layout, len(self.frequencies))

    def flops(self, workload: Workload) -> int:
        return 3 * super().flops(workload)


@dataclass(frozen=True)
class Attention(Op):
    """Writes k and v of the batch into the KV cache, then softmax(scale * q K^T) V for each head over the visible keys.

    q: [tokens, n_heads * head_dim].   k, v: [tokens, n_heads_kv * head_dim]; n_heads is a multiple of n_heads_kv,
    and head h reads KV head h // (n_heads / n_heads_kv).   soft_cap: 0 for none, else scores become cap * tanh(score
    / cap).
    q_sink: queries that meet the keys of the first kv.sink positions instead of q, None for q itself. Rotated as at
    position sink + window - 1 at most, they see those keys just before the window, however far it has moved on
    (StreamingLLM, arXiv 2309.17453, section 3.2).
    """

    q: Value
    k: Value
    v: Value
    kv: KvSpec
    scale: float
    soft_cap: float = 0.0
    q_sink: Value | None = None
    kind: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        self._check_same(self.k, self.v)
        self._check(self.k.width == self.kv.width, f"keys are {self.k.width} wide, the cache {self.kv.width}")
        self._check(self.q.width % self.kv.width == 0, f"queries of {self.q.width} over keys of {self.kv.width}")
        self._check(self.q.rows == self.k.rows == "tokens", "queries and keys have one row a token")
        if self.q_sink is not None:
            self._check_same(self.q, self.q_sink)
            self._check(self.kv.sink > 0, "queries of their own for sinks, but no sinks")

    @property
    def n_heads(self) -> int:
        return self.q.width // self.kv.head_dim

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.q.width)

    def _n_visible(self, workload: Workload) -> int:
        """Query-key pairs of the step, all sequences."""
        per_seq = max(1, workload.n_tokens // max(1, workload.n_seqs))
        first, last = workload.n_past, workload.n_past + per_seq - 1
        mean = (self.kv.n_visible(first) + self.kv.n_visible(last)) / 2
        return int(workload.n_tokens * mean)

    def flops(self, workload: Workload) -> int:
        return 4 * self.q.width * self._n_visible(workload)

    def kv_bytes(self, workload: Workload) -> int:
        last = workload.n_past + max(1, workload.n_tokens // max(1, workload.n_seqs)) - 1
        read = workload.n_seqs * self.kv.n_visible(last)
        return (read + workload.n_tokens) * self.kv.token_bytes()


Function = Literal["silu", "gelu"]
FUNCTIONS: tuple[str, ...] = get_args(Function)
"""Of activations; gelu in its tanh form."""


@dataclass(frozen=True)
class GatedActivation(Op):
    """f(gate) * up, elementwise.   function: f, of FUNCTIONS."""

    gate: Value
    up: Value
    function: Function = "silu"
    kind: ClassVar[str] = "gated_activation"

    def __post_init__(self) -> None:
        self._check_same(self.gate, self.up)
        self._check(self.function in FUNCTIONS, f"unknown function {self.function!r}")

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.gate.width, self.gate.rows)

    def flops(self, workload: Workload) -> int:
        return 6 * super().flops(workload)


@dataclass(frozen=True)
class Route(Unary):
    """Which experts a row is given to, and how much each counts: [rows, n_experts].

    The softmax of each row's scores, kept where it is among the n_used largest (of equal ones the first), 0 elsewhere;
    with `normalise` divided by the sum of what is kept; times `factor`.   x: the router's scores, [rows, n_experts].
    """

    n_used: int
    normalise: bool = True
    factor: float = 1.0
    kind: ClassVar[str] = "route"

    def __post_init__(self) -> None:
        self._check(1 <= self.n_used <= self.x.width, f"{self.n_used} of {self.x.width} experts")

    def flops(self, workload: Workload) -> int:
        return 6 * super().flops(workload)


@dataclass(frozen=True)
class Experts(Op):
    """The sum over experts e of routes[e] * down[e] (f(gate[e] x) * (up[e] x)), over those whose route is not 0.

    x: [rows, n_in].   routes: [rows, n_experts], at most n_used of a row not 0.   gate, up: [n_experts, n_ff, n_in].
    down: [n_experts, n_out, n_ff].   function: as in GatedActivation.
    """

    x: Value
    routes: Value
    n_used: int
    gate: Weight
    up: Weight
    down: Weight
    function: Function = "silu"
    kind: ClassVar[str] = "experts"

    def __post_init__(self) -> None:
        self._check(self.x.rows == self.routes.rows, f"{self.x.rows} of {self.x.name} with routes of another batch")
        self._check(self.function in FUNCTIONS, f"unknown function {self.function!r}")
        self._check(1 <= self.n_used <= self.n_experts, f"{self.n_used} of {self.n_experts} experts")
        n_ff = self.gate.shape[1] if len(self.gate.shape) == 3 else 0
        for weight, width in ((self.gate, self.x.width), (self.up, self.x.width), (self.down, n_ff)):
            self._check(
                len(weight.shape) == 3 and weight.shape[0] == self.n_experts and weight.shape[2] == width,
                f"{weight.name} is {weight.shape}, not {self.n_experts} matrices with rows of {width}",
            )
        self._check(self.up.shape == self.gate.shape, f"gate is {self.gate.shape}, but up is {self.up.shape}")

    @property
    def n_experts(self) -> int:
        return self.routes.width

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.down.shape[1], self.x.rows)

    def flops(self, workload: Workload) -> int:
        """Those of the experts that rows are given to."""
        of_one = sum(2 * w.n_elements for w in self.weights) // self.n_experts
        return workload.rows(self.x.rows) * self.n_used * (of_one + 6 * self.gate.shape[1])

    def weight_bytes(self, workload: Workload) -> int:
        """Bytes of the experts that a step reads, on average where rows choose among them evenly."""
        missed = (1.0 - self.n_used / self.n_experts) ** workload.rows(self.x.rows)
        return int(sum(w.nbytes for w in self.weights) * (1.0 - missed))


@dataclass(frozen=True)
class Add(Op):
    """a + b, elementwise."""

    a: Value
    b: Value
    kind: ClassVar[str] = "add"

    def __post_init__(self) -> None:
        self._check_same(self.a, self.b)

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.a.width, self.a.rows)


@dataclass(frozen=True)
class Scale(Unary):
    """x * factor."""

    factor: float
    kind: ClassVar[str] = "scale"


@dataclass(frozen=True)
class SoftCap(Unary):
    """cap * tanh(x / cap)."""

    cap: float
    kind: ClassVar[str] = "soft_cap"

    def __post_init__(self) -> None:
        self._check(self.cap > 0, f"the cap must be positive, not {self.cap}")

    def flops(self, workload: Workload) -> int:
        return 4 * super().flops(workload)


@dataclass(frozen=True)
class SelectRows(Op):
    """The rows of x whose logits are wanted (`Batch.outputs`)."""

    x: Value
    kind: ClassVar[str] = "select_rows"

    def __post_init__(self) -> None:
        self._check(self.x.rows == "tokens", f"{self.x.name} has no row a token")

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.x.width, "outputs")

    def flops(self, workload: Workload) -> int:
        return 0


OP_TYPES: dict[str, type[Op]] = {
    t.kind: t
    for t in (
        Embedding, RmsNorm, MatMul, Bias, Rope, Attention, GatedActivation, Route, Experts, Add, Scale, SoftCap,
        SelectRows,
    )
}  # fmt: skip
