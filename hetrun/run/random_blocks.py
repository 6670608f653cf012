"""Blocks of random weights that every kernel takes for real ones: codes at random, scales of the usual size.

Bytes all at random would hold infinities and denormal numbers, which give no numbers and cost time.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from functools import cache

from hetrun.tensor import TensorType, Weight

# Byte offset of each float16 scale in a block, and a scale that keeps the products of random codes near 1.
SCALES: Mapping[str, Sequence[tuple[int, float]]] = {
    "Q8_0": ((0, 1e-3),),
    "Q4_0": ((0, 1e-2),),
    "Q4_1": ((0, 1e-2), (2, -7e-2)),
    "Q5_0": ((0, 5e-3),),
    "Q5_1": ((0, 5e-3), (2, -7e-2)),
    "Q2_K": ((80, 4e-3), (82, 6e-3)),
    "Q3_K": ((108, 1e-3),),
    "Q4_K": ((0, 2.8e-4), (2, 2.1e-3)),
    "Q5_K": ((0, 1.4e-4), (2, 2.1e-3)),
    "Q6_K": ((208, 3e-5),),
    "IQ4_NL": ((0, 6e-4),),
    "IQ4_XS": ((0, 3e-5),),
    "TQ1_0": ((52, 4e-2),),
    "TQ2_0": ((64, 4e-2),),
}
_EXPONENT_OF_8_BITS = {"MXFP4": 0}  # byte of the block that holds it
_FLOATS = ("F32", "F16", "BF16")
_PATTERN_BLOCKS = 509  # a prime: rows of a matrix then differ
_PATTERN_FLOATS = 8191

TYPES = frozenset((*SCALES, *_EXPONENT_OF_8_BITS, *_FLOATS))
"""Names of the tensor types that there are blocks for."""


def tiled_blocks(weight: Weight) -> memoryview:
    """Raw blocks of a matrix, or ones for a vector: a short random pattern, repeated.   uint8 [weight.nbytes]."""
    pattern = _ones() if len(weight.shape) == 1 else _pattern(weight.type)
    return memoryview((pattern * (weight.nbytes // len(pattern) + 1))[: weight.nbytes])


def _ones() -> bytes:
    return struct.pack("<f", 1.0)


@cache
def _pattern(kind: TensorType) -> bytes:
    rng = random.Random(kind.id)
    if kind.name in _FLOATS:
        numbers = [rng.gauss(0.0, 0.04) for _ in range(_PATTERN_FLOATS)]
        if kind.name == "BF16":
            return b"".join(struct.pack("<f", n)[2:] for n in numbers)
        return struct.pack(f"<{len(numbers)}{'f' if kind.name == 'F32' else 'e'}", *numbers)
    data = bytearray(rng.randbytes(_PATTERN_BLOCKS * kind.block_bytes))
    for start in range(0, len(data), kind.block_bytes):
        for offset, scale in SCALES.get(kind.name, ()):
            struct.pack_into("<e", data, start + offset, scale * rng.uniform(0.5, 1.5))
        if kind.name in _EXPONENT_OF_8_BITS:
            data[start + _EXPONENT_OF_8_BITS[kind.name]] = 120  # 2^-7
    return bytes(data)
