"""A device that computes as `u280_order` has it, op by op in NumPy: what a run on the engine must be bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import order_device
import u280_order
from order_device import Floats

from hetrun.device import Batch, KvSpec, State
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
)
from hetrun.plugins import Registry
from hetrun.tensor import Weight

DEVICE = "u280-order:0"
_OPS = (Add, Attention, Bias, Embedding, GatedActivation, MatMul, RmsNorm, Rope, Scale, SelectRows)

Constant = u280_order.Weight | Floats


class OrderState:
    def __init__(self, kv: KvSpec) -> None:
        self.cache = u280_order.KvCache(
            kv.n_heads_kv, kv.head_dim, kv.sink, kv.window, kv.n_cells, kv.n_ctx, kv.format == "kv4h"
        )

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        for position in range(n_tokens):
            self.cache.cells[dst_slot, position] = self.cache.cells[src_slot, position]

    def close(self) -> None:
        pass


class U280Arithmetic:
    """The ops and types of the engine."""

    name = "u280-order"

    def takes(self, op: Op) -> bool:
        matrices = op.weights if isinstance(op, (Embedding, MatMul)) else ()
        kept = not isinstance(op, Attention) or op.kv.format in ("kv4", "kv4h")
        return isinstance(op, _OPS) and kept and all(w.type.name in u280_order.TYPES for w in matrices)

    def constant(self, op: Op, weight: Weight, blocks: memoryview) -> Constant:
        if not isinstance(op, (Embedding, MatMul)):
            return np.frombuffer(blocks, np.float32)
        rows = np.frombuffer(blocks, np.uint8).reshape(weight.shape[0], -1)
        return u280_order.Weight.of(weight.type.name, rows)

    def state(self, kv: KvSpec) -> OrderState:
        return OrderState(kv)

    def apply(
        self, op: Op, x: list[Floats], constants: Mapping[str, Constant], states: Mapping[str, State], batch: Batch
    ) -> Floats:
        w = [constants[weight.name] for weight in op.weights]
        match op:
            case Embedding():
                table, tokens = w[0], np.asarray(batch.tokens)
                assert isinstance(table, u280_order.Weight)
                return u280_order.Weight(table.integers[tokens], table.scales[tokens]).values
            case MatMul():
                assert isinstance(w[0], u280_order.Weight)
                return u280_order.matmul(w[0], x[0])
            case RmsNorm(eps=eps):
                assert isinstance(w[0], np.ndarray)
                return u280_order.norm(x[0], w[0], eps, w[0].size)
            case Bias():
                assert isinstance(w[0], np.ndarray)
                return u280_order.flushed(x[0] + w[0])
            case Add():
                return u280_order.flushed(x[0] + x[1])
            case Scale(factor=factor):
                return u280_order.flushed(x[0] * np.float32(factor))
            case GatedActivation():
                return u280_order.silu_times(x[0], x[1])
            case SelectRows():
                return x[0][np.asarray(batch.outputs, np.int64)]
            case Rope():
                return _rope(op, x[0], batch)
            case Attention():
                return _attention(op, x, states[op.kv.name], batch)
        raise NotImplementedError(op.kind)


def _attention(op: Attention, x: list[Floats], state: State, batch: Batch) -> Floats:
    assert isinstance(state, OrderState)
    q, k, v, *q_sink = x
    places = list(zip(batch.slots, batch.positions, strict=True))
    for row, (slot, position) in enumerate(places):
        state.cache.write(slot, position, k[row], v[row])
    out = np.empty_like(q)
    for row, (slot, position) in enumerate(places):
        of_sinks = q_sink[0][row] if q_sink else None
        out[row] = state.cache.attend(slot, position, q[row], op.scale, of_sinks)
    return out


def _rope(op: Rope, x: Floats, batch: Batch) -> Floats:
    positions = np.asarray(batch.positions, np.int64)
    if op.max_position is not None:
        positions = np.minimum(positions, op.max_position)
    angles = np.outer(positions.astype(np.float64), np.array(op.frequencies))
    cos, sin = ((f(angles) * op.magnitude).astype(np.float32) for f in (np.cos, np.sin))
    return u280_order.rope(x, cos, sin, op.head_dim, op.layout == "half")


def registry() -> Registry:
    """The plugins that are installed, and this device's."""
    return order_device.registry(U280Arithmetic())
