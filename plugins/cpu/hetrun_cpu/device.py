"""The open cpu device: threads, buffers, KV states, loaded programs."""

from __future__ import annotations

import ctypes
import mmap
import struct
import weakref
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from hetrun.device import Batch, Bindings, Buffer, DeviceInfo, Program, RunEvent, State, StepTimes
from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import Embedding, KvSpec
from hetrun.tensor import Weight
from hetrun_cpu import native
from hetrun_cpu.program import CpuProgram
from hetrun_cpu.steps import DEQUANTISED_TYPES, KV_FORMATS, pack

if TYPE_CHECKING:
    from hetrun_cpu.dequantised import Dequantised

BASIS = "measured:cpu"


class HostBuffer:
    """Memory of the host, zeroed. It goes back to the system once it is closed and nobody holds a view of it."""

    def __init__(self, device_id: str, nbytes: int) -> None:
        self._subject = f"{device_id}: a buffer of {nbytes} bytes"
        self._nbytes = nbytes
        if nbytes < 0:
            raise AllocationError(f"{self._subject} cannot be")
        try:
            memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError, MemoryError) as error:
            raise AllocationError(
                f"{self._subject}: no memory left", remedy="use a shorter context or batch"
            ) from error
        self._view: memoryview | None = memoryview(memory)[:nbytes]

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def _open_view(self) -> memoryview:
        if self._view is None:
            raise DeviceError(f"{self._subject} is closed")
        return self._view

    def write(self, data: memoryview, offset: int = 0) -> None:
        source = memoryview(data).cast("B")
        self._slice(offset, source.nbytes)[:] = source

    def read(self, out: memoryview, offset: int = 0) -> None:
        target = memoryview(out).cast("B")
        target[:] = self._slice(offset, target.nbytes)

    def _slice(self, offset: int, nbytes: int) -> memoryview:
        view = self._open_view()
        if offset < 0 or offset + nbytes > self._nbytes:
            raise ValueError(f"{self._subject}: bytes {offset} to {offset + nbytes} are beyond its end")
        return view[offset : offset + nbytes]

    def host_view(self) -> memoryview:
        return self._open_view()

    def close(self) -> None:
        self._view = None


class CpuState:
    """The KV cache of one KvSpec; the native side lays it out and bounds every access."""

    def __init__(self, device_id: str, kv: KvSpec) -> None:
        self.spec = kv
        self._subject = f"{device_id}: KV cache {kv.name} of {kv.nbytes} bytes"
        if kv.format not in KV_FORMATS:
            raise DeviceError(f"{self._subject}: format {kv.format!r}", remedy=f"choose one of {', '.join(KV_FORMATS)}")
        numbers = (
            kv.n_slots, kv.n_ctx, kv.n_cells, kv.n_heads_kv, kv.head_dim,
            kv.sink, kv.window, kv.slack, KV_FORMATS[kv.format],
        )  # fmt: skip
        if max(numbers) >= 1 << 63:
            raise AllocationError(f"{self._subject}: no memory left", remedy="use a shorter context or fewer sequences")
        self._handle = ctypes.c_void_p()
        self.users: weakref.WeakSet[CpuExecutable] = weakref.WeakSet()
        status = native.library().hetrun_cpu_state_create(
            (ctypes.c_uint64 * len(numbers))(*numbers), ctypes.byref(self._handle)
        )
        native.check(status, self._subject)

    @property
    def handle(self) -> int:
        if not self._handle:
            raise DeviceError(f"{self._subject} is closed")
        return int(self._handle.value or 0)

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        """DeviceError for a slot or a length that the cache does not have."""
        if min(src_slot, dst_slot, n_tokens) < 0:
            raise DeviceError(f"{self._subject}: copy({src_slot}, {dst_slot}, {n_tokens})")
        status = native.library().hetrun_cpu_state_copy(self.handle, src_slot, dst_slot, n_tokens)
        native.check(status, f"{self._subject}: copy({src_slot}, {dst_slot}, {n_tokens})")

    def close(self) -> None:
        for executable in list(self.users):
            executable.close()
        handle, self._handle = self._handle, ctypes.c_void_p()
        native.library().hetrun_cpu_state_destroy(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


class _BatchView:
    """A batch as the library wants it. Batches are immutable, so one view serves all segments of a step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        vectors = (batch.tokens, batch.positions, batch.slots, batch.outputs)
        for vector in vectors:
            if vector.itemsize != 4 or vector.ndim != 1:
                raise DeviceError(f"a batch must hold int32 vectors, not {vector.format!r} of {vector.ndim} dimensions")
        if not len(batch.tokens) == len(batch.positions) == len(batch.slots):
            raise DeviceError("the vectors of a batch differ in length")
        self._pins = [native.Pinned(v) for v in vectors]
        self.native = native.Batch(*(p.address for p in self._pins), len(batch.tokens), len(batch.outputs))
        self.reference = ctypes.byref(self.native)


class _Pack:
    """Weights packed by one call; they live as long as this object."""

    def __init__(self, device: int, weights: Sequence[native.Weight]) -> None:
        self._handle = ctypes.c_void_p()
        table = (native.Weight * len(weights))(*weights)
        status = native.library().hetrun_cpu_pack_create(device, table, len(weights), ctypes.byref(self._handle))
        native.check(status, "packing weights")
        self.addresses = [int(w.packed) for w in table]

    def __del__(self) -> None:
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            native.library().hetrun_cpu_pack_destroy(handle)


class _PackedWeight:
    """A weight as the matmul kernels read it: its address, or 0 where its type has no packed form."""

    def __init__(self, pack: _Pack, address: int) -> None:
        self._pack = pack
        self.address = address


@dataclass(frozen=True)
class _Pages:
    """A table in a mapped file of which only some rows are read. The system maps neighbours with each, until over time
    the whole table stands in memory, beside its packed form."""

    file: mmap.mmap
    start: int
    nbytes: int

    def release(self) -> None:
        self.file.madvise(mmap.MADV_DONTNEED, self.start, self.nbytes)


def _pages(view: memoryview) -> list[_Pages]:
    """The pages of a view of a file, or nothing where it is of other memory."""
    file = view.obj
    if not isinstance(file, mmap.mmap) or not view.readonly or not hasattr(mmap, "MADV_DONTNEED"):
        return []
    offset = native.Pinned(view).address - native.Pinned(memoryview(file)).address
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    return [_Pages(file, start, offset + view.nbytes - start)]


class CpuExecutable:
    """A program bound to weights, buffers and states. Closing any of those states closes it too."""

    def __init__(
        self, device: CpuDevice, handle: int, program: CpuProgram, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> None:
        self._device: CpuDevice | None = device
        self._name = program.segment.name
        self._handle = ctypes.c_void_p()
        self._pins: list[native.Pinned] = []
        self._packed: Mapping[str, _PackedWeight] = {}
        self._looked_up: list[_Pages] = []
        self._ops = tuple(step.ops for step in program.steps)
        self._step_s = array("d", bytes(8 * len(self._ops)))
        self._dequantised: list[Dequantised] = []
        self._report = native.Report()
        self._report_reference = ctypes.byref(self._report)
        try:
            self._create(device, handle, program, weights, bindings)
        except BaseException:
            self.close()
            raise

    def _create(
        self, device: CpuDevice, handle: int, program: CpuProgram, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> None:
        states = [_state(bindings, kv, self._name) for kv in program.states]
        value_index = {v.name: i for i, v in enumerate(program.values)}
        weight_index = {w.name: i for i, w in enumerate(program.weights)}
        state_index = {kv.name: i for i, kv in enumerate(program.states)}
        handles = (ctypes.c_void_p * max(1, len(states)))(*(s.handle for s in states))
        frequencies = (ctypes.c_double * max(1, len(program.frequencies)))(*program.frequencies)
        views = (self._weight(device, w, weights) for w in program.weights)
        table = (native.Weight * max(1, len(program.weights)))(*views)
        multiplied = {w.name: table[weight_index[w.name]] for w in program.multiplied}
        self._packed = device.packed(multiplied)
        for name, packed in self._packed.items():
            multiplied[name].packed = packed.address
        for op in program.segment.ops:
            if not isinstance(op, Embedding) or op.weight.type.name in DEQUANTISED_TYPES:
                continue
            if op.weight.name not in multiplied or multiplied[op.weight.name].packed:
                self._looked_up += _pages(weights[op.weight.name])
        spec = native.Spec(
            b"".join(pack(s, value_index, weight_index, state_index) for s in program.steps),
            b"".join(
                struct.pack(
                    "<QQIIQ",
                    self._address(v.name, v.nbytes, v.offset, bindings),
                    v.offset or 0,
                    v.width,
                    v.outputs,
                    v.nbytes,
                )
                for v in program.values
            ),
            table,
            b"".join(struct.pack("<QIIfI", r.offset, r.first, r.n_pairs, r.magnitude, 0) for r in program.ropes),
            frequencies,
            handles,
            len(program.steps),
            len(program.values),
            len(program.weights),
            len(program.ropes),
            len(program.frequencies),
            len(states),
            program.segment.max_tokens,
            program.segment.max_outputs,
            program.arena_bytes,
        )
        detail = ctypes.c_uint64()
        status = native.library().hetrun_cpu_program_create(
            handle, ctypes.byref(spec), ctypes.byref(detail), ctypes.byref(self._handle)
        )
        native.check(status, f"segment {self._name}", detail.value)
        for state in states:
            state.users.add(self)

    def _address(self, name: str, nbytes: int, offset: int | None, bindings: Bindings) -> int:
        if offset is not None:
            return 0
        buffer = bindings.values.get(name)
        view = None if buffer is None else buffer.host_view()
        if view is None or view.readonly or view.nbytes < nbytes:
            held = "nothing" if view is None else f"{view.nbytes} {'read-only ' if view.readonly else ''}bytes"
            raise DeviceError(
                f"segment {self._name}: value {name} needs {nbytes} writable bytes of the host and has {held}"
            )
        return self._pin(view, writable=True).address

    def _weight(self, device: CpuDevice, weight: Weight, weights: Mapping[str, memoryview]) -> native.Weight:
        view = weights.get(weight.name)
        if view is None or view.nbytes != weight.nbytes:
            held = "nothing" if view is None else f"{view.nbytes} bytes"
            raise DeviceError(
                f"segment {self._name}: weight {weight.name} has {weight.nbytes} bytes, but was given {held}"
            )
        if weight.type.name in DEQUANTISED_TYPES:
            self._pin(view)
            values = device.dequantised(weight, view)
            self._dequantised.append(values)
            pin = self._pin(values.values)
            return native.Weight(pin.address, pin.nbytes, _rows(weight.shape), weight.shape[-1], values.type.id, 0, 0)
        of_file = isinstance(view.obj, mmap.mmap) and view.readonly
        if of_file and len(weight.shape) == 1:
            # A page of a file that is read brings fifteen neighbours along: norms would map megabytes of weights.
            view, of_file = memoryview(bytes(view)), False
        pin = self._pin(view)
        flags = native.WEIGHT_OF_FILE if of_file else 0
        return native.Weight(pin.address, pin.nbytes, _rows(weight.shape), weight.shape[-1], weight.type.id, flags, 0)

    def _pin(self, view: memoryview, writable: bool = False) -> native.Pinned:
        pin = native.Pinned(view, writable)
        self._pins.append(pin)
        return pin

    def run(self, batch: Batch) -> None:
        """Runs to the end. DeviceError for a batch that the segment cannot hold; nothing has run then."""
        device = self._device
        if device is None:
            raise DeviceError(f"segment {self._name} is closed")
        view = device.view_of(batch)
        self._report.step_s = self._step_s.buffer_info()[0] if device.profiling else 0
        status = native.library().hetrun_cpu_run(self._handle, view.reference, self._report_reference)
        if status:
            native.check(status, f"segment {self._name}", self._report.detail)
        for pages in self._looked_up:
            pages.release()
        device.record(self._event())

    def _event(self) -> RunEvent:
        if not self._report.step_s:
            return RunEvent(self._name, self._report.seconds, BASIS)
        return RunEvent(self._name, self._report.seconds, BASIS, steps=StepTimes(self._ops, self._step_s[:]))

    def close(self) -> None:
        self._device = None
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            native.library().hetrun_cpu_program_destroy(handle)
        for pin in self._pins:
            pin.close()
        self._pins.clear()
        self._packed = {}
        self._looked_up = []
        self._dequantised = []

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


class CpuDevice:
    """Threads that run segments one after the other. Not for calls from several threads at a time."""

    def __init__(self, info: DeviceInfo) -> None:
        self._id = info.id
        self._handle = ctypes.c_void_p()
        self.profiling = False
        self._events: list[RunEvent] = []
        self._view: _BatchView | None = None
        # An executable keeps its blocks where they are, and the entries with them: addresses tell weights apart.
        self._packed: weakref.WeakValueDictionary[tuple[str, int, int], _PackedWeight] = weakref.WeakValueDictionary()
        self._values: weakref.WeakValueDictionary[tuple[str, int, int], Dequantised] = weakref.WeakValueDictionary()
        self._parts: weakref.WeakSet[HostBuffer | CpuState | CpuExecutable] = weakref.WeakSet()
        threads, isa = int(info.model["threads"]), int(info.model["isa"])
        if not 1 <= threads <= 1024:
            raise DeviceError(f"{info.id}: {threads} threads", remedy="choose from 1 to 1024 threads")
        status = native.library().hetrun_cpu_device_create(threads, isa, ctypes.byref(self._handle))
        native.check(status, info.id)

    def _open_handle(self) -> int:
        if not self._handle:
            raise DeviceError(f"{self._id} is closed")
        return int(self._handle.value or 0)

    def alloc(self, nbytes: int) -> Buffer:
        self._open_handle()
        buffer = HostBuffer(self._id, nbytes)
        self._parts.add(buffer)
        return buffer

    def state(self, kv: KvSpec) -> State:
        self._open_handle()
        state = CpuState(self._id, kv)
        self._parts.add(state)
        return state

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> CpuExecutable:
        """DeviceError where a weight, value or state is missing or of the wrong size."""
        handle = self._open_handle()
        if not isinstance(program, CpuProgram):
            raise DeviceError(f"{self._id}: segment {program.segment.name} was compiled for another device")
        executable = CpuExecutable(self, handle, program, weights, bindings)
        self._parts.add(executable)
        return executable

    def packed(self, weights: Mapping[str, native.Weight]) -> dict[str, _PackedWeight]:
        """The packed form of each weight, for as long as the caller keeps it; given the same blocks, the same one."""
        keys = {name: (name, int(w.address), int(w.nbytes)) for name, w in weights.items()}
        found = {name: self._packed[key] for name, key in keys.items() if key in self._packed}
        new = [name for name in weights if name not in found]
        if new:
            made = _Pack(self._open_handle(), [weights[name] for name in new])
            for name, address in zip(new, made.addresses, strict=True):
                self._packed[keys[name]] = found[name] = _PackedWeight(made, address)
        return found

    def dequantised(self, weight: Weight, blocks: memoryview) -> Dequantised:
        """Values of a weight that no kernel reads, shared as packed ones are. Pages of its file go back meanwhile."""
        from hetrun_cpu.dequantised import dequantise

        pin = native.Pinned(blocks)
        key = (weight.name, pin.address, pin.nbytes)
        pin.close()
        found = self._values.get(key)
        if found is None:

            def done(start: int, end: int) -> None:
                for pages in _pages(blocks[start:end]):
                    pages.release()

            self._values[key] = found = dequantise(weight, blocks, done)
        return found

    def view_of(self, batch: Batch) -> _BatchView:
        view = self._view
        if view is None or view.batch is not batch:
            self._view = view = _BatchView(batch)
        return view

    def profile(self, on: bool) -> None:
        """Whether the steps of each run are timed, on the caller's thread, with waits for the others."""
        self.profiling = on

    def record(self, event: RunEvent) -> None:
        self._events.append(event)

    def synchronize(self) -> Sequence[RunEvent]:
        """Runs have ended when `run` returns."""
        self._open_handle()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        handle, self._handle = self._handle, ctypes.c_void_p()
        if not handle:
            return
        # Programs use states and threads, so they go first.
        for part in sorted(self._parts, key=lambda p: not isinstance(p, CpuExecutable)):
            part.close()
        self._view = None
        native.library().hetrun_cpu_device_destroy(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


def _state(bindings: Bindings, kv: KvSpec, segment: str) -> CpuState:
    state = bindings.states.get(kv.name)
    if not isinstance(state, CpuState):
        raise DeviceError(f"segment {segment}: no KV cache {kv.name} of this device is bound")
    if state.spec != kv:
        raise DeviceError(f"segment {segment}: KV cache {kv.name} was made for another KvSpec")
    return state


def _rows(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1])
