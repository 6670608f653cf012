"""The calibration text through the model, op by op, all tokens at once: what each matmul reads can be looked at, and
its weight replaced, before it runs. So every layer sees what the compressed layers before it make.

Ops mean what the reference says they mean, in float32; attention alone has its own form here, a window at a time, as
the reference's goes token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hetrun.compress.encode import Array
from hetrun.device import Batch
from hetrun.graph.graph import Graph
from hetrun.ops import Attention, MatMul, Op
from hetrun.reference.dequant import StoredWeight
from hetrun.reference.ops import Inputs, evaluate, softmax
from hetrun.tensor import Weight

BeforeMatmul = Callable[[MatMul, Array], None]
"""Called with a matmul and its input, float32 [n_tokens, n_in], before its weight is fetched."""

Fetch = Callable[[Weight], StoredWeight]


def run(graph: Graph, windows: Sequence[Sequence[int]], fetch: Fetch, before: BeforeMatmul, last: Op) -> None:
    """Runs the graph's ops up to `last`, over windows of equal length, each from an empty context.

    A value lives until its last reader has run: at most what one layer holds of all tokens.
    """
    length = len(windows[0])
    tokens = [t for window in windows for t in window]
    slots = [i for i in range(len(windows)) for _ in range(length)]
    batch = Batch.of(tokens, list(range(length)) * len(windows), slots, range(len(tokens)))
    readers: dict[str, int] = {}
    for op in graph.ops:
        for value in op.inputs:
            readers[value.name] = readers.get(value.name, 0) + 1
    values: dict[str, Array] = {}
    for op in graph.ops:
        if isinstance(op, MatMul):
            before(op, values[op.x.name])
        if op is last:
            return
        if isinstance(op, Attention):
            values[op.name] = attention(op, [values[v.name] for v in op.inputs], length)
        else:
            values[op.name] = evaluate(op, Inputs(batch, values, {w.name: fetch(w) for w in op.weights}, {}))
        for value in op.inputs:
            readers[value.name] -= 1
            if not readers[value.name]:
                values.pop(value.name, None)


def attention(op: Attention, inputs: Sequence[Array], length: int) -> Array:
    """softmax(scale * q K^T) V over the visible keys of each window of `length` tokens.   inputs: those of the op,
    [n_tokens, width].
    """
    q, k, v, *q_sink = inputs
    kv = op.kv
    positions = np.arange(length)
    query, key = positions[:, None], positions[None, :]
    hidden = key > query
    if kv.window:
        hidden |= (key >= kv.sink) & (key <= query - kv.window)
    out = np.empty_like(q)
    for first in range(0, len(q), length):
        rows = slice(first, first + length)
        keys, values = (x[rows].reshape(length, kv.n_heads_kv, 1, kv.head_dim) for x in (k, v))
        columns = keys.transpose(1, 2, 3, 0)
        queries, *sink_queries = (
            x[rows].reshape(length, kv.n_heads_kv, -1, kv.head_dim).transpose(1, 2, 0, 3) for x in (q, *q_sink)
        )
        scores = queries @ columns
        if sink_queries:
            scores[..., : kv.sink] = sink_queries[0] @ columns[..., : kv.sink]
        scores *= np.float32(op.scale)
        if op.soft_cap:
            scores = np.float32(op.soft_cap) * np.tanh(scores / np.float32(op.soft_cap))
        scores[..., hidden] = -np.inf
        mixed = softmax(scores) @ values.transpose(1, 2, 0, 3)
        out[rows] = mixed.transpose(2, 0, 1, 3).reshape(length, -1)
    return out
