"""Matrices -> the bytes of a tensor: our own encodings (docs/compression.md defines the bits), and types of GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hetrun.tensor import TensorType

# To the type checker arrays are Any: NumPy's stubs differ from release to release in what arithmetic returns.
Array: TypeAlias = Any

GROUP = 64
LARGEST_SCALE = (1 << 14) - 1
PLAIN_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types of GGUF that a tensor can be stored in anew."""

_CHUNK_ELEMENTS = 1 << 22
# [first kept, second kept] -> pattern; of rows with other pairs it is not asked.
_PATTERN = np.zeros((4, 4), np.uint64)
for _number, _pair in enumerate(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))):
    _PATTERN[_pair] = _number


@dataclass(frozen=True)
class Codes:
    """A matrix of 2-bit codes: row_scale * scale * (code - zero), and 0 where `kept` is False.

    code: uint8 [n_out, n_in], 0 to 3.   kept: bool [n_out, n_in], two of each four, or None for all.
    scale: int [n_out, n_in / 64], 0 to 16383.   zero: uint8 [n_out, n_in / 64], 0 to 3.   row_scale: float32 [n_out].
    """

    code: Array
    kept: Array | None
    scale: Array
    zero: Array
    row_scale: Array

    @property
    def type_name(self) -> str:
        return "W2" if self.kept is None else "W2S24"

    def to_bytes(self) -> bytes:
        """Row by row: its groups, then its scale."""
        n_out, n_in = self.code.shape
        groups = self.code.reshape(n_out, n_in // GROUP, GROUP)
        if self.kept is None:
            fields = [_words(groups[:, :, :32], 2, 8), _words(groups[:, :, 32:], 2, 8)]
        else:
            pairs = _kept_pairs(self.kept)
            values = np.take_along_axis(self.code.reshape(-1, 4), pairs, axis=1).reshape(n_out, -1, 32)
            patterns = _PATTERN[pairs[:, 0], pairs[:, 1]].reshape(n_out, -1, 16)
            fields = [_words(patterns, 3, 6), _words(values, 2, 8)]
        both = self.scale.astype(np.uint16) | self.zero.astype(np.uint16) << np.uint16(14)
        fields.append(both.astype("<u2")[:, :, None].view(np.uint8))
        rows = np.concatenate(fields, axis=2).reshape(n_out, -1)
        return np.concatenate([rows, self.row_scale.astype("<f4")[:, None].view(np.uint8)], axis=1).tobytes()


def integer_scales(scales: Array) -> tuple[Array, Array]:
    """Scales of groups as integers of 14 bits times one float32 a row.   scales: [n_out, n_groups], none negative.

    Returns (int32 [n_out, n_groups], float32 [n_out]).
    """
    largest = scales.max(axis=1)
    row_scale = np.where(largest > 0, largest / LARGEST_SCALE, 1.0).astype(np.float32)
    integers = np.rint(scales / row_scale[:, None].astype(np.float64))
    return np.clip(integers, 0, LARGEST_SCALE).astype(np.int32), row_scale


def as_type(values: Array, kind: TensorType) -> Iterator[bytes]:
    """A matrix or vector in a type of `PLAIN_TYPES`, a bounded number of rows at a time.   values: float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rows = values.reshape(-1, values.shape[-1])
    step = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    for first in range(0, len(rows), step):
        yield quantize(np.ascontiguousarray(rows[first : first + step]), GGMLQuantizationType[kind.name]).tobytes()


def _words(numbers: Array, bits: int, n_bytes: int) -> Array:
    """Numbers of some bits, the first lowest.   numbers: [n_out, n_groups, n].   Returns uint8 [.., n_bytes]."""
    shifts = np.arange(numbers.shape[2], dtype=np.uint64) * np.uint64(bits)
    words = np.bitwise_or.reduce(numbers.astype(np.uint64) << shifts, axis=2)
    return words.astype("<u8")[:, :, None].view(np.uint8)[:, :, :n_bytes]


def _kept_pairs(kept: Array) -> Array:
    """Positions of the two kept weights of each four, ascending: [n_out * n_in / 4, 2]."""
    fours = kept.reshape(-1, 4)
    assert (fours.sum(axis=1) == 2).all()
    return np.nonzero(fours)[1].reshape(-1, 2)
