"""Memory of the cpu device that outlives a run: buffers and KV caches."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from typing import TYPE_CHECKING

from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import KvSpec
from hetrun_cpu import native
from hetrun_cpu.steps import KV_FORMATS

if TYPE_CHECKING:
    from hetrun_cpu.executable import CpuExecutable


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
