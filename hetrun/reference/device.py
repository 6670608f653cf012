"""The reference as a device: buffers and KV states in host memory, and runs that are finished when they return."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar
from weakref import WeakSet, WeakValueDictionary

import numpy as np

from hetrun.device import Batch, Bindings, Buffer, DeviceInfo, Program, RunEvent, State, StepTimes
from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import Attention, Embedding, KvSpec, Value
from hetrun.reference.arrays import F32Array
from hetrun.reference.blas import one_thread
from hetrun.reference.dequant import StoredWeight
from hetrun.reference.kv import KvCache
from hetrun.reference.ops import Inputs, evaluate
from hetrun.reference.program import KV_STORED_AS, ReferenceProgram
from hetrun.tensor import Weight

T = TypeVar("T")

RUN_BASIS = "measured:reference"


class ReferenceBuffer:
    """Bytes on the host, aligned as the device's space asks."""

    def __init__(self, nbytes: int, alignment_bytes: int) -> None:
        block = np.zeros(nbytes + alignment_bytes, np.uint8)
        skip = -block.__array_interface__["data"][0] % alignment_bytes
        self._view: memoryview | None = block[skip : skip + nbytes].data
        self.nbytes = nbytes

    def write(self, data: memoryview, offset: int = 0) -> None:
        view, source = self._bytes(), _flat(data)
        self._check_range(offset, source.nbytes)
        view[offset : offset + source.nbytes] = source

    def read(self, out: memoryview, offset: int = 0) -> None:
        view, target = self._bytes(), _flat(out)
        self._check_range(offset, target.nbytes)
        target[:] = view[offset : offset + target.nbytes]

    def host_view(self) -> memoryview:
        return self._bytes()

    def close(self) -> None:
        self._view = None

    def _bytes(self) -> memoryview:
        if self._view is None:
            raise DeviceError("a buffer of the reference was used after it, or its device, was closed")
        return self._view

    def _check_range(self, offset: int, nbytes: int) -> None:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a buffer of {self.nbytes}")


def _flat(data: memoryview) -> memoryview:
    """The bytes of a contiguous view; Python casts no view of zero rows."""
    return data.cast("B") if data.nbytes else memoryview(bytearray())


class ReferenceState:
    """The KV cache of one KvSpec."""

    def __init__(self, kv: KvSpec) -> None:
        self._cache: KvCache | None = KvCache(kv)

    @property
    def cache(self) -> KvCache:
        if self._cache is None:
            raise DeviceError("a KV state of the reference was used after it, or its device, was closed")
        return self._cache

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        """DeviceError for a slot or a number of tokens beyond the cache."""
        self.cache.copy(src_slot, dst_slot, n_tokens)

    def close(self) -> None:
        self._cache = None


class ReferenceExecutable:
    """A segment with its weights and bindings."""

    def __init__(
        self,
        program: ReferenceProgram,
        weights: Mapping[str, StoredWeight],
        values: Mapping[str, F32Array],
        states: Mapping[str, ReferenceState],
        device: ReferenceDevice,
    ) -> None:
        self._segment = program.segment
        self._weights = weights
        self._values = values
        self._states = states
        self._device = device
        self._ops = tuple((op.name,) for op in program.segment.ops)
        self._closed = False

    def run(self, batch: Batch) -> None:
        """DeviceError, before anything is written, for a batch that the segment cannot take."""
        if self._closed:
            raise DeviceError(f"{self._segment.name}: run after it, or its device, was closed")
        started = time.perf_counter()
        caches = {name: state.cache for name, state in self._states.items()}
        self._check(batch)
        values = {v.name: self._rows(v, batch) for v in self._segment.inputs}
        inputs = Inputs(batch, values, self._weights, caches)
        profiling = self._device.profiling
        times = [time.perf_counter()] if profiling else []
        with one_thread():
            for op in self._segment.ops:
                values[op.name] = evaluate(op, inputs)
                if profiling:
                    times.append(time.perf_counter())
        for value in self._segment.outputs:
            self._rows(value, batch)[:] = values[value.name]
        seconds = time.perf_counter() - started
        steps = StepTimes(self._ops, [b - a for a, b in pairwise(times)]) if profiling else None
        self._device.note(RunEvent(self._segment.name, seconds, RUN_BASIS, steps=steps))

    def close(self) -> None:
        self._closed = True
        self._weights, self._values, self._states = {}, {}, {}

    def _rows(self, value: Value, batch: Batch) -> F32Array:
        """The rows of a bound buffer that this batch uses: a view, [rows, width]."""
        rows = batch.rows(value.rows)
        return self._values[value.name][: rows * value.width].reshape(rows, value.width)

    def _check(self, batch: Batch) -> None:
        segment = self._segment
        self._within("tokens of the batch", [batch.n_tokens], segment.max_tokens + 1)
        self._within("outputs of the batch", [batch.n_outputs], segment.max_outputs + 1)
        self._within("output", batch.outputs, batch.n_tokens)
        self._within("position", batch.positions, 1 << 31)
        for op in segment.ops:
            if isinstance(op, Embedding):
                self._within("token", batch.tokens, op.weight.shape[0])
            elif isinstance(op, Attention):
                self._within("position", batch.positions, op.kv.n_ctx)
                self._within("slot", batch.slots, op.kv.n_slots)

    def _within(self, what: str, numbers: Sequence[int] | memoryview, end: int) -> None:
        for number in numbers:
            if not 0 <= number < end:
                raise DeviceError(f"{self._segment.name}: {what} {number} is outside 0 to {end - 1}")


R = TypeVar("R", ReferenceBuffer, ReferenceState, ReferenceExecutable)


class ReferenceDevice:
    """An open reference device. Executables that name the same weight share its float32 values."""

    def __init__(self, info: DeviceInfo) -> None:
        self._info = info
        self._space = info.spaces[0]
        self._events: list[RunEvent] = []
        self._stored: WeakValueDictionary[tuple[Weight, int], StoredWeight] = WeakValueDictionary()
        self.profiling = False
        self._open: WeakSet[ReferenceBuffer | ReferenceState | ReferenceExecutable] = WeakSet()
        self._closed = False

    def alloc(self, nbytes: int) -> ReferenceBuffer:
        """ValueError for a negative size."""
        self._check_open()
        if nbytes < 0:
            raise ValueError(f"a buffer of {nbytes} bytes")
        self._check_fits("a buffer", nbytes)
        try:
            return self._owned(ReferenceBuffer(nbytes, self._space.alignment_bytes))
        except MemoryError as error:
            raise self._no_memory("a buffer", nbytes) from error

    def state(self, kv: KvSpec) -> ReferenceState:
        """DeviceError for a KV format that the reference does not have."""
        self._check_open()
        if kv.format not in KV_STORED_AS:
            raise DeviceError(f"{self._info.id}: {kv.name}: no KV format {kv.format}")
        self._check_fits(kv.name, kv.nbytes)
        try:
            return self._owned(ReferenceState(kv))
        except MemoryError as error:
            raise self._no_memory(kv.name, kv.nbytes) from error

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> ReferenceExecutable:
        """DeviceError for another driver's program, or a weight, buffer or state that is missing or does not fit."""
        self._check_open()
        if not isinstance(program, ReferenceProgram):
            raise DeviceError(f"{self._info.id}: {program.segment.name} was compiled by another driver")
        segment = program.segment
        stored: dict[str, StoredWeight] = {}
        states: dict[str, ReferenceState] = {}
        for op in segment.ops:
            for weight in op.weights:
                stored[weight.name] = self._share(weight, self._bound(weights, weight.name, "weight"))
            if isinstance(op, Attention):
                states[op.kv.name] = self._state_of(op.kv, self._bound(bindings.states, op.kv.name, "state"))
        values = {
            v.name: self._floats(v, segment.value_bytes(v), self._bound(bindings.values, v.name, "buffer"))
            for v in (*segment.inputs, *segment.outputs)
        }
        return self._owned(ReferenceExecutable(program, stored, values, states, self))

    def profile(self, on: bool) -> None:
        """Whether each op of a run is timed."""
        self._check_open()
        self.profiling = on

    def note(self, event: RunEvent) -> None:
        self._events.append(event)

    def synchronize(self) -> Sequence[RunEvent]:
        self._check_open()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Closes everything that was made here, too; a second call does nothing."""
        self._closed = True
        self._events = []
        for resource in tuple(self._open):
            resource.close()

    def _owned(self, resource: R) -> R:
        self._open.add(resource)
        return resource

    def _share(self, weight: Weight, data: memoryview) -> StoredWeight:
        raw = np.frombuffer(data, np.uint8)
        key = (weight, int(raw.__array_interface__["data"][0]))
        stored = self._stored.get(key)
        if stored is None:
            stored = self._stored[key] = StoredWeight(weight, data)
        return stored

    def _state_of(self, kv: KvSpec, state: State) -> ReferenceState:
        if not isinstance(state, ReferenceState) or state.cache.kv != kv:
            raise DeviceError(f"{self._info.id}: the state bound to {kv.name} was not made here for that KvSpec")
        return state

    def _floats(self, value: Value, nbytes: int, buffer: Buffer) -> F32Array:
        view = buffer.host_view()
        if view is None:
            raise DeviceError(f"{self._info.id}: the buffer bound to {value.name} is not in host memory")
        if view.nbytes < nbytes:
            raise DeviceError(f"{self._info.id}: the buffer bound to {value.name} has {view.nbytes} bytes of {nbytes}")
        return np.frombuffer(view, np.float32, count=nbytes // 4)

    def _bound(self, given: Mapping[str, T], name: str, what: str) -> T:
        try:
            return given[name]
        except KeyError:
            raise DeviceError(f"{self._info.id}: no {what} given for {name}") from None

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError(f"{self._info.id} is closed")

    def _check_fits(self, what: str, nbytes: int) -> None:
        if nbytes > self._space.capacity_bytes:
            raise self._no_memory(what, nbytes)

    def _no_memory(self, what: str, nbytes: int) -> AllocationError:
        return AllocationError(
            f"{self._info.id}: no memory for {what} of {nbytes} bytes",
            remedy="use a shorter context or fewer sequences",
        )
