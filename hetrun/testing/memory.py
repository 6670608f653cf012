"""Buffers as the kit sees them: whole contents, rows, and host memory with guard bytes on both sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetrun.device import Buffer
from hetrun.ops import Value

FILL = 0xA5  # as float32 -2.9e-16: far from any result, so that a row which was never written shows
_GUARD_BYTES = 256


class GuardedBuffer:
    """Host memory between guard bytes, for devices that work in the host's memory."""

    def __init__(self, nbytes: int, alignment_bytes: int) -> None:
        block = np.full(nbytes + 2 * _GUARD_BYTES + alignment_bytes, FILL, np.uint8)
        start = _GUARD_BYTES + -(block.ctypes.data + _GUARD_BYTES) % alignment_bytes
        self.nbytes = nbytes
        self._bytes = block[start : start + nbytes]
        self._guards = (block[:start], block[start + nbytes :])

    def write(self, data: memoryview, offset: int = 0) -> None:
        self._bytes[offset : offset + data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, out: memoryview, offset: int = 0) -> None:
        out.cast("B")[:] = self._bytes[offset : offset + out.nbytes].data

    def host_view(self) -> memoryview:
        return self._bytes.data

    def close(self) -> None:
        """The memory belongs to the bench."""

    @property
    def guards_intact(self) -> bool:
        return all(bool((guard == FILL).all()) for guard in self._guards)


def read_all(buffer: Buffer) -> bytes:
    """Every byte of a buffer."""
    out = bytearray(buffer.nbytes)
    buffer.read(memoryview(out))
    return bytes(out)


def read_rows(buffer: Buffer, value: Value, rows: int) -> NDArray[np.float32]:
    """The first rows of a buffer.   Result: [rows, width] float32."""
    return np.frombuffer(read_all(buffer)[: 4 * rows * value.width], np.float32).reshape(rows, value.width)


def write_rows(buffer: Buffer, values: NDArray[np.float32]) -> None:
    """Fills the first rows of a buffer.   values: [rows, width] float32."""
    buffer.write(memoryview(np.ascontiguousarray(values, np.float32).tobytes()))
