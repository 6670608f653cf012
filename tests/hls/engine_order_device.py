"""A device that computes as `engine_order` has it, in NumPy alone: what a run on the engine must be bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import engine_order
import numpy as np
import numpy.typing as npt

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
    State,
    Unsupported,
    Workload,
)
from hetrun.errors import DeviceError
from hetrun.hookspecs import hookimpl
from hetrun.ops import GatedActivation, MatMul, Op, Value
from hetrun.plugins import Plugin, Registry
from hetrun.reference.device import ReferenceBuffer
from hetrun.tensor import Weight

DEVICE = "engine-order:0"
_COST = Cost(1.0, "analytic:never chosen on its own")


@dataclass(frozen=True)
class OrderProgram:
    segment: Segment
    resident: Mapping[tuple[str, str], int]


class OrderDriver:
    """Matmuls of the engine's formats and its activation, on the host's memory."""

    name = "engine-order"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        spaces = (MemorySpace("host", 1 << 40),)
        return [DeviceInfo(DEVICE, "The engine's order in NumPy", "emulated", spaces, _COST, {})]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        if isinstance(op, MatMul) and op.weight.type.name in engine_order.TYPES:
            return _COST
        if isinstance(op, GatedActivation) and op.function == "silu":
            return _COST
        return Unsupported("the engine has no such op")

    def compile(self, info: DeviceInfo, segment: Segment) -> OrderProgram:
        return OrderProgram(segment, {})

    def open(self, info: DeviceInfo) -> OrderDevice:
        return OrderDevice()


class OrderDevice:
    def __init__(self) -> None:
        self._matrices: dict[str, engine_order.Matrix] = {}

    def alloc(self, nbytes: int) -> ReferenceBuffer:
        return ReferenceBuffer(nbytes, 64)

    def state(self, kv: KvSpec) -> State:
        raise DeviceError("it has no attention")

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> OrderExecutable:
        segment = program.segment
        matrices = {op.name: self._matrix(op.weight, weights) for op in segment.ops if isinstance(op, MatMul)}
        return OrderExecutable(segment, matrices, bindings)

    def _matrix(self, weight: Weight, weights: Mapping[str, memoryview]) -> engine_order.Matrix:
        if weight.name not in self._matrices:  # phases share them
            blocks = np.frombuffer(weights[weight.name], np.uint8).reshape(weight.shape[0], -1)
            self._matrices[weight.name] = engine_order.Matrix(weight.type.name, blocks)
        return self._matrices[weight.name]

    def synchronize(self) -> Sequence[RunEvent]:
        return []

    def close(self) -> None:
        self._matrices = {}


class OrderExecutable:
    def __init__(self, segment: Segment, matrices: Mapping[str, engine_order.Matrix], bindings: Bindings) -> None:
        self._segment, self._matrices, self._bindings = segment, matrices, bindings

    def run(self, batch: Batch) -> None:
        made: dict[str, npt.NDArray[np.float32]] = {}
        for op in self._segment.ops:
            inputs = [made[v.name] if v.name in made else self._rows(v, batch) for v in op.inputs]
            if isinstance(op, MatMul):
                made[op.name] = self._matrices[op.name].multiply(*inputs)
            else:
                made[op.name] = engine_order.silu_times(*inputs)
        for value in self._segment.outputs:
            self._rows(value, batch)[:] = made[value.name]

    def _rows(self, value: Value, batch: Batch) -> npt.NDArray[np.float32]:
        """The rows that a batch uses, [rows, width]."""
        rows = batch.rows(value.rows)
        view = self._bindings.values[value.name].host_view()
        assert view is not None
        return np.frombuffer(view, np.float32, count=rows * value.width).reshape(rows, value.width)

    def close(self) -> None:
        pass


@hookimpl
def hetrun_drivers() -> Sequence[OrderDriver]:
    return [OrderDriver()]


def registry() -> Registry:
    """The plugins that are installed, and this one."""
    found = Registry.load()
    found.add(Plugin("engine-order", __name__), lambda: sys.modules[__name__])
    return found
