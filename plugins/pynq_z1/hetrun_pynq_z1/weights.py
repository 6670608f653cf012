"""Weights as the engine reads them: in its memory, or in the host's and copied for every step."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from hetrun.errors import AllocationError, DeviceError
from hetrun.free_list import FreeList
from hetrun.native import address_of
from hetrun.tensor import Weight
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.board import Block, Board
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.program import stream_bytes


class Memory:
    """A piece of the board's memory; it goes back when this object dies."""

    def __init__(self, board: Board, block: Block) -> None:
        self.block = block
        self._finalizer = weakref.finalize(self, board.free, block)

    def free(self) -> None:
        self._finalizer()


class LoadedWeight(Protocol):
    @property
    def starts(self) -> Sequence[int]:
        """The first row of each part that stands together."""

    def address(self, row: int) -> int:
        """What descriptors name where that row begins, the first of a descriptor."""


class PackedWeight:
    """A weight in the board's memory: in one piece, or in several of whole descriptors where none is large enough."""

    def __init__(self, board: Board, weight: Weight, blocks: memoryview) -> None:
        placed = _place(board, weight, 0, weight.shape[0])
        self._parts = [(first, Memory(board, block)) for first, _, block in placed]
        self._weight = weight
        for first, n, block in placed:
            _fill(block, weight, blocks, first, n)
            board.flush(block)

    @property
    def starts(self) -> Sequence[int]:
        return [first for first, _ in self._parts]

    def address(self, row: int) -> int:
        first, memory = next(part for part in reversed(self._parts) if part[0] <= row)
        return memory.block.address + _part_bytes(self._weight, row - first)


class StreamedWeight:
    """A weight packed in the host's memory. Its address is a name: no memory stands there."""

    def __init__(self, names: FreeList, weight: Weight, blocks: memoryview) -> None:
        self.nbytes = stream_bytes(weight)
        address = names.take(max(1, self.nbytes))
        if address is None:
            raise AllocationError(f"{weight.name}: more weights to stream than there are addresses for")
        self._finalizer = weakref.finalize(self, names.give_back, address, max(1, self.nbytes))
        self._address = address
        self._weight = weight
        self.stream = memoryview(mmap.mmap(-1, max(1, self.nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        _pack(weight, blocks, 0, weight.shape[0], self.stream)

    @property
    def starts(self) -> Sequence[int]:
        return [0]

    def address(self, row: int) -> int:
        return self._address + _part_bytes(self._weight, row)

    def named(self) -> native.Streamed:
        return native.Streamed(self._address, self.nbytes, address_of(self.stream))


def _place(board: Board, weight: Weight, first: int, n_rows: int) -> list[tuple[int, int, Block]]:
    """(first row, rows, memory) of each piece. AllocationError where there is no room, with nothing taken."""
    try:
        return [(first, n_rows, board.allocate_weights(_part_bytes(weight, n_rows)))]
    except AllocationError as error:
        slab = definition().numbers["MAX_ROWS"]
        half = -(-n_rows // slab) // 2 * slab
        if half == 0:
            raise
        whole = error
    placed: list[tuple[int, int, Block]] = []
    try:
        placed += _place(board, weight, first, half)
        placed += _place(board, weight, first + half, n_rows - half)
    except AllocationError:
        for *_, block in placed:
            board.free(block)
        raise whole from None
    return placed


def _fill(block: Block, weight: Weight, blocks: memoryview, first: int, n_rows: int) -> None:
    """Packs rows into a piece of memory; through the host's where the piece takes whole words only."""
    slab = definition().numbers["MAX_ROWS"]
    for begin in range(0, n_rows, slab):
        n = min(slab, n_rows - begin)
        offset, nbytes = _part_bytes(weight, begin), _part_bytes(weight, n)
        target = block.view[offset : offset + nbytes]
        if not block.uncached:
            _pack(weight, blocks, first + begin, n, target)
            continue
        packed = memoryview((ctypes.c_uint64 * (nbytes // 8))()).cast("B")
        _pack(weight, blocks, first + begin, n, packed)
        to, source = address_of(target), address_of(packed)
        if not native.library().hetrun_pynq_copy_uncached(to, source, nbytes):
            raise DeviceError(
                f"{weight.name}: what was written to reserved memory at {block.address + offset:#x} does not read back",
                remedy="the range is no memory: check it against the board's device tree",
            )


def _pack(weight: Weight, blocks: memoryview, first: int, n_rows: int, target: memoryview) -> None:
    rows, columns = weight.shape
    row_bytes = weight.nbytes // rows if rows else 0
    source = blocks[first * row_bytes : (first + n_rows) * row_bytes]
    number = definition().formats[weight.type.name]
    native.library().hetrun_pynq_pack(number, n_rows, columns, address_of(source), address_of(target))


def _part_bytes(weight: Weight, n_rows: int) -> int:
    return stream_bytes(replace(weight, shape=(n_rows, weight.shape[1])))
