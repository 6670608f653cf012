"""Dequantisation of the reference against the gguf package."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest

from hetrun.errors import DeviceError
from hetrun.reference.dequant import CHUNK_ELEMENTS, MEANINGS, StoredWeight, dequantize, dequantize_blocks
from hetrun.reference.driver import GGUF_TYPES, OWN_TYPES
from hetrun.tensor import TENSOR_TYPES, Weight

# gguf itself warns of overflow where random scales are inf or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def random_blocks(type_name: str, n_blocks: int, seed: int = 0) -> np.ndarray:
    t = TENSOR_TYPES[type_name]
    return np.random.default_rng(seed).integers(0, 256, (n_blocks, t.block_bytes), dtype=np.uint8)


def gguf_values(raw: np.ndarray, type_name: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_name]).reshape(-1)


def assert_bit_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("type_name", sorted(OWN_TYPES | GGUF_TYPES))
def test_random_blocks_are_bit_equal_to_gguf(type_name, seed):
    raw = random_blocks(type_name, 64, seed)
    assert_bit_equal(dequantize_blocks(raw.reshape(-1), TENSOR_TYPES[type_name]), gguf_values(raw, type_name))


def test_own_types_are_those_written_here():
    assert set(MEANINGS) == OWN_TYPES


@pytest.mark.parametrize("type_name", sorted(OWN_TYPES))
def test_layout_of_a_block_has_its_size(type_name):
    layout, _ = MEANINGS[type_name]
    assert layout.itemsize == TENSOR_TYPES[type_name].block_bytes


@pytest.mark.parametrize("type_name", sorted(set(TENSOR_TYPES) - OWN_TYPES - GGUF_TYPES))
def test_refused_types_have_no_meaning_in_gguf_either(type_name):
    with pytest.raises(NotImplementedError):
        gguf_values(random_blocks(type_name, 1), type_name)


@pytest.mark.parametrize("type_name", sorted(set(TENSOR_TYPES) - OWN_TYPES - GGUF_TYPES))
def test_a_type_without_meaning_is_named(type_name):
    raw = random_blocks(type_name, 1)
    with pytest.raises(DeviceError, match=type_name):
        dequantize_blocks(raw.reshape(-1), TENSOR_TYPES[type_name])


def test_a_tensor_larger_than_a_chunk_is_whole():
    raw = random_blocks("Q4_0", CHUNK_ELEMENTS // 32 + 5)
    assert_bit_equal(dequantize_blocks(raw.reshape(-1), TENSOR_TYPES["Q4_0"]), gguf_values(raw, "Q4_0"))


def test_blocks_need_no_alignment():
    raw = random_blocks("Q6_K", 2)
    shifted = memoryview(b"\0" + raw.tobytes())[1:]
    assert_bit_equal(dequantize(shifted, Weight("w", TENSOR_TYPES["Q6_K"], (512,))), gguf_values(raw, "Q6_K"))


@pytest.mark.parametrize("whole_first", [False, True])
def test_rows_are_those_of_the_array(whole_first):
    raw = random_blocks("Q8_0", 7 * 2)
    raw[:, 1] &= 0x3F  # finite scales
    stored = StoredWeight(Weight("w", TENSOR_TYPES["Q8_0"], (7, 64)), memoryview(raw).cast("B"))
    expected = gguf_values(raw, "Q8_0").reshape(7, 64)[[6, 0, 6]]
    if whole_first:
        assert stored.array.shape == (7, 64)
    assert_bit_equal(stored.rows(np.array([6, 0, 6], np.int32)), expected)


def test_data_of_the_wrong_length_is_refused():
    with pytest.raises(DeviceError, match=r"w: 33 bytes given, but Q8_0 \(1, 32\) takes 34"):
        StoredWeight(Weight("w", TENSOR_TYPES["Q8_0"], (1, 32)), memoryview(bytes(33)))
