"""Weights in the channels of the U280's HBM: every value where engine.h has it, and near what the file says."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import u280_order
from u280_order import Weight, random_rows
from u280_rig import Bytes, Floats, library, numbers, type_number

from hetrun.tensor import TENSOR_TYPES

FORMATS = {
    "W2S24": "W2S24", "W2": "W2", "Q4_0": "S4", "Q4_1": "U4", "Q4_K": "U4", "Q5_0": "S8", "Q8_0": "S8", "Q6_K": "S8H",
}  # fmt: skip
# Rows and columns of a beat, scales of it, whether there are minima.
BEATS = {
    "W2S24": (4, 64, 0, False), "W2": (4, 64, 4, False), "S4": (4, 32, 4, False), "U4": (4, 32, 4, True),
    "S8": (2, 32, 2, False), "S8H": (2, 32, 4, False),
}  # fmt: skip


def packed(name: str, rows: Bytes, columns: int) -> Bytes:
    """[channels, beats, 64]"""
    number = type_number(name)
    beats = library().hetrun_u280_channel_beats(number, len(rows), columns)
    out = np.full((32, beats + 1, 64), 0x5A, np.uint8)
    for c in range(32):
        library().hetrun_u280_pack(number, len(rows), columns, rows.ctypes.data, c, out[c].ctypes.data)
    assert (out[:, beats] == 0x5A).all()
    return out[:, :beats]


def unpacked(form: str, channels: Bytes, n_rows: int, n_columns: int) -> tuple[np.ndarray, Floats]:
    """Integers [rows, columns] and row scales, read by the letter of engine.h, value by value."""
    rows_of, columns_of, scales_of, minima = BEATS[form]
    integers = np.zeros((n_rows, n_columns), np.int64)
    scales = np.zeros(n_rows, np.float32)
    n_blocks = -(-n_rows // (32 * rows_of))
    n_values = -(-n_columns // columns_of)
    for channel in range(32):
        beats = iter(channels[channel])
        for place in range(n_blocks):
            if place % (16 // rows_of) == 0:
                of_group = next(beats).view("<f4")
            found = [[] for _ in range(rows_of)]  # of each row: values, beat by beat
            many = 32 // scales_of if scales_of else 1
            for first in range(0, n_values, many):
                values = [next(beats) for _ in range(min(many, n_values - first))]
                scale = next(beats).view("<i2") if scales_of else None
                least = next(beats).view("<i2") if minima else np.zeros(32, np.int64)
                for b, beat in enumerate(values):
                    for r in range(rows_of):
                        found[r] += _values(form, beat, r, scale, least, b)
            for r in range(rows_of):
                row = (place * 32 + channel) * rows_of + r
                if row < n_rows:
                    integers[row] = found[r][:n_columns]
                    scales[row] = of_group[place % (16 // rows_of) * rows_of + r]
                    assert not np.any(found[r][n_columns:]) or form in ("S4",)
        assert next(beats, None) is None
    return integers, scales


def _values(form: str, beat: Bytes, r: int, scale: np.ndarray | None, least: np.ndarray, b: int) -> list[int]:
    if form == "W2S24":
        return u280_order.levels_of_beat(bytes(beat))[r]
    assert scale is not None
    if form == "W2":
        own = int(scale[4 * b + r]) & 0xFFFF
        return [((int(beat[16 * r + k // 4]) >> 2 * (k % 4) & 3) - (own >> 14)) * (own & 0x3FFF) for k in range(64)]
    if form in ("S4", "U4"):
        at = 4 * b + r
        codes = [int(beat[16 * r + k // 2]) >> 4 * (k % 2) & 15 for k in range(32)]
        return [int(scale[at]) * (code - 8 * (form == "S4")) + int(least[at]) for code in codes]
    codes = [int(code) for code in beat[32 * r : 32 * r + 32].view(np.int8)]
    per = 32 if form == "S8" else 16
    return [int(scale[(64 // per) * b + (32 // per) * r + k // per]) * code for k, code in enumerate(codes)]


def columns_for(name: str) -> tuple[int, ...]:
    return (256, 768) if name.endswith("_K") else (64, 704) if name in u280_order.BLOCKS else (32, 96, 544)


@pytest.mark.parametrize("name", u280_order.TYPES)
def test_every_value_is_where_the_header_says(name: str) -> None:
    rng = np.random.default_rng(u280_order.TYPES.index(name))
    assert library().hetrun_u280_format(type_number(name)) == numbers()[f"FORMAT_{FORMATS[name]}"]
    for columns in columns_for(name):
        for n_rows in (1, 5, 128, 530):
            rows = random_rows(rng, name, n_rows, columns)
            expected = Weight.of(name, rows)
            integers, scales = unpacked(FORMATS[name], packed(name, rows, columns), n_rows, columns)
            assert np.array_equal(integers, expected.integers), (columns, n_rows)
            assert np.array_equal(scales, expected.scales)


@pytest.mark.parametrize("name", u280_order.GGUF_TYPES)
def test_values_are_near_what_the_file_says(name: str) -> None:
    """Half a step of the row's largest scale for each step of the code, and as much of a minimum."""
    rng = np.random.default_rng(20)
    columns = 768
    rows = random_rows(rng, name, 40, columns)
    integers, scales = unpacked(FORMATS[name], packed(name, rows, columns), 40, columns)
    exact = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name]).astype(np.float64)
    values = integers * scales[:, None].astype(np.float64)
    most_code = {"S4": 8, "U4": 15, "S8": 128, "S8H": 32}[FORMATS[name]]
    bound = 0.5001 * scales[:, None] * (most_code + BEATS[FORMATS[name]][3]) + np.abs(exact) * 2.0**-22
    error = np.abs(values - exact)
    assert (error <= bound).all()
    assert error.max() > 0.1 * bound.max()  # the bound is not idle


@pytest.mark.parametrize(("name", "bad"), [("Q4_0", np.nan), ("Q8_0", np.inf), ("Q4_K", -np.inf)])
def test_a_row_whose_scale_is_no_number_gives_none(name: str, bad: float) -> None:
    rows = random_rows(np.random.default_rng(3), name, 8, 256)
    rows[3, :2] = np.array([bad], "<f2").view(np.uint8)
    integers, scales = unpacked(FORMATS[name], packed(name, rows, 256), 8, 256)
    assert np.isnan(scales[3]) and np.isfinite(np.delete(scales, 3)).all()
    assert not integers[3].any()


def test_a_row_of_zeros_is_zeros() -> None:
    rows = np.zeros((9, 34 * 2), np.uint8)
    integers, scales = unpacked("S8", packed("Q8_0", rows, 64), 9, 64)
    assert not integers.any() and not scales.any()


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        *[(name, 8, 256) for name in TENSOR_TYPES if name not in FORMATS],
        ("Q4_0", 0, 64), ("Q4_0", 8, 0), ("Q4_0", 8, 48), ("Q4_K", 8, 128), ("W2S24", 8, 96), ("Q4_0", 8, 16416),
        ("Q8_0", 1 << 20, 16384), ("Q8_0", 1 << 40, 64), ("Q8_0", (1 << 64) - 1, 64),
    ],
)  # fmt: skip
def test_what_the_engine_does_not_take_has_no_beats(name: str, rows: int, columns: int) -> None:
    assert library().hetrun_u280_channel_beats(type_number(name), rows, columns) == 0
    library().hetrun_u280_pack(type_number(name), rows, columns, None, 0, None)  # and writes none


def test_types_beyond_all_numbers_have_no_format() -> None:
    for number in (4, 58, 59, 62, 0xFFFFFFFF):
        assert library().hetrun_u280_format(number) == 0xFFFFFFFF
        assert library().hetrun_u280_channel_beats(number, 64, 64) == 0
    library().hetrun_u280_pack(2, 8, 64, None, 32, None)  # no such channel


def test_a_7b_model_is_as_large_as_its_layout_says() -> None:
    """Bits a weight of a Llama-2-7B matrix, and a row scale: 2.00, 4.50 and 8.50 (analytic)."""
    for name, bits in (("W2S24", 2.0), ("Q4_0", 4.5), ("Q8_0", 8.5)):
        beats = library().hetrun_u280_channel_beats(type_number(name), 11008, 4096)
        of_rows = 32 * 11008 / (11008 * 4096)
        assert 32 * beats * 512 / (11008 * 4096) == pytest.approx(bits + of_rows, rel=2e-3), name


@pytest.mark.parametrize(
    ("shape", "beats"),
    [
        ((1, 2046, 32, 128), 64 * (4 + 64)),  # a channel a head: 64 blocks of 32 places
        ((2, 32, 3, 64), 2 * 1 * (4 + 64)),  # ten channels a head: 4 places each
        ((1, 64, 40, 256), 2 * 2 * (4 + 128)),  # two groups of heads, keys of two beats
        ((1, 33, 1, 64), 4 + 64),
        ((0, 32, 1, 64), 0), ((1, 0, 1, 64), 0), ((1, 8193, 1, 64), 0), ((1, 32, 0, 64), 0), ((1, 32, 129, 64), 0),
        ((1, 32, 1, 63), 0), ((1, 32, 1, 258), 0), ((1 << 20, 8192, 32, 128), 0),
    ],
)  # fmt: skip
def test_a_cache_takes_whole_blocks_of_every_channel(shape: tuple[int, int, int, int], beats: int) -> None:
    assert library().hetrun_u280_kv_beats(*map(ctypes.c_uint32, shape)) == beats
