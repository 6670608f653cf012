"""hetrun's table of tensor types against the gguf package's."""

from __future__ import annotations

import gguf
import pytest

from hetrun.tensor import TENSOR_TYPES, Weight, tensor_type_of_id

NEWER_THAN_GGUF_0_17 = {"MXFP4", "NVFP4", "Q1_0"}  # the oldest gguf package that hetrun accepts lacks them


def test_table_is_the_gguf_packages():
    theirs = {t.name: (int(t), block, size) for t, (block, size) in gguf.GGML_QUANT_SIZES.items()}
    ours = {t.name: (t.id, t.block_size, t.block_bytes) for t in TENSOR_TYPES.values()}
    assert {name: ours[name] for name in ours if name in theirs or name not in NEWER_THAN_GGUF_0_17} == theirs


TYPES = [t.name for t in gguf.GGMLQuantizationType]


@pytest.mark.parametrize("name", TYPES)
def test_type_is_found_by_its_number(name):
    assert tensor_type_of_id(int(gguf.GGMLQuantizationType[name])) is TENSOR_TYPES[name]


@pytest.mark.parametrize("number", [-1, 4, 5, 31, 32, 33, 36, 37, 38, 1 << 31], ids=str)
def test_removed_and_unknown_numbers_have_no_type(number):
    assert tensor_type_of_id(number) is None


@pytest.mark.parametrize("name", TYPES)
def test_bytes_of_a_tensor(name):
    block = TENSOR_TYPES[name].block_size
    shape = (3, 5, 2 * block)
    byte_shape = gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[name])
    assert Weight("w", TENSOR_TYPES[name], shape).nbytes == byte_shape[0] * byte_shape[1] * byte_shape[2]


def test_a_row_of_broken_blocks_is_refused():
    with pytest.raises(ValueError, match="31 is no multiple of Q4_0's block of 32"):
        TENSOR_TYPES["Q4_0"].row_bytes(31)
