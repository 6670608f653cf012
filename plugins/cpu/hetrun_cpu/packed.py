"""Weights in the form that matmul kernels read, and the pages of the files that they were packed from."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

from hetrun.native import address_of
from hetrun_cpu import native


class Pack:
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


class PackedWeight:
    """A weight as the matmul kernels read it: its address, or 0 where its type has no packed form."""

    def __init__(self, pack: Pack, address: int) -> None:
        self._pack = pack
        self.address = address


@dataclass(frozen=True)
class Pages:
    """A table in a mapped file of which only some rows are read. The system maps neighbours with each, until over time
    the whole table stands in memory, beside its packed form."""

    file: mmap.mmap
    start: int
    nbytes: int

    def release(self) -> None:
        self.file.madvise(mmap.MADV_DONTNEED, self.start, self.nbytes)


def file_pages(view: memoryview) -> list[Pages]:
    """The pages of a view of a file, or nothing where it is of other memory."""
    file = view.obj
    if not isinstance(file, mmap.mmap) or not view.readonly or not hasattr(mmap, "MADV_DONTNEED"):
        return []
    offset = address_of(view) - address_of(memoryview(file))
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    return [Pages(file, start, offset + view.nbytes - start)]
