"""Random weights in every tensor type, as a file would hold them, and their values by the `gguf` package.

Our own encodings, which that package does not know, are read by the plain integers of `hetrun.testing.encoded`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from hetrun.tensor import ENCODED_TYPES, Weight
from hetrun.testing.encoded import decoded_row

_SPREAD = 0.04  # standard deviation of a trained model's matrices, roughly

# Types that the gguf package reads but cannot write: byte offset in the block of each float16 scale, and the scale that
# gives random codes about the spread above. Several are subnormal in float16, as they are in real files.
_SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q2_K": ((80, 4e-3), (82, 6e-3)),
    "Q3_K": ((108, 1e-3),),
    "Q4_K": ((0, 2.8e-4), (2, 2.1e-3)),
    "Q5_K": ((0, 1.4e-4), (2, 2.1e-3)),
    "Q6_K": ((208, 3e-5),),
    "IQ4_NL": ((0, 6e-4),),
    "IQ4_XS": ((0, 3e-5),),
    "IQ1_S": ((0, 3e-3),),
    "IQ2_XXS": ((0, 3e-4),),
    "IQ2_XS": ((0, 3e-4),),
    "IQ2_S": ((0, 3e-4),),
    "IQ3_XXS": ((0, 3e-4),),
    "IQ3_S": ((0, 1e-4),),
}


def _nibble_scales(blocks: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """IQ1_M: each of the last four uint16 begins with four bits of the float16 scale."""
    words = blocks[:, 48:].view("<u2")
    scales = (3e-3 * rng.uniform(0.5, 1.5, len(blocks))).astype("<f2").view("<u2")
    for i in range(4):
        words[:, i] = words[:, i] & 0x0FFF | (scales >> (4 * i) & 0xF) << 12


def _small_float_scales(blocks: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """NVFP4: a scale with 4 bits of exponent and 3 of mantissa for each 16 elements."""
    blocks[:, :4] = rng.integers(0x04, 0x10, (len(blocks), 4))


_OWN_SCALES: dict[str, Callable[[NDArray[np.uint8], np.random.Generator], None]] = {
    "IQ1_M": _nibble_scales,
    "NVFP4": _small_float_scales,
}

_FLOATS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.generic]]] = {
    "F32": lambda values: values.astype("<f4"),
    "F16": lambda values: values.astype("<f2"),
}


def random_blocks(weight: Weight) -> memoryview:
    """Raw blocks of a random tensor: read-only uint8, the same for the same weight."""
    rng = np.random.default_rng(zlib.crc32(repr((weight.name, weight.type.name, weight.shape)).encode()))
    if weight.type.name in ENCODED_TYPES:
        raw = _random_encoded(weight, rng)
    elif weight.type.name in _SCALES or weight.type.name in _OWN_SCALES:
        raw = _random_codes(weight, rng)
    else:
        values = rng.normal(0.0, _SPREAD, weight.shape).astype(np.float32)
        if len(weight.shape) == 1:
            values += 1.0  # norms and biases lie around a mean, and an op that drops them must show
        if weight.type.name in _FLOATS:
            raw = _FLOATS[weight.type.name](values).tobytes()
        else:
            raw = quantize(values, GGMLQuantizationType[weight.type.name]).tobytes()
    assert len(raw) == weight.nbytes
    return memoryview(raw)


def values_of(weight: Weight, blocks: memoryview) -> NDArray[np.float64]:
    """The values of raw blocks as the `gguf` package reads them.   Result: weight.shape."""
    raw = np.frombuffer(blocks, np.uint8)
    if weight.type.name == "F32":
        return raw.view("<f4").reshape(weight.shape).astype(np.float64)
    if weight.type.name == "F16":
        return raw.view("<f2").reshape(weight.shape).astype(np.float64)
    rows = raw.reshape(*weight.shape[:-1], -1)
    if weight.type.name in ENCODED_TYPES:
        return np.array([decoded_row(weight.type.name, row.tobytes()) for row in rows], np.float64)
    return dequantize(rows, GGMLQuantizationType[weight.type.name]).reshape(weight.shape).astype(np.float64)


def _random_encoded(weight: Weight, rng: np.random.Generator) -> bytes:
    """Every code at random; scales from 0 to the largest, reserved patterns and rows of zeros among them."""
    n_rows, width = weight.shape
    rows = rng.integers(0, 256, (n_rows, weight.type.row_bytes(width)), dtype=np.uint8)
    scales = (1e-5 * rng.uniform(0.5, 1.5, n_rows)).astype("<f4")
    if n_rows > 3:
        scales[1] = 0.0
    rows[:, -weight.type.row_tail_bytes :] = scales.view(np.uint8).reshape(n_rows, -1)
    return rows.tobytes()


def _random_codes(weight: Weight, rng: np.random.Generator) -> bytes:
    n_blocks = weight.n_elements // weight.type.block_size
    blocks = rng.integers(0, 256, (n_blocks, weight.type.block_bytes), dtype=np.uint8)
    if weight.type.name in _OWN_SCALES:
        _OWN_SCALES[weight.type.name](blocks, rng)
    for offset, scale in _SCALES.get(weight.type.name, ()):
        scales = (scale * rng.uniform(0.5, 1.5, n_blocks)).astype("<f2")
        if n_blocks > 3:
            scales[1] = 0.0  # a block of zeros, as padding and pruned rows have
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(n_blocks, 2)
    return blocks.tobytes()
