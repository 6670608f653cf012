"""A device that computes as `u280_order` has it, op by op in NumPy: what a run on the engine must be bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import u280_order

from hetrun.device import (
    API_VERSION,
    Batch,
    Bindings,
    Cost,
    DeviceInfo,
    KvSpec,
    MemorySpace,
    Program,
    RunEvent,
    Segment,
    Unsupported,
    Workload,
)
from hetrun.hookspecs import hookimpl
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
from hetrun.plugins import Plugin, Registry
from hetrun.reference.device import ReferenceBuffer
from hetrun.tensor import Weight

DEVICE = "u280-order:0"
_COST = Cost(1.0, "analytic:never chosen on its own")
_OPS = (Add, Attention, Bias, Embedding, GatedActivation, MatMul, RmsNorm, Rope, Scale, SelectRows)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OrderProgram:
    segment: Segment
    resident: Mapping[tuple[str, str], int]


class OrderDriver:
    """The ops and types of the engine, on the host's memory."""

    name = "u280-order"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        spaces = (MemorySpace("host", 1 << 40),)
        return [DeviceInfo(DEVICE, "The U280 engine's order in NumPy", "emulated", spaces, _COST, {})]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        matrices = op.weights if isinstance(op, (Embedding, MatMul)) else ()
        kept = not isinstance(op, Attention) or op.kv.format in ("kv4", "kv4h")
        if isinstance(op, _OPS) and kept and all(w.type.name in u280_order.TYPES for w in matrices):
            return _COST
        return Unsupported("the engine has no such op")

    def compile(self, info: DeviceInfo, segment: Segment) -> OrderProgram:
        return OrderProgram(segment, {})

    def open(self, info: DeviceInfo) -> OrderDevice:
        return OrderDevice()


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


class OrderDevice:
    def __init__(self) -> None:
        self._matrices: dict[str, u280_order.Weight] = {}

    def alloc(self, nbytes: int) -> ReferenceBuffer:
        return ReferenceBuffer(nbytes, 64)

    def state(self, kv: KvSpec) -> OrderState:
        return OrderState(kv)

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> OrderExecutable:
        constants: dict[str, u280_order.Weight | Floats] = {}
        for op in program.segment.ops:
            for weight in op.weights:
                matrix = isinstance(op, (Embedding, MatMul))
                constants[weight.name] = (
                    self._matrix(weight, weights) if matrix else np.frombuffer(weights[weight.name], np.float32)
                )
        return OrderExecutable(program.segment, constants, bindings)

    def _matrix(self, weight: Weight, weights: Mapping[str, memoryview]) -> u280_order.Weight:
        if weight.name not in self._matrices:  # phases share them
            rows = np.frombuffer(weights[weight.name], np.uint8).reshape(weight.shape[0], -1)
            self._matrices[weight.name] = u280_order.Weight.of(weight.type.name, rows)
        return self._matrices[weight.name]

    def synchronize(self) -> Sequence[RunEvent]:
        return []

    def close(self) -> None:
        self._matrices = {}


class OrderExecutable:
    def __init__(
        self, segment: Segment, constants: Mapping[str, u280_order.Weight | Floats], bindings: Bindings
    ) -> None:
        self._segment, self._constants, self._bindings = segment, constants, bindings

    def run(self, batch: Batch) -> None:
        made = {v.name: self._rows(v, batch) for v in self._segment.inputs}
        for op in self._segment.ops:
            made[op.name] = self._apply(op, [made[v.name] for v in op.inputs], batch)
        for value in self._segment.outputs:
            self._rows(value, batch)[:] = made[value.name]

    def _apply(self, op: Op, x: list[Floats], batch: Batch) -> Floats:
        w = [self._constants[weight.name] for weight in op.weights]
        if not batch.rows(op.output.rows):
            return np.empty((0, op.output.width), np.float32)
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
                return self._attention(op, x, batch)
        raise NotImplementedError(op.kind)

    def _attention(self, op: Attention, x: list[Floats], batch: Batch) -> Floats:
        state = self._bindings.states[op.kv.name]
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

    def _rows(self, value: Value, batch: Batch) -> Floats:
        """The rows that a batch uses, [rows, width]."""
        rows = batch.rows(value.rows)
        view = self._bindings.values[value.name].host_view()
        assert view is not None
        return np.frombuffer(view, np.float32, count=rows * value.width).reshape(rows, value.width)

    def close(self) -> None:
        pass


def _rope(op: Rope, x: Floats, batch: Batch) -> Floats:
    positions = np.asarray(batch.positions, np.int64)
    if op.max_position is not None:
        positions = np.minimum(positions, op.max_position)
    angles = np.outer(positions.astype(np.float64), np.array(op.frequencies))
    cos, sin = ((f(angles) * op.magnitude).astype(np.float32) for f in (np.cos, np.sin))
    return u280_order.rope(x, cos, sin, op.head_dim, op.layout == "half")


@hookimpl
def hetrun_drivers() -> Sequence[OrderDriver]:
    return [OrderDriver()]


def registry() -> Registry:
    """The plugins that are installed, and this one."""
    found = Registry.load()
    found.add(Plugin("u280-order", __name__), lambda: sys.modules[__name__])
    return found
