"""The KV cache of the reference: rounding of its formats, rings, copies and the positions it holds."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest

from hetrun.errors import DeviceError
from hetrun.ops import KvSpec
from hetrun.reference.kv import KvCache, hadamard, round_to_format


def rows(n: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def filled(kv: KvSpec, n_tokens: int, slot: int = 0, seed: int = 0) -> tuple[KvCache, np.ndarray]:
    cache, keys = KvCache(kv), rows(n_tokens, kv.width, seed)
    for p in range(n_tokens):
        cache.write(i32(p), i32(slot), keys[p : p + 1], -keys[p : p + 1])
    return cache, keys


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_q8_0_rounds_as_gguf_does(scale):
    x = scale * rows(50, 64)
    x[0] = 0
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(
        round_to_format(x, "q8_0"), gguf.quants.dequantize(gguf.quants.quantize(x, q8_0), q8_0)
    )


def test_q8_0_rounds_ties_away_from_zero():
    x = np.zeros(32, np.float32)
    x[:4] = 127, 0.5, -1.5, 0.49999997
    assert round_to_format(x, "q8_0")[:4].tolist() == [127, 1, -2, 0]


def test_f16_rounds_to_nearest_even_and_overflows_to_infinity():
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 70000, np.nan], np.float32)
    np.testing.assert_array_equal(round_to_format(x, "f16"), np.array([1, 1 + 2**-9, np.inf, np.nan], np.float32))


def test_f32_keeps_every_bit():
    x = rows(3, 8)
    assert round_to_format(x, "f32") is x


def test_a_nan_makes_its_q8_0_block_nan_and_no_other():
    x = rows(1, 64)[0]
    x[40] = np.nan
    rounded = round_to_format(x, "q8_0")
    assert np.isnan(rounded[32:]).all()
    assert not np.isnan(rounded[:32]).any()


def test_kv4_takes_the_nearest_of_16_levels_between_least_and_greatest():
    x = rows(20, 64)
    rounded, step = round_to_format(x, "kv4"), (x.max(1) - x.min(1)) / 15
    assert all(len(np.unique(row)) <= 16 for row in rounded)
    # Half a step, and what rounding scale and minimum to float16 moves the levels: 15 * 2^-11 steps, and 2^-11 * |min|.
    slack = step * 15 * 2**-11 + np.abs(x.min(1)) * 2**-11
    assert (np.abs(rounded - x).max(1) <= step / 2 + slack).all()


def test_kv4_keeps_a_head_of_one_value_to_float16():
    x = np.full((1, 32), 0.3, np.float32)
    np.testing.assert_array_equal(round_to_format(x, "kv4"), x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("n", [2, 64, 128])
def test_hadamard_is_the_orthogonal_matrix_of_sylvester(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    x = rows(3, n)
    np.testing.assert_allclose(hadamard(x), x @ h / np.sqrt(n), atol=1e-5)
    np.testing.assert_allclose(hadamard(hadamard(x)), x, atol=1e-5)


def test_kv4h_spreads_an_outlier():
    x = rows(50, 64)
    x[:, 5] += 20

    def error(format):
        return np.square(round_to_format(x, format) - x).sum() / np.square(x).sum()

    assert error("kv4h") < error("kv4") / 1.5


@pytest.mark.parametrize("format", ["kv4", "kv4h"])
def test_a_nan_makes_its_4_bit_head_nan_and_no_other(format):
    x = rows(2, 32)
    x[1, 7] = np.inf
    rounded = round_to_format(x, format)
    assert np.isfinite(rounded[0]).all()
    assert np.isnan(rounded[1]).all()


def test_an_unknown_format_is_named():
    with pytest.raises(DeviceError, match="kv2"):
        round_to_format(rows(1, 32), "kv2")


@pytest.mark.parametrize("format", ["f32", "f16", "q8_0"])
def test_what_was_written_is_read_rounded(format):
    kv = KvSpec("kv", 2, 8, 2, 32, format=format)
    cache, keys = filled(kv, 5, slot=1)
    read_keys, read_values = cache.read(1, np.array([4, 0]))
    expected = round_to_format(keys[[4, 0]].reshape(2, 2, 32), format)
    np.testing.assert_array_equal(read_keys, expected)
    np.testing.assert_array_equal(read_values, -expected)


def test_a_ring_keeps_sinks_and_the_latest_positions():
    kv = KvSpec("kv", 1, 100, 1, 4, format="f32", sink=2, window=4, slack=1)
    cache, keys = filled(kv, 30)
    held = np.array([0, 1, 25, 26, 27, 28, 29])
    np.testing.assert_array_equal(cache.read(0, held)[0].reshape(-1, 4), keys[held])


@pytest.mark.parametrize("position", [24, 30], ids=["overwritten", "never-written"])
def test_a_position_that_is_not_held_is_an_error(position):
    kv = KvSpec("kv", 1, 100, 1, 4, format="f32", sink=2, window=4, slack=1)
    cache, _ = filled(kv, 30)
    with pytest.raises(DeviceError, match=f"position {position} of slot 0"):
        cache.read(0, np.array([position]))


def test_copy_gives_the_first_positions_to_another_slot():
    kv = KvSpec("kv", 3, 8, 1, 4, format="f32")
    cache, keys = filled(kv, 6, slot=2)
    cache.copy(2, 0, 4)
    np.testing.assert_array_equal(cache.read(0, np.arange(4))[0].reshape(-1, 4), keys[:4])
    with pytest.raises(DeviceError, match="position 4 of slot 0"):
        cache.read(0, np.arange(5))


def test_copy_leaves_the_source_and_later_writes_stay_apart():
    kv = KvSpec("kv", 2, 8, 1, 4, format="f32")
    cache, keys = filled(kv, 4)
    cache.copy(0, 1, 4)
    cache.write(i32(3), i32(1), rows(1, 4, 9), rows(1, 4, 9))
    np.testing.assert_array_equal(cache.read(0, np.arange(4))[0].reshape(-1, 4), keys)


def test_copy_to_itself_keeps_everything():
    cache, keys = filled(KvSpec("kv", 1, 8, 1, 4, format="f32"), 6)
    cache.copy(0, 0, 2)
    np.testing.assert_array_equal(cache.read(0, np.arange(6))[0].reshape(-1, 4), keys)


@pytest.mark.parametrize("arguments", [(0, 2, 1), (-1, 0, 1), (0, 1, 9), (0, 1, -1)])
def test_copy_beyond_the_cache_is_an_error(arguments):
    cache, _ = filled(KvSpec("kv", 2, 8, 1, 4), 2)
    with pytest.raises(DeviceError, match="kv"):
        cache.copy(*arguments)
