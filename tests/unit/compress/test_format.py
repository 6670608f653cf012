"""The encodings bit by bit, against plain integers and the example of docs/compression.md."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from hetrun.compress.encode import Codes, integer_scales
from hetrun.reference.dequant import StoredWeight, dequantize
from hetrun.tensor import ALL_TYPES, ENCODED_TYPES, Weight, tensor_type_of_id
from hetrun.testing.blocks import random_blocks, values_of
from hetrun.testing.encoded import decoded_row, levels_of_beat

N_OUT, N_IN = 9, 192


def random_codes(pruned: bool, seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    kept = None
    if pruned:
        order = rng.permuted(np.tile(np.arange(4), (N_OUT, N_IN // 4, 1)), axis=2)
        kept = (order < 2).reshape(N_OUT, N_IN)
    groups = (N_OUT, N_IN // 64)
    return Codes(
        rng.integers(0, 4, (N_OUT, N_IN)).astype(np.uint8),
        kept,
        rng.integers(0, 1 << 14, groups),
        rng.integers(0, 4, groups).astype(np.uint8),
        rng.uniform(1e-6, 1e-3, N_OUT).astype(np.float32),
    )


def rows_of(data: bytes, type_name: str) -> list[bytes]:
    size = ENCODED_TYPES[type_name].row_bytes(N_IN)
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("pruned", [True, False])
def test_what_is_written_is_what_plain_integers_read(pruned: bool) -> None:
    codes = random_codes(pruned)
    levels = codes.code.astype(int) - np.repeat(codes.zero.astype(int), 64, axis=1)
    if codes.kept is not None:
        levels *= codes.kept
    want = levels * np.repeat(codes.scale, 64, axis=1) * codes.row_scale[:, None].astype(np.float64)
    read = [decoded_row(codes.type_name, row) for row in rows_of(codes.to_bytes(), codes.type_name)]
    np.testing.assert_array_equal(read, want)


@pytest.mark.parametrize("type_name", sorted(ENCODED_TYPES))
def test_the_reference_reads_any_bits_as_plain_integers_do(type_name: str) -> None:
    weight = Weight("w", ENCODED_TYPES[type_name], (23, 320))
    blocks = random_blocks(weight)
    got, want = dequantize(blocks, weight), values_of(weight, blocks)
    np.testing.assert_allclose(got, want, rtol=2**-22, atol=0)  # two products rounded to float32
    np.testing.assert_array_equal(got == 0, want == 0)
    picked = np.array([4, 0, 22, 4])
    np.testing.assert_array_equal(StoredWeight(weight, blocks).rows(picked), got[picked])


def test_the_example_of_the_page_is_what_it_says(checkout: Path) -> None:
    page = (checkout / "docs/compression.md").read_text()
    line = re.search(r"^    ((?:[0-9a-f]{2} +)+[0-9a-f]{2})$", page, re.M)
    assert line is not None
    row = bytes.fromhex(line[1])
    step = 1000 / 1024
    want = [2 * step, 0, -step, 0, 0, 0, step, *[0] * 57]
    assert decoded_row("W2S24", row) == want
    weight = Weight("w", ENCODED_TYPES["W2S24"], (1, 64))
    assert dequantize(memoryview(row), weight)[0].tolist() == want
    assert "1.953125, 0, -0.9765625, 0, 0, 0, 0.9765625, 0" in page


def test_a_beat_is_four_groups_of_the_file() -> None:
    """Gathered as the page says, a beat gives the integers of four rows by the same 64 columns."""
    codes = random_codes(True, 3)
    data, stride = codes.to_bytes(), N_IN // 64 * 16 + 4
    beat = b"".join(data[(4 + j) * stride + 16 : (4 + j) * stride + 32] for j in range(4))
    assert len(beat) == 64
    rows = [decoded_row("W2S24", row) for row in rows_of(data, "W2S24")[4:8]]
    scale = codes.row_scale[4:8, None].astype(np.float64)
    np.testing.assert_array_equal(np.array(levels_of_beat(beat)) * scale, np.array(rows)[:, 64:128])


def test_weights_take_two_bits_and_a_float_a_row() -> None:
    kind = ENCODED_TYPES["W2S24"]
    assert kind.row_bytes(4096) == 4096 * 2 // 8 + 4
    assert ENCODED_TYPES["W2"].row_bytes(64) == 18 + 4
    assert Weight("w", kind, (3, 128)).nbytes == 3 * (2 * 16 + 4)


def test_no_number_of_a_file_means_an_encoding() -> None:
    """A file names encodings in its metadata; a tensor of such a type number stays unknown."""
    assert all(tensor_type_of_id(kind.id) is None for kind in ENCODED_TYPES.values())
    assert len({kind.id for kind in ALL_TYPES.values()}) == len(ALL_TYPES)


def test_scales_become_integers_of_14_bits_times_one_float() -> None:
    scales = np.array([[0.5, 0.25, 1e-9], [0.0, 0.0, 0.0], [1e-3, 3e-3, 7e-3]])
    integers, row_scale = integer_scales(scales)
    assert integers.max() == 16383
    assert integers.min() == 0
    np.testing.assert_allclose(integers * row_scale[:, None].astype(np.float64), scales, atol=0.5 / 16383 * 0.5 + 1e-9)
    assert struct.pack("<f", row_scale[0]) == row_scale[0].tobytes()
