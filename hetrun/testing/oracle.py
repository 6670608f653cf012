"""What every op means, in float64 formulas as plain as they can be. The oracle of the conformance kit.

It remembers keys and values by position, without cells, rings or formats: a device's cache must behave as if it did so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from hetrun.device import Batch
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    Experts,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Route,
    Scale,
    SelectRows,
    SoftCap,
)

# To the type checker arrays are Any: NumPy's stubs differ from release to release in what arithmetic returns.
Matrix: TypeAlias = Any  # float64 [rows, width]


class Oracle:
    """Runs ops on float64 matrices. weights: values by name."""

    def __init__(self, weights: Mapping[str, Matrix]) -> None:
        self._weights = weights
        self._history: dict[tuple[str, int], dict[int, tuple[Matrix, Matrix]]] = {}

    def run(self, ops: Sequence[Op], inputs: Mapping[str, Matrix], batch: Batch) -> dict[str, Matrix]:
        """Every value, the inputs included, by name.   Each [rows, width]."""
        values = {name: np.asarray(value, np.float64) for name, value in inputs.items()}
        with np.errstate(all="ignore"):  # NaN is one of the things that are tested
            for op in ops:
                values[op.name] = self._apply(op, [values[v.name] for v in op.inputs], batch)
        return values

    def copy(self, kv: KvSpec, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        """The meaning of `State.copy`."""
        src = self._history[kv.name, src_slot]
        self._history[kv.name, dst_slot] = {position: src[position] for position in range(n_tokens)}

    def _apply(self, op: Op, x: list[Matrix], batch: Batch) -> Matrix:
        w = [self._weights[weight.name] for weight in op.weights]
        match op:
            case Embedding():
                return w[0][np.asarray(batch.tokens)]
            case RmsNorm(eps=eps):
                groups = x[0].reshape(x[0].shape[0], -1, w[0].size)
                root = np.sqrt(np.mean(groups**2, axis=-1, keepdims=True) + eps)
                return (groups / root * w[0]).reshape(x[0].shape)
            case MatMul():
                return x[0] @ w[0].T
            case Bias():
                return x[0] + w[0]
            case Rope():
                return rope(op, x[0], np.asarray(batch.positions, np.float64))
            case Attention():
                return self._attention(op, x, batch)
            case GatedActivation(function=function):
                return activation(x[0], function) * x[1]
            case Route():
                return np.stack([route(op, row) for row in x[0]]) if len(x[0]) else x[0]
            case Experts(function=function):
                by_expert = [activation(x[0] @ g.T, function) * (x[0] @ u.T) @ d.T for g, u, d in zip(*w, strict=True)]
                return sum(np.where(r[:, None] == 0, 0, r[:, None] * y) for r, y in zip(x[1].T, by_expert, strict=True))
            case Add():
                return x[0] + x[1]
            case Scale(factor=factor):
                return x[0] * factor
            case SoftCap(cap=cap):
                return cap * np.tanh(x[0] / cap)
            case SelectRows():
                return x[0][np.asarray(batch.outputs, np.int64)]
        raise NotImplementedError(op.kind)

    def _attention(self, op: Attention, x: list[Matrix], batch: Batch) -> Matrix:
        q, k, v, q_sink = (*x, x[0])[:4]
        heads_kv = (op.kv.n_heads_kv, op.kv.head_dim)
        for row, (slot, position) in enumerate(zip(batch.slots, batch.positions, strict=True)):
            history = self._history.setdefault((op.kv.name, slot), {})
            history[position] = (k[row].reshape(heads_kv), v[row].reshape(heads_kv))
        out = np.empty_like(q)
        for row, (slot, position) in enumerate(zip(batch.slots, batch.positions, strict=True)):
            history = self._history[op.kv.name, slot]
            seen = [j for j in range(position + 1) if is_visible(op.kv, position, j)]
            keys, values = (np.stack(part) for part in zip(*(history[j] for j in seen), strict=True))
            is_sink = np.array(seen) < op.kv.sink
            queries, sink_queries = (m[row].reshape(op.n_heads, op.kv.head_dim) for m in (q, q_sink))
            for head in range(op.n_heads):
                head_kv = head * op.kv.n_heads_kv // op.n_heads
                head_keys = keys[:, head_kv]
                scores = op.scale * np.where(is_sink, head_keys @ sink_queries[head], head_keys @ queries[head])
                if op.soft_cap:
                    scores = op.soft_cap * np.tanh(scores / op.soft_cap)
                weights = np.exp(scores - scores.max())
                cut = slice(head * op.kv.head_dim, (head + 1) * op.kv.head_dim)
                out[row, cut] = weights @ values[:, head_kv] / weights.sum()
        return out


def activation(x: Matrix, function: str) -> Matrix:
    """What a gate goes through, elementwise."""
    if function == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def route(op: Route, scores: Matrix) -> Matrix:
    """One row's weights of the experts.   scores: [n_experts]."""
    weights = np.exp(scores - scores.max())
    weights = weights / weights.sum()
    chosen = sorted(range(len(scores)), key=lambda e: -scores[e])[: op.n_used]
    kept = np.array([weights[e] if e in chosen or np.isnan(weights[e]) else 0 for e in range(len(scores))])
    return op.factor * kept / (kept.sum() if op.normalise else 1)


def is_visible(kv: KvSpec, query: int, key: int) -> bool:
    """Whether the query at position `query` sees the key at position `key`."""
    return key <= query and (kv.window == 0 or key < kv.sink or key > query - kv.window)


def rope(op: Rope, x: Matrix, positions: Matrix) -> Matrix:
    """x with the pairs of each head rotated.   x: [tokens, width].   positions: [tokens]."""
    n_pairs = len(op.frequencies)
    if op.max_position is not None:
        positions = np.minimum(positions, op.max_position)
    heads = x.reshape(len(x), -1, op.head_dim).copy()
    pairs = np.arange(n_pairs)
    first, second = (2 * pairs, 2 * pairs + 1) if op.layout == "interleaved" else (pairs, pairs + n_pairs)
    rotation = op.magnitude * np.exp(1j * np.outer(positions, op.frequencies))[:, None, :]
    turned = (heads[..., first] + 1j * heads[..., second]) * rotation
    heads[..., first], heads[..., second] = turned.real, turned.imag
    return heads.reshape(x.shape)


def nmse(actual: Matrix, expected: Matrix) -> float:
    """Squared error over squared signal, both summed over all elements; infinity where `actual` is not finite."""
    difference = np.asarray(actual, np.float64) - expected
    if not np.isfinite(difference).all():
        return float("inf")
    error, signal = float(np.sum(difference**2)), float(np.sum(np.asarray(expected, np.float64) ** 2))
    return error / signal if signal else (0.0 if error == 0 else float("inf"))
