"""The meaning of every op: one pure function on float32 arrays each, and `evaluate`, which picks it by the op's type.

Arithmetic is float32 unless a function says otherwise; NaN and inf propagate as IEEE 754 has it;
`evaluate` silences the warnings that NumPy gives for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetrun import ops
from hetrun.device import Batch
from hetrun.errors import DeviceError
from hetrun.reference.arrays import F32Array, I32Array
from hetrun.reference.dequant import StoredWeight
from hetrun.reference.kv import KvCache


def rms_norm(x: F32Array, weight: F32Array, eps: float) -> F32Array:
    """x / sqrt(mean(x^2) + eps) * weight over groups of len(weight).   x: [rows, n_groups * len(weight)]."""
    groups = x.reshape(len(x), x.shape[1] // len(weight), len(weight))
    mean_square = np.mean(groups * groups, axis=-1, keepdims=True, dtype=np.float32)
    return (groups / np.sqrt(mean_square + np.float32(eps)) * weight).reshape(x.shape)


def matmul(x: F32Array, weight: F32Array) -> F32Array:
    """x W^T.   x: [rows, n_in].   weight: [n_out, n_in].   Returns [rows, n_out]."""
    return np.matmul(x, weight.T)


def bias(x: F32Array, weight: F32Array) -> F32Array:
    """x + weight for every row.   x: [rows, width].   weight: [width]."""
    return x + weight


def rope(
    x: F32Array,
    positions: I32Array,
    head_dim: int,
    layout: str,
    frequencies: tuple[float, ...],
    magnitude: float = 1.0,
    max_position: int | None = None,
) -> F32Array:
    """Rotates pairs of each head by position * frequency; elements beyond the pairs pass through.   x: [tokens, width].

    Angles, sines and cosines are float64, rounded to float32 before they are used.
    layout: pair i is elements (2i, 2i + 1) "interleaved", or (i, i + n_pairs) "half".
    max_position: positions beyond it count as it.
    """
    n_pairs = len(frequencies)
    if max_position is not None:
        positions = np.minimum(positions, max_position)
    angles = np.multiply.outer(positions.astype(np.float64), np.array(frequencies, np.float64))
    cos = (magnitude * np.cos(angles)).astype(np.float32)[:, None, :]
    sin = (magnitude * np.sin(angles)).astype(np.float32)[:, None, :]
    pairs = np.arange(n_pairs)
    first, second = (2 * pairs, 2 * pairs + 1) if layout == "interleaved" else (pairs, pairs + n_pairs)
    heads = x.reshape(len(x), x.shape[1] // head_dim, head_dim)
    a, b = heads[:, :, first], heads[:, :, second]
    out = heads.copy()
    out[:, :, first] = a * cos - b * sin
    out[:, :, second] = a * sin + b * cos
    return out.reshape(x.shape)


def visible_positions(position: int, sink: int = 0, window: int = 0) -> I32Array:
    """Positions of the keys that a query sees, ascending.

    Key j is visible iff j <= position and (window == 0 or j < sink or j > position - window).
    """
    if window == 0:
        return np.arange(position + 1)
    recent = max(0, position - window + 1)
    return np.concatenate([np.arange(min(sink, recent)), np.arange(recent, position + 1)])


def softmax(x: F32Array) -> F32Array:
    """exp(x - max) / sum over the last axis; a NaN anywhere makes all of its row NaN."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attend(
    q: F32Array,
    keys: F32Array,
    values: F32Array,
    scale: float,
    cap: float = 0.0,
    sinks: tuple[F32Array, int] | None = None,
) -> F32Array:
    """softmax(scale * q K^T) V of one query token over the keys it sees.

    q: [n_heads, head_dim].   keys, values: [n_keys, n_heads_kv, head_dim].   Returns [n_heads, head_dim].
    Head h reads KV head h // (n_heads / n_heads_kv).   cap: 0 for none, else scores become cap * tanh(score / cap).
    sinks: queries, in the shape of q, that the first so many keys meet instead.
    """
    n_heads_kv, head_dim = keys.shape[1:]
    columns = keys.transpose(1, 2, 0)
    scores = np.matmul(q.reshape(n_heads_kv, -1, head_dim), columns)
    if sinks is not None:
        q_sink, n = sinks
        scores[..., :n] = np.matmul(q_sink.reshape(n_heads_kv, -1, head_dim), columns[..., :n])
    scores *= np.float32(scale)
    if cap > 0:
        scores = soft_cap(scores, cap)
    return np.matmul(softmax(scores), values.transpose(1, 0, 2)).reshape(q.shape)


def attention(
    q: F32Array,
    k: F32Array,
    v: F32Array,
    positions: I32Array,
    slots: I32Array,
    cache: KvCache,
    scale: float,
    cap: float = 0.0,
    q_sink: F32Array | None = None,
) -> F32Array:
    """Writes all keys and values of the batch into the cache, then answers each query on its own.

    q: [tokens, n_heads * head_dim].   k, v: [tokens, n_heads_kv * head_dim].   Returns the shape of q.
    q_sink: what meets the keys of sinks instead of q, in its shape.
    """
    kv = cache.kv
    cache.write(positions, slots, k, v)
    out = np.empty_like(q)
    for i, (position, slot) in enumerate(zip(positions.tolist(), slots.tolist(), strict=True)):
        seen = visible_positions(position, kv.sink, kv.window)
        keys, values = cache.read(slot, seen)
        own = None if q_sink is None else (q_sink[i].reshape(-1, kv.head_dim), int(np.sum(seen < kv.sink)))
        out[i] = attend(q[i].reshape(-1, kv.head_dim), keys, values, scale, cap, own).reshape(-1)
    return out


def silu(x: F32Array) -> F32Array:
    """x / (1 + exp(-x))."""
    return x / (np.float32(1) + np.exp(-x))


def gelu(x: F32Array) -> F32Array:
    """The tanh form: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[F32Array], F32Array]] = {"silu": silu, "gelu": gelu}


def gated_activation(gate: F32Array, up: F32Array, function: str = "silu") -> F32Array:
    """f(gate) * up, elementwise."""
    return ACTIVATIONS[function](gate) * up


def route(scores: F32Array, n_used: int, normalise: bool = True, factor: float = 1.0) -> F32Array:
    """The softmax of each row where it is among the n_used largest (of equal ones the first), 0 elsewhere.

    scores: [rows, n_experts].   normalise: divide by the sum of what is kept.   Times `factor`. A NaN in a row makes
    all of it NaN.
    """
    weights = softmax(scores)
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, :n_used]
    kept = np.zeros_like(weights)
    np.put_along_axis(kept, chosen, np.take_along_axis(weights, chosen, axis=-1), axis=-1)
    if normalise:
        kept = kept / kept.sum(axis=-1, keepdims=True)
    kept = kept * np.float32(factor)
    kept[np.isnan(scores).any(axis=-1)] = np.nan
    return kept


def experts(
    x: F32Array, routes: F32Array, gate: F32Array, up: F32Array, down: F32Array, function: str = "silu"
) -> F32Array:
    """The sum over experts of route * down (f(gate x) * (up x)), over those whose route is not 0, in their order.

    x: [rows, n_in].   routes: [rows, n_experts].   gate, up: [n_experts, n_ff, n_in].   down: [n_experts, n_out, n_ff].
    """
    out = np.zeros((len(x), down.shape[1]), np.float32)
    for expert in range(len(gate)):
        rows = np.flatnonzero(routes[:, expert])
        if rows.size:
            own = x[rows]
            hidden = gated_activation(matmul(own, gate[expert]), matmul(own, up[expert]), function)
            out[rows] += routes[rows, expert, None] * matmul(hidden, down[expert])
    return out


def add(a: F32Array, b: F32Array) -> F32Array:
    """a + b, elementwise."""
    return a + b


def scale(x: F32Array, factor: float) -> F32Array:
    """x * factor, the factor rounded to float32."""
    return x * np.float32(factor)


def soft_cap(x: F32Array, cap: float) -> F32Array:
    """cap * tanh(x / cap)."""
    return np.float32(cap) * np.tanh(x / np.float32(cap))


def select_rows(x: F32Array, outputs: I32Array) -> F32Array:
    """The rows of x whose logits are wanted.   x: [tokens, width].   Returns [len(outputs), width]."""
    return x[outputs]


@dataclass(frozen=True)
class Inputs:
    """What ops read besides their attributes: the batch, and values, weights and caches by name."""

    batch: Batch
    values: Mapping[str, F32Array]
    weights: Mapping[str, StoredWeight]
    caches: Mapping[str, KvCache]

    def value(self, value: ops.Value) -> F32Array:
        return self.values[value.name]

    def weight(self, name: str) -> F32Array:
        return self.weights[name].array

    @property
    def positions(self) -> I32Array:
        return np.asarray(self.batch.positions)


Meaning = Callable[[Any, Inputs], F32Array]

MEANINGS: dict[type[ops.Op], Meaning] = {
    ops.Embedding: lambda op, i: i.weights[op.weight.name].rows(np.asarray(i.batch.tokens)),
    ops.RmsNorm: lambda op, i: rms_norm(i.value(op.x), i.weight(op.weight.name), op.eps),
    ops.MatMul: lambda op, i: matmul(i.value(op.x), i.weight(op.weight.name)),
    ops.Bias: lambda op, i: bias(i.value(op.x), i.weight(op.weight.name)),
    ops.Rope: lambda op, i: rope(
        i.value(op.x), i.positions, op.head_dim, op.layout, op.frequencies, op.magnitude, op.max_position
    ),
    ops.Attention: lambda op, i: attention(
        i.value(op.q),
        i.value(op.k),
        i.value(op.v),
        i.positions,
        np.asarray(i.batch.slots),
        i.caches[op.kv.name],
        op.scale,
        op.soft_cap,
        None if op.q_sink is None else i.value(op.q_sink),
    ),
    ops.GatedActivation: lambda op, i: gated_activation(i.value(op.gate), i.value(op.up), op.function),
    ops.Route: lambda op, i: route(i.value(op.x), op.n_used, op.normalise, op.factor),
    ops.Experts: lambda op, i: experts(
        i.value(op.x),
        i.value(op.routes),
        i.weight(op.gate.name),
        i.weight(op.up.name),
        i.weight(op.down.name),
        op.function,
    ),
    ops.Add: lambda op, i: add(i.value(op.a), i.value(op.b)),
    ops.Scale: lambda op, i: scale(i.value(op.x), op.factor),
    ops.SoftCap: lambda op, i: soft_cap(i.value(op.x), op.cap),
    ops.SelectRows: lambda op, i: select_rows(i.value(op.x), np.asarray(i.batch.outputs)),
}


def evaluate(op: ops.Op, inputs: Inputs) -> F32Array:
    """The op's value: float32 [rows, op.output.width]. An attention also writes its cache.

    DeviceError for an op that is not in the vocabulary.
    """
    meaning = MEANINGS.get(type(op))
    if meaning is None:
        raise DeviceError(f"{op.name}: the reference has no meaning for op {op.kind}")
    with np.errstate(all="ignore"):
        return meaning(op, inputs)
