"""What the tensor types of GGUF files mean: raw blocks to float32.

Each own type is a NumPy record that lays out one block as the format defines it, and a function that gives the value of
every element (`_E`: the element's number in its block). Encodings of our own, whose rows end with a scale, are in
`hetrun.reference.encoded`. The other types are dequantised by the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hetrun.errors import DeviceError
from hetrun.reference.arrays import F32Array, I32Array, U8Array
from hetrun.reference.encoded import dequantize_encoded
from hetrun.tensor import ENCODED_TYPES, TensorType, Weight

Blocks = Any  # an array of records, one a block

CHUNK_ELEMENTS = 1 << 20  # bounds the temporaries of a large tensor to a few MB


def dequantize(data: memoryview, weight: Weight) -> F32Array:
    """Values of a tensor.   data: its raw blocks, any alignment.   Returns float32 of `weight.shape`.

    DeviceError where the data is not `weight.nbytes` long, or the type is not known here.
    """
    _check_length(data, weight)
    raw = np.frombuffer(data, np.uint8) if data.nbytes else np.empty(0, np.uint8)
    return dequantize_rows(raw, weight.type, weight.shape[-1]).reshape(weight.shape)


def dequantize_rows(raw: U8Array, tensor_type: TensorType, width: int) -> F32Array:
    """Values of whole rows of `width`, one after the other.   raw: uint8, contiguous.   Returns a float32 vector."""
    if tensor_type.name in ENCODED_TYPES:
        return dequantize_encoded(raw, tensor_type, width)
    return dequantize_blocks(raw, tensor_type)


def dequantize_blocks(raw: U8Array, tensor_type: TensorType) -> F32Array:
    """Values of whole blocks, one after the other.   raw: uint8, contiguous.   Returns a float32 vector."""
    n_blocks = raw.size // tensor_type.block_bytes
    out = np.empty((n_blocks, tensor_type.block_size), np.float32)
    step = max(1, CHUNK_ELEMENTS // tensor_type.block_size)
    raw = raw.reshape(n_blocks, tensor_type.block_bytes)
    with np.errstate(all="ignore"):  # random or damaged scales overflow to inf and NaN, and that is their meaning
        for first in range(0, n_blocks, step):
            out[first : first + step] = _values(raw[first : first + step], tensor_type)
    return out.reshape(-1)


def _values(raw: U8Array, tensor_type: TensorType) -> Any:
    """raw: [n_blocks, block_bytes].   Returns float32 [n_blocks, block_size]."""
    if tensor_type.name in MEANINGS:
        layout, meaning = MEANINGS[tensor_type.name]
        return meaning(raw.reshape(-1).view(layout))
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise DeviceError(
            f"the reference reads tensor type {tensor_type.name} by the gguf package; it is not installed",
            remedy='pip install "gguf>=0.17"',
        ) from error

    try:
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(tensor_type.id))
    except (NotImplementedError, ValueError) as error:
        raise DeviceError(
            f"the installed gguf package gives tensor type {tensor_type.name} no meaning",
            remedy="pip install --upgrade gguf",
        ) from error


def _check_length(data: memoryview, weight: Weight) -> None:
    if data.nbytes != weight.nbytes:
        raise DeviceError(
            f"{weight.name}: {data.nbytes} bytes given, but {weight.type} {weight.shape} takes {weight.nbytes}"
        )


class StoredWeight:
    """A weight in its file's blocks, dequantised when it is first needed as a whole."""

    def __init__(self, weight: Weight, data: memoryview) -> None:
        _check_length(data, weight)
        self.weight = weight
        self._data = data
        self._array: F32Array | None = None

    @property
    def array(self) -> F32Array:
        """All values: float32 of the weight's shape."""
        if self._array is None:
            self._array = dequantize(self._data, self.weight)
        return self._array

    def rows(self, indices: I32Array) -> F32Array:
        """Rows of a matrix: float32 [len(indices), width]. Only those are dequantised."""
        if self._array is not None:
            return self._array[indices]
        n_rows, width = self.weight.shape
        raw = np.frombuffer(self._data, np.uint8).reshape(n_rows, -1)[indices]
        return dequantize_rows(raw.reshape(-1), self.weight.type, width).reshape(len(indices), width)


def _f32(x: Any) -> F32Array:
    return x.astype(np.float32)


def _column(x: Any) -> F32Array:
    """One float32 a block, to be multiplied with all its elements."""
    return _f32(x)[:, None]


def _as_f32(b: Blocks) -> F32Array:
    return b["x"][:, None]


def _as_f16(b: Blocks) -> F32Array:
    return _column(b["x"])


def _as_bf16(b: Blocks) -> F32Array:
    """The upper half of a float32."""
    return (b["x"].astype("<u4") << np.uint32(16)).view("<f4")[:, None]


_E32 = np.arange(32)
_LOW_FIRST = (_E32 % 16, (4 * (_E32 // 16)).astype(np.uint8))  # byte and shift: low nibbles are elements 0 to 15


def _nibbles(b: Blocks) -> U8Array:
    byte, shift = _LOW_FIRST
    return b["qs"][:, byte] >> shift & np.uint8(15)


def _fifth_bits(b: Blocks) -> U8Array:
    """Bit e of the word `qh`, as the value 16."""
    return ((b["qh"][:, None] >> _E32.astype(np.uint32) & np.uint32(1)) << np.uint32(4)).astype(np.uint8)


def _q4_0(b: Blocks) -> F32Array:
    return _column(b["d"]) * (_f32(_nibbles(b)) - np.float32(8))


def _q4_1(b: Blocks) -> F32Array:
    return _column(b["d"]) * _f32(_nibbles(b)) + _column(b["m"])


def _q5_0(b: Blocks) -> F32Array:
    return _column(b["d"]) * (_f32(_nibbles(b) | _fifth_bits(b)) - np.float32(16))


def _q5_1(b: Blocks) -> F32Array:
    return _column(b["d"]) * _f32(_nibbles(b) | _fifth_bits(b)) + _column(b["m"])


def _q8_0(b: Blocks) -> F32Array:
    return _column(b["d"]) * _f32(b["qs"])


_E = np.arange(256)  # elements of a super-block


def _bits(field: U8Array, byte: Any, shift: Any, mask: int) -> U8Array:
    """For each element: its byte of the field, shifted and masked.   field: [n_blocks, n_bytes]."""
    return field[:, byte] >> shift.astype(np.uint8) & np.uint8(mask)


def _q2_k(b: Blocks) -> F32Array:
    """16 sub-blocks of 16: 4 bits of scale, 4 bits of minimum; 2-bit codes; elements 32 apart share a byte."""
    group = _E // 16
    scale = _column(b["d"]) * _f32(b["scales"] & 15)
    minimum = _column(b["dmin"]) * _f32(b["scales"] >> 4)
    code = _bits(b["qs"], _E // 128 * 32 + _E % 32, _E // 32 % 4 * 2, 3)
    return scale[:, group] * _f32(code) - minimum[:, group]


def _q3_k(b: Blocks) -> F32Array:
    """16 sub-blocks of 16: 6-bit scales less 32; 2-bit codes as in Q2_K, less 4 where the bit in hmask is not set.

    Scale j: low 4 bits are nibble j // 8 of byte j % 8, high 2 bits are pair j // 4 of byte 8 + j % 4.
    """
    j = np.arange(16)
    low = _bits(b["scales"], j % 8, j // 8 * 4, 15)
    high = _bits(b["scales"], 8 + j % 4, j // 4 * 2, 3)
    scale = _column(b["d"]) * (_f32(low | high << np.uint8(4)) - np.float32(32))
    code = _bits(b["qs"], _E // 128 * 32 + _E % 32, _E // 32 % 4 * 2, 3)
    kept = _bits(b["hmask"], _E % 32, _E // 32, 1)
    return scale[:, _E // 16] * (_f32(code) - np.float32(4) * (np.float32(1) - _f32(kept)))


def _scales_and_minima(b: Blocks) -> tuple[F32Array, F32Array]:
    """Of the 8 sub-blocks of Q4_K and Q5_K, 6 bits each: float32 [n_blocks, 8].

    Sub-blocks 0 to 3: the low 6 bits of bytes j and 4 + j. Sub-blocks 4 to 7: the nibbles of byte 4 + j, topped by the
    upper 2 bits of bytes j - 4 and j.
    """
    s = b["scales"]
    scale = np.concatenate([s[:, 0:4] & 63, s[:, 8:12] & 15 | s[:, 0:4] >> 6 << 4], axis=1)
    minimum = np.concatenate([s[:, 4:8] & 63, s[:, 8:12] >> 4 | s[:, 4:8] >> 6 << 4], axis=1)
    return _column(b["d"]) * _f32(scale), _column(b["dmin"]) * _f32(minimum)


def _k_nibbles(b: Blocks) -> U8Array:
    """Of Q4_K and Q5_K: elements that lie 32 apart share a byte, low nibble first."""
    return _bits(b["qs"], _E // 64 * 32 + _E % 32, _E // 32 % 2 * 4, 15)


def _q4_k(b: Blocks) -> F32Array:
    scale, minimum = _scales_and_minima(b)
    return scale[:, _E // 32] * _f32(_k_nibbles(b)) - minimum[:, _E // 32]


def _q5_k(b: Blocks) -> F32Array:
    """As Q4_K, and a fifth bit: of element e, bit e // 32 of byte e % 32 of qh."""
    scale, minimum = _scales_and_minima(b)
    code = _k_nibbles(b) | _bits(b["qh"], _E % 32, _E // 32, 1) << np.uint8(4)
    return scale[:, _E // 32] * _f32(code) - minimum[:, _E // 32]


def _q6_k(b: Blocks) -> F32Array:
    """16 sub-blocks of 16 with signed scales; 6-bit codes less 32, in two halves of 128 elements."""
    low = _bits(b["ql"], _E // 128 * 64 + _E % 64, _E // 64 % 2 * 4, 15)
    high = _bits(b["qh"], _E // 128 * 32 + _E % 32, _E // 32 % 4 * 2, 3)
    scale = _column(b["d"]) * _f32(b["scales"])
    return scale[:, _E // 16] * (_f32(low | high << np.uint8(4)) - np.float32(32))


def _layout(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype(list(fields))


MEANINGS: dict[str, tuple[np.dtype[Any], Callable[[Blocks], F32Array]]] = {
    "F32": (_layout(("x", "<f4")), _as_f32),
    "F16": (_layout(("x", "<f2")), _as_f16),
    "BF16": (_layout(("x", "<u2")), _as_bf16),
    "Q4_0": (_layout(("d", "<f2"), ("qs", "u1", 16)), _q4_0),
    "Q4_1": (_layout(("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)), _q4_1),
    "Q5_0": (_layout(("d", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)), _q5_0),
    "Q5_1": (_layout(("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)), _q5_1),
    "Q8_0": (_layout(("d", "<f2"), ("qs", "i1", 32)), _q8_0),
    "Q2_K": (_layout(("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")), _q2_k),
    "Q3_K": (_layout(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")), _q3_k),
    "Q4_K": (_layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)), _q4_k),
    "Q5_K": (
        _layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
        _q5_k,
    ),
    "Q6_K": (_layout(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")), _q6_k),
}
"""Type name -> layout of one block, and the values of blocks: float32 [n_blocks, block_size]."""
