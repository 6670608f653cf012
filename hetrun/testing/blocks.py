"""Random weights in every tensor type, as a file would hold them, and their values by the `gguf` package."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from hetrun.tensor import Weight

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
    "IQ2_XXS": ((0, 3e-4),),
    "IQ3_XXS": ((0, 3e-4),),
}

_FLOATS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.generic]]] = {
    "F32": lambda values: values.astype("<f4"),
    "F16": lambda values: values.astype("<f2"),
}


def random_blocks(weight: Weight) -> memoryview:
    """Raw blocks of a random tensor: read-only uint8, the same for the same weight."""
    rng = np.random.default_rng(zlib.crc32(repr((weight.name, weight.type.name, weight.shape)).encode()))
    if weight.type.name in _SCALES:
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
    return dequantize(rows, GGMLQuantizationType[weight.type.name]).reshape(weight.shape).astype(np.float64)


def _random_codes(weight: Weight, rng: np.random.Generator) -> bytes:
    n_blocks = weight.n_elements // weight.type.block_size
    blocks = rng.integers(0, 256, (n_blocks, weight.type.block_bytes), dtype=np.uint8)
    for offset, scale in _SCALES[weight.type.name]:
        scales = (scale * rng.uniform(0.5, 1.5, n_blocks)).astype("<f2")
        if n_blocks > 3:
            scales[1] = 0.0  # a block of zeros, as padding and pruned rows have
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(n_blocks, 2)
    return blocks.tobytes()
