"""The open cpu device: threads, and what was made on them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hetrun.device import Batch, Bindings, Buffer, DeviceInfo, Program, RunEvent, State
from hetrun.errors import DeviceError
from hetrun.native import address_of
from hetrun.ops import KvSpec
from hetrun.tensor import Weight
from hetrun_cpu import native
from hetrun_cpu.executable import BatchView, CpuExecutable
from hetrun_cpu.host import MAX_THREADS
from hetrun_cpu.memory import CpuState, HostBuffer
from hetrun_cpu.packed import Pack, PackedWeight, file_pages
from hetrun_cpu.program import CpuProgram

if TYPE_CHECKING:
    from hetrun_cpu.dequantised import Dequantised


class CpuDevice:
    """Threads that run segments one after the other. Not for calls from several threads at a time."""

    def __init__(self, info: DeviceInfo) -> None:
        self._id = info.id
        self._handle = ctypes.c_void_p()
        self.profiling = False
        self._events: list[RunEvent] = []
        self._view: BatchView | None = None
        # An executable keeps its blocks where they are, and the entries with them: addresses tell weights apart.
        self._packed: weakref.WeakValueDictionary[tuple[str, int, int], PackedWeight] = weakref.WeakValueDictionary()
        self._values: weakref.WeakValueDictionary[tuple[str, int, int], Dequantised] = weakref.WeakValueDictionary()
        self._parts: weakref.WeakSet[HostBuffer | CpuState | CpuExecutable] = weakref.WeakSet()
        threads, isa = int(info.model["threads"]), int(info.model["isa"])
        if not 1 <= threads <= MAX_THREADS:
            raise DeviceError(f"{info.id}: {threads} threads", remedy=f"choose from 1 to {MAX_THREADS} threads")
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

    def packed(self, weights: Mapping[str, native.Weight]) -> dict[str, PackedWeight]:
        """The packed form of each weight, for as long as the caller keeps it; given the same blocks, the same one."""
        keys = {name: (name, int(w.address), int(w.nbytes)) for name, w in weights.items()}
        found = {name: self._packed[key] for name, key in keys.items() if key in self._packed}
        new = [name for name in weights if name not in found]
        if new:
            made = Pack(self._open_handle(), [weights[name] for name in new])
            for name, address in zip(new, made.addresses, strict=True):
                self._packed[keys[name]] = found[name] = PackedWeight(made, address)
        return found

    def dequantised(self, weight: Weight, blocks: memoryview) -> Dequantised:
        """Values of a weight that no kernel reads, shared as packed ones are. Pages of its file go back meanwhile."""
        from hetrun_cpu.dequantised import dequantise

        key = (weight.name, address_of(blocks), blocks.nbytes)
        found = self._values.get(key)
        if found is None:

            def done(start: int, end: int) -> None:
                for pages in file_pages(blocks[start:end]):
                    pages.release()

            self._values[key] = found = dequantise(weight, blocks, done)
        return found

    def view_of(self, batch: Batch) -> BatchView:
        view = self._view
        if view is None or view.batch is not batch:
            self._view = view = BatchView(batch)
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
