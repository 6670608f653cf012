"""A device that computes op by op in NumPy, as an engine is defined: what a run on the engine must be bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
from hetrun.hookspecs import hookimpl
from hetrun.ops import Op, Value
from hetrun.plugins import Plugin, Registry
from hetrun.reference.device import ReferenceBuffer
from hetrun.tensor import Weight

_COST = Cost(1.0, "analytic:never chosen on its own")

Floats = npt.NDArray[np.float32]


class Arithmetic(Protocol):
    """What an engine makes of ops.   name: of the device, which is NAME:0."""

    name: str

    def takes(self, op: Op) -> bool: ...

    def constant(self, op: Op, weight: Weight, blocks: memoryview) -> Any:
        """A weight as `apply` wants it. Made once for all ops and phases that read it."""

    def state(self, kv: KvSpec) -> State: ...

    def apply(
        self, op: Op, x: list[Floats], constants: Mapping[str, Any], states: Mapping[str, State], batch: Batch
    ) -> Floats:
        """The op's value.   x: its inputs.   constants: by the weight's name.   states: by the KvSpec's."""


@dataclass(frozen=True)
class OrderProgram:
    segment: Segment
    resident: Mapping[tuple[str, str], int]


class OrderDriver:
    """The ops of an engine, on the host's memory."""

    api_version = API_VERSION

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.name = arithmetic.name
        self._arithmetic = arithmetic

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        spaces = (MemorySpace("host", 1 << 40),)
        return [DeviceInfo(f"{self.name}:0", "The engine's order in NumPy", "emulated", spaces, _COST, {})]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        return _COST if self._arithmetic.takes(op) else Unsupported("the engine has no such op")

    def compile(self, info: DeviceInfo, segment: Segment) -> OrderProgram:
        return OrderProgram(segment, {})

    def open(self, info: DeviceInfo) -> OrderDevice:
        return OrderDevice(self._arithmetic)


class OrderDevice:
    def __init__(self, arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic
        self._constants: dict[str, Any] = {}

    def alloc(self, nbytes: int) -> ReferenceBuffer:
        return ReferenceBuffer(nbytes, 64)

    def state(self, kv: KvSpec) -> State:
        return self._arithmetic.state(kv)

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> OrderExecutable:
        for op in program.segment.ops:
            for weight in op.weights:
                if weight.name not in self._constants:
                    constant = self._arithmetic.constant(op, weight, weights[weight.name])
                    self._constants[weight.name] = constant
        return OrderExecutable(self._arithmetic, program.segment, self._constants, bindings)

    def synchronize(self) -> Sequence[RunEvent]:
        return []

    def close(self) -> None:
        self._constants = {}


class OrderExecutable:
    def __init__(
        self, arithmetic: Arithmetic, segment: Segment, constants: Mapping[str, Any], bindings: Bindings
    ) -> None:
        self._arithmetic, self._segment = arithmetic, segment
        self._constants, self._bindings = constants, bindings

    def run(self, batch: Batch) -> None:
        made = {v.name: self._rows(v, batch) for v in self._segment.inputs}
        for op in self._segment.ops:
            inputs = [made[v.name] for v in op.inputs]
            if batch.rows(op.output.rows):
                made[op.name] = self._arithmetic.apply(op, inputs, self._constants, self._bindings.states, batch)
            else:
                made[op.name] = np.empty((0, op.output.width), np.float32)
        for value in self._segment.outputs:
            self._rows(value, batch)[:] = made[value.name]

    def _rows(self, value: Value, batch: Batch) -> Floats:
        """The rows that a batch uses, [rows, width]."""
        rows = batch.rows(value.rows)
        view = self._bindings.values[value.name].host_view()
        assert view is not None
        return np.frombuffer(view, np.float32, count=rows * value.width).reshape(rows, value.width)

    def close(self) -> None:
        pass


class _OrderPlugin:
    def __init__(self, arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic

    @hookimpl
    def hetrun_drivers(self) -> Sequence[OrderDriver]:
        return [OrderDriver(self._arithmetic)]


def registry(arithmetic: Arithmetic) -> Registry:
    """The plugins that are installed, and this device's."""
    found = Registry.load()
    found.add(Plugin(arithmetic.name, __name__), lambda: _OrderPlugin(arithmetic))
    return found
