"""What is timed: short sequences of ops as transformers have them, repeated so that each reads what the last one made.

Devices fuse neighbouring ops, so an op is timed among the neighbours that it has in a model. Each repetition has
weights of its own, so that a program runs through as many bytes of them as a model does; each begins with a norm where
the device has one, so that values keep their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Scale,
    SoftCap,
    Value,
)
from hetrun.tensor import TENSOR_TYPES, Weight

Accepts = Callable[[Op], bool]

N_CTX = 2560
BASE_TYPES = ("Q4_0", "Q8_0", "Q4_K", "F16", "F32", "Q4_1", "Q6_K")
"""What is not about one tensor type is measured in the first of these that the device reads."""


@dataclass(frozen=True)
class Pattern:
    """A sequence of ops that can follow itself.

    width: of the value that it reads and of the one that it makes.   make: the ops of repetition i.
    inputs: further values that every repetition reads.   pasts: tokens before the batch to time it with.
    repeatable: False for a pattern that reads no value.   at_footprints: whether it is timed with as few weights as
    a cache holds, and with more, where it has one token.
    """

    name: str
    width: int
    make: Callable[[int, Value], Sequence[Op]]
    inputs: tuple[Value, ...] = ()
    pasts: tuple[int, ...] = (0,)
    repeatable: bool = True
    at_footprints: bool = False

    def ops(self, n: int) -> tuple[Op, ...]:
        """n repetitions."""
        made: list[Op] = []
        x = self.x
        for i in range(n):
            made += self.make(i, x)
            x = made[-1].output
        return tuple(made)

    @property
    def x(self) -> Value:
        return Value("x", self.width)

    @property
    def block_bytes(self) -> int:
        """Bytes of matrices in a repetition."""
        return sum(w.nbytes for op in self.make(0, self.x) if isinstance(op, MatMul) for w in op.weights)


@dataclass(frozen=True)
class Group:
    """Patterns that are timed in turn.   name: "matmul Q4_0" and the like."""

    name: str
    patterns: tuple[Pattern, ...]


def groups(types: Sequence[str], kv_formats: Sequence[str], accepts: Accepts) -> list[Group]:
    """What there is to time on a device that accepts those ops: the base first, then a group for each tensor type and
    each KV format."""
    with_norm = accepts(_norm("norm", Value("x", 768)))
    base = next((t for t in BASE_TYPES if accepts(_matmul("w", t, 768, Value("x", 768)))), None)
    found = [Group("other ops", tuple(_base_patterns(base, with_norm, accepts)))]
    with_base = dict.fromkeys((base, *types) if base else types)
    found += [Group(f"matmul {t}", tuple(_type_patterns(t, with_norm))) for t in with_base]
    found += [Group(f"attention {f}", tuple(_attention_patterns(f, accepts))) for f in kv_formats]
    kept = [Group(g.name, tuple(p for p in g.patterns if all(map(accepts, p.make(0, p.x))))) for g in found]
    return [g for g in kept if g.patterns]


def _type_patterns(kind: str, with_norm: bool) -> Iterator[Pattern]:
    """Square matrices of a small model, and the pair of a larger one's feed-forward."""
    if TENSOR_TYPES[kind].block_size > 256:
        return
    yield _chain(kind, 768, with_norm)
    yield _pair(kind, 2048, 5632, with_norm)


def _base_patterns(base: str | None, with_norm: bool, accepts: Accepts) -> Iterator[Pattern]:
    """Everything else, in its usual place where the device has the neighbours, and by itself where it has not."""
    covered: set[str] = set()
    if base is not None:
        in_place = [_biased(base, 768, with_norm)]
        for n, m in ((768, 2048), (2048, 5632)):
            in_place += [_fan(base, n, with_norm), _feed_forward(base, n, m, with_norm, residual=True)]
        in_place.append(_feed_forward(base, 768, 2048, with_norm, residual=False))
        for pattern in in_place:
            ops = pattern.make(0, pattern.x)
            if all(map(accepts, ops)):
                covered |= {op.kind for op in ops}
                yield pattern
    for width in (768, 4096):
        for alone in _single(width):
            if alone.make(0, alone.x)[0].kind not in covered:
                yield alone
    for kind in ("Q4_0", "F16", "F32"):
        table = Embedding("embedding", Weight("embedding.weight", TENSOR_TYPES[kind], (8192, 1024)))
        if accepts(table):
            yield Pattern(f"embedding {kind}", 1024, lambda i, x, op=table: (op,), repeatable=False)  # type: ignore[misc]
            return


def _single(width: int) -> Iterator[Pattern]:
    def alone(name: str, make: Callable[[str, Value, Value], Op]) -> Pattern:
        other = Value("other", width)
        return Pattern(f"{name} {width}", width, lambda i, x: (make(f"{name}{i}", x, other),), (other,))

    yield alone("norm", lambda name, x, other: _norm(name, x))
    yield alone("add", lambda name, x, other: Add(name, x, other))
    yield alone("act", lambda name, x, other: GatedActivation(name, x, other))
    yield alone("bias", lambda name, x, other: Bias(name, x, Weight(f"{name}.bias", TENSOR_TYPES["F32"], (width,))))
    yield alone("scale", lambda name, x, other: Scale(name, x, 0.99))
    yield alone("cap", lambda name, x, other: SoftCap(name, x, 30.0))


def _attention_patterns(kv_format: str, accepts: Accepts) -> Iterator[Pattern]:
    """With its ropes, and without, over little and much context; heads of two models."""
    for n_heads, n_kv, dim in ((9, 3, 64), (32, 4, 64), (16, 16, 128)):
        for with_rope in (True, False):
            pattern = _attention(kv_format, n_heads, n_kv, dim, with_rope)
            if with_rope and not all(map(accepts, pattern.make(0, pattern.x)[:2])):
                continue
            yield pattern


def _chain(kind: str, n: int, with_norm: bool) -> Pattern:
    def make(i: int, x: Value) -> Sequence[Op]:
        ops, x = _begin(f"c{n}.{i}", x, with_norm)
        return (*ops, _matmul(f"c{n}.{i}.a", kind, n, x))

    return Pattern(f"matmul {kind} {n}x{n}", n, make, at_footprints=True)


def _pair(kind: str, n: int, m: int, with_norm: bool) -> Pattern:
    def make(i: int, x: Value) -> Sequence[Op]:
        ops, x = _begin(f"p{n}.{i}", x, with_norm)
        up = _matmul(f"p{n}.{i}.a", kind, m, x)
        return (*ops, up, _matmul(f"p{n}.{i}.b", kind, n, up.output))

    return Pattern(f"matmul {kind} {m}x{n} and {n}x{m}", n, make, at_footprints=True)


def _fan(kind: str, n: int, with_norm: bool) -> Pattern:
    def make(i: int, x: Value) -> Sequence[Op]:
        ops, x = _begin(f"f{n}.{i}", x, with_norm)
        a, b = (_matmul(f"f{n}.{i}.{name}", kind, n, x) for name in "ab")
        return (*ops, a, b, Add(f"f{n}.{i}.sum", a.output, b.output))

    return Pattern(f"two matmuls of one input {kind} {n}x{n}", n, make)


def _feed_forward(kind: str, n: int, m: int, with_norm: bool, residual: bool) -> Pattern:
    name = f"{'r' if residual else 'n'}{n}"

    def make(i: int, x: Value) -> Sequence[Op]:
        ops, y = _begin(f"{name}.{i}", x, with_norm)
        gate, up = (_matmul(f"{name}.{i}.{part}", kind, m, y) for part in ("gate", "up"))
        act = GatedActivation(f"{name}.{i}.act", gate.output, up.output)
        down = _matmul(f"{name}.{i}.down", kind, n, act.output)
        last = (Add(f"{name}.{i}.sum", x, down.output),) if residual else ()
        return (*ops, gate, up, act, down, *last)

    return Pattern(f"feed-forward {kind} {n}x{m}{' with residual' if residual else ''}", n, make)


def _biased(kind: str, n: int, with_norm: bool) -> Pattern:
    def make(i: int, x: Value) -> Sequence[Op]:
        ops, x = _begin(f"b{n}.{i}", x, with_norm)
        product = _matmul(f"b{n}.{i}.a", kind, n, x)
        bias = Weight(f"b{n}.{i}.bias", TENSOR_TYPES["F32"], (n,))
        return (*ops, product, Bias(f"b{n}.{i}.biased", product.output, bias))

    return Pattern(f"matmul and bias {kind} {n}x{n}", n, make)


def _attention(kv_format: str, n_heads: int, n_kv: int, dim: int, with_rope: bool) -> Pattern:
    k, v = Value("k", n_kv * dim), Value("v", n_kv * dim)
    frequencies = tuple(10_000.0 ** (-2 * i / dim) for i in range(dim // 2))
    heads = f"{n_heads}h{n_kv}kv{dim}d"

    def make(i: int, x: Value) -> Sequence[Op]:
        kv = KvSpec(f"kv.{heads}.{i}", 1, N_CTX, n_kv, dim, kv_format)
        if not with_rope:
            return (Attention(f"attn{i}", x, k, v, kv, dim**-0.5),)
        q_rope = Rope(f"q_rope{i}", x, dim, "interleaved", frequencies)
        k_rope = Rope(f"k_rope{i}", k, dim, "interleaved", frequencies)
        return (q_rope, k_rope, Attention(f"attn{i}", q_rope.output, k_rope.output, v, kv, dim**-0.5))

    name = f"{'ropes and ' if with_rope else ''}attention {kv_format} {heads}"
    pasts = (0, 32, 256, 1024) if with_rope else (256,)
    return Pattern(name, n_heads * dim, make, (k, v), pasts)


def _begin(name: str, x: Value, with_norm: bool) -> tuple[tuple[Op, ...], Value]:
    norm = _norm(f"{name}.norm", x)
    return ((norm,), norm.output) if with_norm else ((), x)


def _norm(name: str, x: Value) -> RmsNorm:
    return RmsNorm(name, x, Weight(f"{name}.weight", TENSOR_TYPES["F32"], (x.width,)), 1e-5)


def _matmul(name: str, kind: str, n_out: int, x: Value) -> MatMul:
    return MatMul(name, x, Weight(f"{name}.weight", TENSOR_TYPES[kind], (n_out, x.width)))
