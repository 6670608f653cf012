"""A hetrun device in one module: a pretended card that multiplies matrices in memory of its own.

The host cannot address that memory, so values are copied in and out, and all other ops stay on other devices. Copy this
file, put your hardware where NumPy stands, and let the conformance kit tell you what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hetrun.device import (
    API_VERSION,
    Batch,
    Bindings,
    Cost,
    DeviceInfo,
    Link,
    MemorySpace,
    RunEvent,
    Segment,
    Unsupported,
    Workload,
    roofline,
)
from hetrun.errors import AllocationError, DeviceError
from hetrun.hookspecs import hookimpl
from hetrun.ops import KvSpec, MatMul, Op
from hetrun.tensor import Weight

ID = "example:0"
MEMORY = f"{ID}/memory"
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
BASIS = "analytic:invented for the example"


@hookimpl
def hetrun_drivers() -> list[ExampleDriver]:
    return [ExampleDriver()]


@dataclass(frozen=True)
class ExampleProgram:
    """Nothing to compile here: hardware would keep its descriptors in this place."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]


class ExampleDriver:
    """The pure half: what there is, what it costs, what it refuses. Only `open` touches the device."""

    name = "example"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        bus = Link(latency_s=10e-6, bytes_per_s=4e9, basis=BASIS)
        return [
            DeviceInfo(
                id=ID,
                description="A pretended card that multiplies matrices",
                backing="emulated",
                spaces=(MemorySpace(MEMORY, capacity_bytes=1 << 30, upload=bus, download=bus),),
                launch=Cost(20e-6, BASIS),
                model={"flops_per_s": 20e9, "bytes_per_s": 10e9},
            )
        ]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        if not isinstance(op, MatMul):
            return Unsupported(f"the example multiplies matrices only, it has no {op.kind}")
        if op.weight.type.name not in TYPES:
            return Unsupported(f"the example reads no {op.weight.type} weights")
        return replace(roofline(op, workload, info, BASIS), resident=_resident(op))

    def compile(self, info: DeviceInfo, segment: Segment) -> ExampleProgram:
        return ExampleProgram(segment, {k: n for op in segment.ops for k, n in _resident(op).items()})

    def open(self, info: DeviceInfo) -> ExampleDevice:
        return ExampleDevice(info.spaces[0].capacity_bytes)


def _resident(op: Op) -> dict[tuple[str, str], int]:
    """Weights are kept as float32 here. Packing may depend on the weight alone: another op may share it."""
    return {(MEMORY, w.name): 4 * w.n_elements for w in op.weights}


class ExampleBuffer:
    """A value in the card's memory. The host has no view of it."""

    def __init__(self, device: ExampleDevice, nbytes: int) -> None:
        self.nbytes = nbytes
        self._device = device
        device.take(nbytes)
        self._data: np.ndarray | None = np.zeros(nbytes, np.uint8)

    @property
    def data(self) -> np.ndarray:
        self._device.check_open()
        if self._data is None:
            raise DeviceError(f"{ID}: the buffer is closed")
        return self._data

    def write(self, data: memoryview, offset: int = 0) -> None:
        self._check(offset, data.nbytes)
        self.data[offset : offset + data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, out: memoryview, offset: int = 0) -> None:
        self._check(offset, out.nbytes)
        np.frombuffer(out, np.uint8)[:] = self.data[offset : offset + out.nbytes]

    def host_view(self) -> memoryview | None:
        return None

    def close(self) -> None:
        if self._data is not None:
            self._data = None
            self._device.give_back(self.nbytes)

    def _check(self, offset: int, nbytes: int) -> None:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a buffer of {self.nbytes}")


class ExampleExecutable:
    """A segment with its weights and buffers: the matmuls of a run, one after the other."""

    def __init__(
        self, device: ExampleDevice, segment: Segment, weights: Sequence[CardWeight], bindings: Bindings
    ) -> None:
        self._device, self._segment, self._values = device, segment, bindings.values
        self._weights = {w.name: w for w in weights}
        self._closed = False

    def run(self, batch: Batch) -> None:
        self._device.check_open()
        if self._closed:
            raise DeviceError(f"{ID}: {self._segment.name} is closed")
        if batch.n_tokens > self._segment.max_tokens or batch.n_outputs > self._segment.max_outputs:
            raise DeviceError(f"{ID}: {self._segment.name} takes at most {self._segment.max_tokens} tokens")
        start = time.perf_counter()
        values = {v.name: self._rows(v.name, batch.rows(v.rows), v.width) for v in self._segment.inputs}
        for op in self._segment.ops:
            values[op.name] = values[op.inputs[0].name] @ self._weights[op.weights[0].name].values.T
        for v in self._segment.outputs:
            self._rows(v.name, batch.rows(v.rows), v.width)[:] = values[v.name]
        seconds = time.perf_counter() - start
        self._device.events.append(RunEvent(self._segment.name, seconds, "measured:NumPy on the host"))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for weight in self._weights.values():
                self._device.drop(weight)

    def _rows(self, name: str, rows: int, width: int) -> np.ndarray:
        return self._values[name].data[: 4 * rows * width].view(np.float32).reshape(rows, width)


@dataclass
class CardWeight:
    """A weight in the card's memory, shared by the executables that name it."""

    name: str
    values: np.ndarray
    users: int = 0


class ExampleDevice:
    """The open card: its memory and its events."""

    def __init__(self, capacity_bytes: int) -> None:
        self._free_bytes = capacity_bytes
        self._open = True
        self.events: list[RunEvent] = []
        self._weights: dict[str, CardWeight] = {}

    def alloc(self, nbytes: int) -> ExampleBuffer:
        self.check_open()
        return ExampleBuffer(self, nbytes)

    def state(self, kv: KvSpec) -> ExampleBuffer:
        self.check_open()
        raise DeviceError(f"{ID}: {kv.name}: the example has no attention")

    def load(self, program: ExampleProgram, weights: Mapping[str, memoryview], bindings: Bindings) -> ExampleExecutable:
        self.check_open()
        needed = {w.name: w for op in program.segment.ops for w in op.weights}
        for name, weight in needed.items():
            if name not in weights or weights[name].nbytes != weight.nbytes:
                raise DeviceError(f"{ID}: {name} is missing or not {weight.nbytes} bytes long")
        loaded = [self._card_weight(weight, weights[name]) for name, weight in needed.items()]
        return ExampleExecutable(self, program.segment, loaded, bindings)

    def _card_weight(self, weight: Weight, blocks: memoryview) -> CardWeight:
        if weight.name not in self._weights:
            self.take(4 * weight.n_elements)
            self._weights[weight.name] = CardWeight(weight.name, _values(weight, blocks))
        self._weights[weight.name].users += 1
        return self._weights[weight.name]

    def drop(self, weight: CardWeight) -> None:
        weight.users -= 1
        if weight.users == 0 and self._open:
            del self._weights[weight.name]
            self.give_back(weight.values.nbytes)

    def synchronize(self) -> Sequence[RunEvent]:
        self.check_open()
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self._open = False
        self._weights.clear()

    def check_open(self) -> None:
        if not self._open:
            raise DeviceError(f"{ID} is closed")

    def take(self, nbytes: int) -> None:
        if nbytes > self._free_bytes:
            raise AllocationError(f"{ID}: {nbytes} bytes asked for, {self._free_bytes} free", remedy="place less on it")
        self._free_bytes -= nbytes

    def give_back(self, nbytes: int) -> None:
        self._free_bytes += nbytes


def _values(weight: Weight, blocks: memoryview) -> np.ndarray:
    # Imported here: "hetrun devices" loads every plugin, and this package takes 0.3 s.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(blocks, np.uint8).reshape(weight.shape[0], -1)
    return dequantize(rows, GGMLQuantizationType[weight.type.name]).reshape(weight.shape)
