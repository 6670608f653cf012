"""What the device needs of a board: memory that the engine and the host both address, and the seam for launches."""

from __future__ import annotations

import ctypes
import mmap
import threading
from dataclasses import dataclass
from typing import Protocol

from hetrun.errors import AllocationError, DeviceError
from hetrun.free_list import FreeList
from hetrun.native import address_of, clear
from hetrun_pynq_z1 import native

ALIGNMENT = 64


@dataclass(frozen=True)
class Block:
    """Memory for the engine.   address: physical.   view: the same bytes as the host addresses them.

    uncached: the host writes it past its caches, in aligned words only.
    """

    address: int
    view: memoryview
    uncached: bool = False


class Board(Protocol):
    """A board, or what stands for one."""

    @property
    def seam(self) -> native.Seam: ...

    @property
    def engine(self) -> threading.Lock:
        """Held while a launch lasts: devices may share a board."""

    def allocate(self, nbytes: int) -> Block:
        """Zeroed. AllocationError where there is no room."""

    def allocate_weights(self, nbytes: int) -> Block:
        """For what the host writes once and reads never; not zeroed. AllocationError where there is no room."""

    def free(self, block: Block) -> None: ...

    def flush(self, block: Block) -> None:
        """Makes what the host wrote there visible to the engine."""

    def check(self) -> None:
        """Raises what went wrong within a launch, where the seam's functions could not."""

    def reset(self) -> None:
        """Brings a hung engine back to idle. DeviceError where that is not possible."""

    def close(self) -> None: ...


class CsimBoard:
    """The engine's own source, compiled for this machine, over a piece of memory that plays the DDR."""

    FIRST_ADDRESS = 1 << 16  # nothing stands at address 0

    def __init__(self, device_id: str, capacity_bytes: int, threads: int = 1) -> None:
        """threads: of this machine that run the engine's rows; results are the same for any number."""
        self._subject = device_id
        self.engine = threading.Lock()
        self._capacity_bytes = capacity_bytes
        size = self.FIRST_ADDRESS + _rounded(capacity_bytes)
        if size > 1 << 32:
            raise DeviceError(
                f"{device_id}: {capacity_bytes} bytes of memory", remedy="the engine addresses 4 GiB: ask for less"
            )
        # Pages come when they are written, so a board costs what is used of it.
        self._memory = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._pieces = FreeList(self.FIRST_ADDRESS, size)
        lib = native.library()
        self._board = lib.hetrun_pynq_csim_create(address_of(self._memory), size)
        if not self._board:
            raise AllocationError(f"{device_id}: no memory left")
        lib.hetrun_pynq_csim_threads(self._board, threads)
        self._seam = native.Seam(
            self._board,
            ctypes.cast(lib.hetrun_pynq_csim_read, native.READ),
            ctypes.cast(lib.hetrun_pynq_csim_write, native.WRITE),
            ctypes.cast(lib.hetrun_pynq_csim_cache, native.CACHE),
            ctypes.cast(lib.hetrun_pynq_csim_cache, native.CACHE),
            -1,
        )

    @property
    def seam(self) -> native.Seam:
        return self._seam

    def allocate(self, nbytes: int) -> Block:
        address = self._pieces.take(max(1, nbytes)) if 0 <= nbytes <= self._capacity_bytes else None
        if address is None:
            raise AllocationError(
                f"{self._subject}: {nbytes} bytes asked for, {self._pieces.n_free} of the board's "
                f"{self._capacity_bytes} free",
                remedy="place less on it, use a shorter context, or a file of fewer bits",
            )
        view = self._memory[address : address + nbytes]
        clear(view)
        return Block(address, view)

    def allocate_weights(self, nbytes: int) -> Block:
        return self.allocate(nbytes)

    def free(self, block: Block) -> None:
        self._pieces.give_back(block.address, max(1, block.view.nbytes))

    def flush(self, block: Block) -> None:
        """Host and engine see the same memory."""

    def check(self) -> None:
        """Its seam cannot fail."""

    def reset(self) -> None:
        """It cannot hang."""

    def close(self) -> None:
        board, self._board = self._board, None
        if board:
            native.library().hetrun_pynq_csim_destroy(board)

    def __del__(self) -> None:
        if getattr(self, "_board", None):
            self.close()


def _rounded(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
