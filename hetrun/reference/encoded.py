"""What our own encodings mean: rows of groups of 64 weights, each group 2-bit values with a scale and a zero point, and
behind the groups the row's scale. docs/compression.md defines the bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hetrun.reference.arrays import F32Array, U8Array
from hetrun.tensor import TensorType

GROUP = 64
CHUNK_ELEMENTS = 1 << 20

# Pattern of four weights -> which two are kept. 6 and 7 are reserved: they keep none.
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
# [pattern, position]: the number of the value of that position, 2 where it is pruned.
_VALUE_OF = np.full((8, 4), 2, np.uint8)
for _pattern, _pair in enumerate(PAIRS):
    _VALUE_OF[_pattern, list(_pair)] = (0, 1)


def dequantize_encoded(raw: U8Array, tensor_type: TensorType, width: int) -> F32Array:
    """Values of whole rows, one after the other.   raw: uint8, contiguous.   Returns a float32 vector."""
    row_bytes = tensor_type.row_bytes(width)
    rows = raw.reshape(-1, row_bytes)
    out = np.empty((len(rows), width), np.float32)
    step = max(1, CHUNK_ELEMENTS // width)
    with np.errstate(all="ignore"):  # a damaged row scale may be inf or NaN, and that is its meaning
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            groups = part[:, : -tensor_type.row_tail_bytes].reshape(-1, tensor_type.block_bytes)
            row_scale = np.ascontiguousarray(part[:, -tensor_type.row_tail_bytes :]).view("<f4")
            levels, scale = _LEVELS[tensor_type.name](groups)
            scales = row_scale * scale.reshape(len(part), -1).astype(np.float32)
            values = levels.reshape(len(part), -1, GROUP).astype(np.float32) * scales[:, :, None]
            out[first : first + step] = values.reshape(len(part), width)
    return out.reshape(-1)


def _scale_and_zero(field: U8Array) -> tuple[Any, Any]:
    """field: [n_groups, 2], 14 bits of scale and 2 of zero point.   Returns both, [n_groups]."""
    word = np.ascontiguousarray(field).view("<u2")[:, 0]
    return word & np.uint16(0x3FFF), (word >> np.uint16(14)).astype(np.int8)


def _two_bits(field: U8Array) -> U8Array:
    """Four values a byte, the first in the lowest bits.   Returns [n_groups, 4 * bytes]."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    return (field[:, :, None] >> shifts & np.uint8(3)).reshape(len(field), -1)


def _w2s24(groups: U8Array) -> tuple[Any, Any]:
    """48 bits of patterns, 64 of values, scale and zero.   Returns levels int8 [n_groups, 64], scales [n_groups]."""
    bits = np.unpackbits(groups[:, :6], axis=1, bitorder="little").reshape(len(groups), 16, 3)
    patterns = bits[:, :, 0] | bits[:, :, 1] << np.uint8(1) | bits[:, :, 2] << np.uint8(2)
    scale, zero = _scale_and_zero(groups[:, 14:16])
    kept = _two_bits(groups[:, 6:14]).reshape(-1, 16, 2).astype(np.int8) - zero[:, None, None]
    choice = np.concatenate([kept, np.zeros((len(groups), 16, 1), np.int8)], axis=2)
    levels = np.take_along_axis(choice, _VALUE_OF[patterns].astype(np.intp), axis=2)
    return levels.reshape(-1, GROUP), scale


def _w2(groups: U8Array) -> tuple[Any, Any]:
    """128 bits of values, scale and zero."""
    scale, zero = _scale_and_zero(groups[:, 16:18])
    return _two_bits(groups[:, :16]).astype(np.int8) - zero[:, None], scale


_LEVELS = {"W2S24": _w2s24, "W2": _w2}
