"""Pieces of a card's memories, and what the host puts into them."""

from __future__ import annotations

import weakref

from hetrun.errors import AllocationError, DeviceError
from hetrun.free_list import FreeList
from hetrun.ops import KvSpec
from hetrun.tensor import Weight
from hetrun_alveo_u280.card import BEAT_BYTES, Card
from hetrun_alveo_u280.instruction import Rotation
from hetrun_alveo_u280.kv import kv_beats, prefix_pieces
from hetrun_alveo_u280.weights import ALIGNMENT_BEATS, hbm_bytes, weight_beats, write_weight


class Piece:
    """So many beats from `begin` on. They go back when this object dies."""

    def __init__(self, pieces: FreeList, begin: int, n_beats: int) -> None:
        self.begin = begin
        self._finalizer = weakref.finalize(self, pieces.give_back, begin, n_beats)

    def free(self) -> None:
        self._finalizer()


class Memories:
    """HBM, whose pieces are the same beats in every channel, and DDR."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self._hbm = FreeList(0, card.channel_beats, ALIGNMENT_BEATS)
        # To an instruction beat 0 of DDR is none.
        self._ddr = FreeList(1, card.ddr_bytes // BEAT_BYTES, 1)

    def take_hbm(self, name: str, n_beats: int) -> Piece:
        """AllocationError where there is no room.   n_beats: of every channel."""
        begin = self._hbm.take(n_beats)
        if begin is None:
            raise AllocationError(
                f"{self.card.subject}: {name} takes {hbm_bytes(n_beats)} bytes of HBM, {hbm_bytes(self._hbm.n_free)} "
                f"of {hbm_bytes(self.card.channel_beats)} are free",
                remedy="use a file of fewer bits, a shorter --ctx, a window (--attention), or place less on it",
            )
        return Piece(self._hbm, begin, n_beats)

    def take_ddr(self, name: str, nbytes: int) -> Piece:
        """AllocationError where there is no room."""
        n_beats = max(1, -(-nbytes // BEAT_BYTES))
        begin = self._ddr.take(n_beats) if nbytes >= 0 else None
        if begin is None:
            raise AllocationError(
                f"{self.card.subject}: {name} takes {nbytes} bytes of DDR, {self._ddr.n_free * BEAT_BYTES} of "
                f"{self.card.ddr_bytes} are free",
                remedy="run fewer tokens a step, or set a larger ddr_bytes in the system file",
            )
        return Piece(self._ddr, begin, n_beats)

    def put(self, name: str, data: bytes | memoryview) -> Piece:
        """A piece of DDR that holds those bytes."""
        view = memoryview(data).cast("B")
        piece = self.take_ddr(name, view.nbytes)
        self.card.ddr_write(piece.begin * BEAT_BYTES, view)
        return piece


class DdrBuffer:
    """A value in the card's DDR, which the host reaches by copies."""

    def __init__(self, memories: Memories, nbytes: int) -> None:
        self._subject = f"{memories.card.subject}: a buffer of {nbytes} bytes"
        self._card = memories.card
        self._piece: Piece | None = memories.take_ddr("a value", nbytes)
        self.nbytes = nbytes

    @property
    def begin(self) -> int:
        """Its first beat. DeviceError where it is closed."""
        if self._piece is None:
            raise DeviceError(f"{self._subject} is closed")
        return self._piece.begin

    def write(self, data: memoryview, offset: int = 0) -> None:
        source = memoryview(data).cast("B")
        self._card.ddr_write(self._offset(offset, source.nbytes), source)

    def read(self, out: memoryview, offset: int = 0) -> None:
        target = memoryview(out).cast("B")
        self._card.ddr_read(self._offset(offset, target.nbytes), target)

    def host_view(self) -> None:
        return None

    def close(self) -> None:
        piece, self._piece = self._piece, None
        if piece is not None:
            piece.free()

    def _offset(self, offset: int, nbytes: int) -> int:
        begin = self.begin
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{self._subject}: bytes {offset} to {offset + nbytes} are beyond its end")
        return begin * BEAT_BYTES + offset


class HbmState:
    """A KV cache, zeros at first."""

    def __init__(self, memories: Memories, kv: KvSpec) -> None:
        n_beats = kv_beats(kv)
        self.kv = kv
        self._card = memories.card
        self._piece: Piece | None = memories.take_hbm(kv.name, n_beats)
        self._card.hbm_zero(self._piece.begin, n_beats)

    @property
    def begin(self) -> int:
        """Its first beat in every channel. DeviceError where it is closed."""
        if self._piece is None:
            raise DeviceError(f"{self._card.subject}: {self.kv.name} is closed")
        return self._piece.begin

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        begin, kv = self.begin, self.kv
        for slot in (src_slot, dst_slot):
            if not 0 <= slot < kv.n_slots:
                raise DeviceError(f"{self._card.subject}: {kv.name}: slot {slot} of {kv.n_slots}")
        if not 0 <= n_tokens <= kv.n_ctx:
            raise DeviceError(f"{self._card.subject}: {kv.name}: {n_tokens} tokens of a context of {kv.n_ctx}")
        if src_slot == dst_slot:
            return
        slot_beats = kv_beats(kv) // kv.n_slots
        for first, n_beats in prefix_pieces(kv, n_tokens):
            src, dst = (begin + slot * slot_beats + first for slot in (src_slot, dst_slot))
            self._card.hbm_copy(src, dst, n_beats)

    def close(self) -> None:
        piece, self._piece = self._piece, None
        if piece is not None:
            piece.free()


class HbmWeight:
    """A matrix, packed."""

    def __init__(self, memories: Memories, weight: Weight, blocks: memoryview) -> None:
        self._piece = memories.take_hbm(weight.name, weight_beats(weight))
        write_weight(memories.card, self._piece.begin, weight, blocks)

    @property
    def begin(self) -> int:
        return self._piece.begin


class DdrVector:
    """A norm's or bias's weights."""

    def __init__(self, memories: Memories, weight: Weight, blocks: memoryview) -> None:
        self._piece = memories.put(weight.name, blocks)

    @property
    def begin(self) -> int:
        return self._piece.begin


class RotationTable:
    """(cos, sin) of each pair, float32, a row for each position so far. It grows, and then stands elsewhere."""

    def __init__(self, memories: Memories, rotation: Rotation) -> None:
        self._memories, self._rotation = memories, rotation
        self._piece: Piece | None = None
        self._n_positions = 0

    @property
    def begin(self) -> int:
        assert self._piece is not None, "a table without rows"
        return self._piece.begin

    def hold(self, n_positions: int) -> None:
        """Sees that the table has as many rows. AllocationError where DDR has no room."""
        if n_positions <= self._n_positions:
            return
        n_positions = max(n_positions, 2 * self._n_positions)
        row_bytes = 8 * len(self._rotation.frequencies)
        grown = self._memories.take_ddr(f"a table of {n_positions} rotations", n_positions * row_bytes)
        self._write(grown, n_positions)
        if self._piece is not None:
            self._piece.free()
        self._piece, self._n_positions = grown, n_positions

    def _write(self, piece: Piece, n_positions: int) -> None:
        import numpy as np

        frequencies, magnitude = np.array(self._rotation.frequencies), self._rotation.magnitude
        for first in range(0, n_positions, 1024):
            angles = np.outer(np.arange(first, min(first + 1024, n_positions), dtype=np.float64), frequencies)
            rows = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * magnitude
            offset = piece.begin * BEAT_BYTES + first * 8 * len(frequencies)
            self._memories.card.ddr_write(offset, memoryview(rows.astype(np.float32).tobytes()))
