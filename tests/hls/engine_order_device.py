"""A device that computes as `engine_order` has it, in NumPy alone: what a run on the engine must be bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import engine_order
import numpy as np
import order_device
from order_device import Floats

from hetrun.device import Batch, KvSpec, State
from hetrun.errors import DeviceError
from hetrun.ops import GatedActivation, MatMul, Op
from hetrun.plugins import Registry
from hetrun.tensor import Weight

DEVICE = "engine-order:0"


class EngineArithmetic:
    """Matmuls of the engine's formats and its activation."""

    name = "engine-order"

    def takes(self, op: Op) -> bool:
        if isinstance(op, MatMul):
            return op.weight.type.name in engine_order.TYPES
        return isinstance(op, GatedActivation) and op.function == "silu"

    def constant(self, op: Op, weight: Weight, blocks: memoryview) -> engine_order.Matrix:
        rows = np.frombuffer(blocks, np.uint8).reshape(weight.shape[0], -1)
        return engine_order.Matrix(weight.type.name, rows)

    def state(self, kv: KvSpec) -> State:
        raise DeviceError("it has no attention")

    def apply(
        self,
        op: Op,
        x: list[Floats],
        constants: Mapping[str, engine_order.Matrix],
        states: Mapping[str, State],
        batch: Batch,
    ) -> Floats:
        if isinstance(op, MatMul):
            return constants[op.weight.name].multiply(*x)
        return engine_order.silu_times(*x)


def registry() -> Registry:
    """The plugins that are installed, and this device's."""
    return order_device.registry(EngineArithmetic())
