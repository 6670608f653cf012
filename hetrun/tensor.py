"""Tensor types of GGUF files, and our own encodings: block sizes, byte counts and names.

The table repeats ids and sizes of the `gguf` package (`gguf.constants.GGML_QUANT_SIZES`), which is too slow to
import on the way to the first token (0.3 s on a desktop, seconds on a Cortex-A9); a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class TensorType:
    """One storage format. A row of `n` elements takes `n / block_size * block_bytes + row_tail_bytes` bytes.

    name: the name of the field, as in `gguf.GGMLQuantizationType`.   id: its number in a GGUF file.
    row_tail_bytes: what follows the blocks of each row, 0 for all types of GGUF.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int
    row_tail_bytes: int = 0

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of a row of `n_elements`, which must be a multiple of `block_size` (ValueError otherwise)."""
        if n_elements % self.block_size:
            raise ValueError(f"a row of {n_elements} is no multiple of {self.name}'s block of {self.block_size}")
        return n_elements // self.block_size * self.block_bytes + self.row_tail_bytes

    def tensor_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape` (outermost dimension first); ValueError where a row is no whole number of
        blocks.
        """
        return prod(shape[:-1]) * self.row_bytes(shape[-1])

    def __str__(self) -> str:
        return self.name


TENSOR_TYPES: dict[str, TensorType] = {
    t.name: t
    for t in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q8_0", 8, 32, 34),
        TensorType("Q8_1", 9, 32, 40),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("Q8_K", 15, 256, 292),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("IQ1_S", 19, 256, 50),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("I8", 24, 1, 1),
        TensorType("I16", 25, 1, 2),
        TensorType("I32", 26, 1, 4),
        TensorType("I64", 27, 1, 8),
        TensorType("F64", 28, 1, 8),
        TensorType("IQ1_M", 29, 256, 56),
        TensorType("BF16", 30, 1, 2),
        TensorType("TQ1_0", 34, 256, 54),
        TensorType("TQ2_0", 35, 256, 66),
        TensorType("MXFP4", 39, 32, 17),
        TensorType("NVFP4", 40, 64, 36),
        TensorType("Q1_0", 41, 128, 18),
    )
}

# Encodings of `hetrun compress`, which docs/compression.md defines. Files store them as bytes (I8), never under these
# numbers: they serve the native libraries alone, and lie beyond what GGUF has given out.
ENCODED_TYPES: dict[str, TensorType] = {
    t.name: t for t in (TensorType("W2S24", 60, 64, 16, 4), TensorType("W2", 61, 64, 18, 4))
}

ALL_TYPES: dict[str, TensorType] = {**TENSOR_TYPES, **ENCODED_TYPES}

_BY_ID = {t.id: t for t in TENSOR_TYPES.values()}


def tensor_type_of_id(type_id: int) -> TensorType | None:
    """The type with that GGUF number, or None where no such type is known."""
    return _BY_ID.get(type_id)


@dataclass(frozen=True)
class Weight:
    """A named constant of the model, as the file stores it.

    shape: outermost dimension first, so a matmul weight is [n_out, n_in] (GGUF lists dimensions the other way round).
    source, first: where it is a part of a tensor (queries of fused query, key and value), that tensor's name and the
    part's first row there: rows lie one after the other, so devices see a tensor like any other.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    source: str | None = None
    first: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the raw blocks in the file."""
        return self.type.tensor_bytes(self.shape)

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    def blocks(self, of_tensor: Callable[[str], memoryview]) -> memoryview:
        """The raw blocks of this weight.   of_tensor: those of a whole tensor of the file, by its name."""
        if self.source is None:
            return of_tensor(self.name)
        start = self.first * (self.nbytes // self.shape[0])
        return of_tensor(self.source)[start : start + self.nbytes]
