"""Memory that the engine addresses: chunks of the kernel's contiguous memory (CMA), by pynq.allocate, in pieces."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetrun.errors import AllocationError
from hetrun.free_list import FreeList
from hetrun.native import clear
from hetrun_pynq_z1.board import ALIGNMENT, Block

# Small values share a chunk; a large weight has one of its own, so that it goes back whole.
CHUNK_BYTES = 4 << 20
PAGE_BYTES = 4096
MEMINFO = Path("/proc/meminfo")


def meminfo_bytes(field: str) -> int | None:
    """MemTotal, CmaTotal or CmaFree of the running kernel, or None where it does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found else None


class Chunk:
    """One buffer of pynq, and which of its bytes are free."""

    def __init__(self, buffer: Any, nbytes: int) -> None:
        self.buffer = buffer
        self.begin, self.nbytes = int(buffer.physical_address), nbytes
        self.view = memoryview(buffer).cast("B")
        self.pieces = FreeList(self.begin, self.begin + nbytes)

    def holds(self, address: int, nbytes: int) -> bool:
        return self.begin <= address and address + nbytes <= self.begin + self.nbytes

    def flush(self, address: int, nbytes: int) -> None:
        """Writes the caches' lines back. The same call that PynqBuffer.flush makes, for a part of the buffer."""
        if not self.buffer.coherent:
            self.buffer.device.flush(self.buffer.bo, *self._part(address), nbytes)

    def invalidate(self, address: int, nbytes: int) -> None:
        """Forgets the caches' lines."""
        if not self.buffer.coherent:
            self.buffer.device.invalidate(self.buffer.bo, *self._part(address), nbytes)

    def _part(self, address: int) -> tuple[int, int]:
        offset = address - self.begin
        return offset, self.buffer.virtual_address + offset


class Cma:
    """allocate: of pynq, on the board: (nbytes) -> a buffer of bytes.   capacity_bytes: most that may be taken.

    refuse: raises AllocationError where (address, nbytes) is memory that this must not be.
    """

    def __init__(
        self,
        subject: str,
        allocate: Callable[[int], Any],
        capacity_bytes: int,
        refuse: Callable[[int, int], None] | None = None,
    ) -> None:
        self._subject, self._allocate, self._capacity_bytes = subject, allocate, capacity_bytes
        self._refuse = refuse
        self.chunks: list[Chunk] = []  # in the order of their addresses

    @property
    def taken_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self.chunks)

    def take(self, nbytes: int) -> Block:
        """Zeroed as the host sees it: a launch flushes what it uses. AllocationError where there is no room."""
        wanted = max(1, nbytes)
        for chunk in self.chunks:
            address = chunk.pieces.take(wanted)
            if address is not None:
                break
        else:
            chunk = self._grow(wanted)
            address = chunk.pieces.take(wanted)
            assert address is not None
        offset = address - chunk.begin
        view = chunk.view[offset : offset + nbytes]
        clear(view)
        return Block(address, view)

    def give_back(self, block: Block) -> None:
        chunk = self.find(block.address, 1)
        if chunk is None:
            return  # the board was closed before
        chunk.pieces.give_back(block.address, max(1, block.view.nbytes))
        if chunk.pieces.n_free == chunk.nbytes:
            self.chunks.remove(chunk)
            _release(chunk)

    def find(self, address: int, nbytes: int) -> Chunk | None:
        """The chunk that holds these bytes, or None. Launches ask for each matmul."""
        i = bisect_right(self.chunks, address, key=_begin) - 1
        return self.chunks[i] if i >= 0 and self.chunks[i].holds(address, nbytes) else None

    def release(self) -> None:
        """Gives everything back to the kernel."""
        chunks, self.chunks = self.chunks, []
        for chunk in chunks:
            _release(chunk)

    def _grow(self, nbytes: int) -> Chunk:
        needed = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        left = self._capacity_bytes - self.taken_bytes
        if needed > left:
            raise self._exhausted(nbytes, None)
        sizes = sorted({max(needed, min(CHUNK_BYTES, left // PAGE_BYTES * PAGE_BYTES)), needed}, reverse=True)
        problem: Exception | None = None
        for size in sizes:
            try:
                buffer = self._allocate(size)
            except (RuntimeError, MemoryError, OSError) as error:  # pynq has no class of its own for it
                problem = error
                continue
            return self._checked(buffer, size)
        raise self._exhausted(nbytes, problem) from problem

    def _checked(self, buffer: Any, nbytes: int) -> Chunk:
        address = int(buffer.physical_address)
        fault = ""
        if address % ALIGNMENT:
            fault = f"not aligned to {ALIGNMENT} bytes"
        elif address + nbytes > 1 << 32:
            fault = "beyond the 4 GiB that the engine addresses"
        if fault:
            buffer.freebuffer()
            raise AllocationError(
                f"{self._subject}: pynq gave memory at {address:#x}, {fault}",
                remedy="use the board's own image and its default memory",
            )
        if self._refuse is not None:
            try:
                self._refuse(address, nbytes)
            except AllocationError:
                buffer.freebuffer()
                raise
        chunk = Chunk(buffer, nbytes)
        insort(self.chunks, chunk, key=_begin)
        return chunk

    def _exhausted(self, nbytes: int, problem: Exception | None) -> AllocationError:
        total, free = meminfo_bytes("CmaTotal"), meminfo_bytes("CmaFree")
        kernel = f"; the kernel's CMA has {total} bytes, {free} of them free" if total is not None else ""
        cause = f" ({problem})" if problem else ""
        return AllocationError(
            f"{self._subject}: no contiguous memory (CMA) for {nbytes} bytes: {self.taken_bytes} of "
            f"{self._capacity_bytes} in use{kernel}{cause}",
            remedy="place less on it, raise CMA (boot with cma=400M), or set staging_bytes to stream weights; "
            "docs/pynq-z1.md says how",
        )


def _begin(chunk: Chunk) -> int:
    return chunk.begin


def _release(chunk: Chunk) -> None:
    chunk.view.release()
    chunk.buffer.freebuffer()
