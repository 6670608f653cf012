"""Weights of types that no kernel reads: their values by the `gguf` package, made once when a segment is loaded.

They are kept as float16. What such a type stores is a float16 (or smaller) scale times a few bits, so rounding the
product to 11 significant bits moves a value by at most 2**-11 of itself: a hundredth of what the 1.5 to 4.5 bits of
these types have lost before, and an eighth of what rounding activations to 8 bits does to others. Where a row comes
out worse, because values overflow float16 or the whole row lies where it has fewer digits, the tensor is kept as
float32.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hetrun.errors import AllocationError, DeviceError
from hetrun.tensor import TENSOR_TYPES, TensorType, Weight

CHUNK_ELEMENTS = 1 << 19
"""Values made at a time: with what gguf needs on the way, some tens of MB."""

LOSS = 2.0**-11
"""Largest root mean square error of a row in float16, as a share of the row's own root mean square."""

Array = Any  # NumPy is imported where a weight needs it, not on the way to the first token of others

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dequantised:
    """values: the bytes of the tensor in `type`, F16 or F32, row after row, in memory that goes with the last view."""

    values: memoryview
    type: TensorType


def dequantise(weight: Weight, blocks: memoryview, done: Callable[[int, int], None]) -> Dequantised:
    """The values of a weight's raw blocks.   done: called with ranges of bytes, [start, end), that were read.

    DeviceError where the gguf package is missing or does not read the type, AllocationError where memory is.
    """
    for type_name in ("F16", "F32"):
        kind = TENSOR_TYPES[type_name]
        nbytes = kind.tensor_bytes(weight.shape)
        try:
            memory = memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except (OSError, OverflowError, ValueError, MemoryError) as error:
            raise AllocationError(
                f"{weight.name}: no memory left for {nbytes} bytes of values", remedy="use a type that kernels read"
            ) from error
        if _fill(memory, kind, weight, blocks, done):
            return Dequantised(memory, kind)
        _log.warning("%s: values of type %s do not fit float16, they take float32", weight.name, weight.type)
    raise AssertionError("float32 holds every value")


def _fill(
    memory: memoryview, kind: TensorType, weight: Weight, blocks: memoryview, done: Callable[[int, int], None]
) -> bool:
    """Writes the values of all rows; False where float16 does not do."""
    import numpy as np

    width = weight.shape[-1]
    out = np.frombuffer(memory, "<f2" if kind.name == "F16" else "<f4").reshape(-1, width)
    row_bytes = weight.type.row_bytes(width)
    first = 0
    with np.errstate(all="ignore"):  # damaged scales overflow to inf and NaN, and that is their meaning
        for values in _chunks(weight, blocks):
            rows = out[first : first + len(values)]
            rows[:] = values
            if kind.name == "F16" and not _survive(values, rows.astype(np.float32)):
                return False
            done(first * row_bytes, (first + len(values)) * row_bytes)
            first += len(values)
    return True


def _chunks(weight: Weight, blocks: memoryview) -> Iterator[Array]:
    """float32 [some rows, width], until all rows have come."""
    import numpy as np

    try:
        import gguf
        from gguf.quants import dequantize
    except ImportError as error:
        raise DeviceError(
            f"{weight.name} has type {weight.type}, which takes the gguf package, and that is not installed",
            remedy='pip install "gguf>=0.17"',
        ) from error
    raw = np.frombuffer(blocks, np.uint8).reshape(-1, weight.type.row_bytes(weight.shape[-1]))
    step = max(1, CHUNK_ELEMENTS // weight.shape[-1])
    for first in range(0, len(raw), step):
        try:
            yield dequantize(raw[first : first + step], gguf.GGMLQuantizationType(weight.type.id))
        except (NotImplementedError, ValueError) as error:
            raise DeviceError(
                f"{weight.name} has type {weight.type}, which the installed gguf package does not read",
                remedy="pip install --upgrade gguf",
            ) from error


def _survive(values: Array, rounded: Array) -> bool:
    """Whether each row is what it was, but for `LOSS`. Infinities and NaN that were there before stay what they are."""
    import numpy as np

    finite = np.isfinite(values)
    before = np.where(finite, values, 0).astype(np.float64)
    error = np.where(finite, rounded, 0) - before
    return bool(((error**2).sum(axis=1) <= LOSS**2 * (before**2).sum(axis=1)).all())
