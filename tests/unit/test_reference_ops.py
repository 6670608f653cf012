"""The meaning of each op against its formula, written out in Python's float64 and complex numbers."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest

from hetrun import ops
from hetrun.device import Batch
from hetrun.errors import DeviceError
from hetrun.ops import KvSpec, Value
from hetrun.reference import ops as meaning
from hetrun.reference.kv import KvCache


def rows(n: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


@pytest.mark.parametrize("group", [8, 4])
def test_rms_norm_scales_each_group_to_unit_mean_square(group):
    x, weight, eps = rows(3, 8), rows(1, group, 1)[0], 1e-5
    expected = np.empty((3, 8))
    for r in range(3):
        for i in range(8):
            members = [float(v) for v in x[r, i // group * group :][:group]]
            mean = sum(v * v for v in members) / group
            expected[r, i] = x[r, i] / math.sqrt(mean + eps) * weight[i % group]
    np.testing.assert_allclose(meaning.rms_norm(x, weight, eps), expected, rtol=2e-6)


def test_matmul_takes_rows_of_the_weight():
    x, w = rows(2, 5), rows(3, 5, 1)
    expected = [[sum(float(a) * float(b) for a, b in zip(xr, wr, strict=True)) for wr in w] for xr in x]
    np.testing.assert_allclose(meaning.matmul(x, w), expected, rtol=1e-5, atol=1e-6)


def test_bias_is_added_to_every_row():
    x, w = rows(2, 3), rows(1, 3, 1)[0]
    np.testing.assert_array_equal(meaning.bias(x, w), np.stack([x[0] + w, x[1] + w]))


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("n_pairs", [4, 3])
def test_rope_turns_pairs_as_complex_numbers(layout, n_pairs):
    head_dim, magnitude = 8, 1.25
    frequencies = tuple(0.7**i for i in range(n_pairs))
    x, positions = rows(3, 2 * head_dim), np.array([0, 5, 4000], np.int32)
    expected = x.astype(np.float64)
    for r, position in enumerate(positions):
        for head in (0, head_dim):
            for i in range(n_pairs):
                a, b = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + n_pairs)
                z = complex(x[r, head + a], x[r, head + b])
                z *= magnitude * cmath.exp(1j * int(position) * frequencies[i])
                expected[r, head + a], expected[r, head + b] = z.real, z.imag
    actual = meaning.rope(x, positions, head_dim, layout, frequencies, magnitude)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sink,window", [(0, 0), (0, 3), (2, 3), (2, 1), (5, 4)])
@pytest.mark.parametrize("position", [0, 1, 4, 9])
def test_visible_positions_follow_the_contract(sink, window, position):
    expected = [j for j in range(position + 1) if window == 0 or j < sink or j > position - window]
    assert meaning.visible_positions(position, sink, window).tolist() == expected


@pytest.mark.parametrize("sink,window", [(0, 0), (1, 4)])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_attention_is_a_softmax_over_the_visible_keys_of_the_slot(sink, window, cap):
    kv = KvSpec("kv", 2, 16, 2, 4, format="f32", sink=sink, window=window, slack=8)
    slots = np.array([0, 1] * 7, np.int32)
    positions = np.array([i // 2 for i in range(14)], np.int32)
    q, k, v, scale = rows(14, 4 * 4), rows(14, 2 * 4, 1), rows(14, 2 * 4, 2), 0.6
    expected = np.empty((14, 16))
    for i in range(14):
        seen = [
            j
            for j in range(14)
            if slots[j] == slots[i]
            and positions[j] <= positions[i]
            and (window == 0 or positions[j] < sink or positions[j] > positions[i] - window)
        ]
        for head in range(4):
            own, kv_head = slice(head * 4, head * 4 + 4), slice(head // 2 * 4, head // 2 * 4 + 4)
            scores = [scale * float(q[i, own].astype(np.float64) @ k[j, kv_head]) for j in seen]
            if cap:
                scores = [cap * math.tanh(s / cap) for s in scores]
            weights = [math.exp(s) for s in scores]
            total = sum(weights)
            expected[i, own] = sum(
                w / total * v[j, kv_head].astype(np.float64) for w, j in zip(weights, seen, strict=True)
            )
    actual = meaning.attention(q, k, v, positions, slots, KvCache(kv), scale, cap)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_nan_key_touches_only_queries_that_see_it():
    kv = KvSpec("kv", 1, 8, 1, 4, format="f16")
    q, k, v = rows(4, 4), rows(4, 4, 1), rows(4, 4, 2)
    k[2, 1] = v[2, 1] = np.nan
    out = meaning.attention(q, k, v, np.arange(4, dtype=np.int32), np.zeros(4, np.int32), KvCache(kv), 0.5)
    assert np.isnan(out).any(axis=1).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "function,formula",
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_gated_activation_multiplies_the_activated_gate(function, formula):
    gate, up = 3 * rows(2, 16), rows(2, 16, 1)
    expected = [
        [formula(float(g)) * float(u) for g, u in zip(gr, ur, strict=True)] for gr, ur in zip(gate, up, strict=True)
    ]
    np.testing.assert_allclose(meaning.gated_activation(gate, up, function), expected, rtol=1e-5, atol=1e-6)


def test_elementwise_ops():
    a, b = rows(2, 3), rows(2, 3, 1)
    np.testing.assert_array_equal(meaning.add(a, b), a + b)
    np.testing.assert_array_equal(meaning.scale(a, 0.1), a * np.float32(0.1))
    np.testing.assert_allclose(
        meaning.soft_cap(a, 0.5), [[0.5 * math.tanh(float(v) / 0.5) for v in r] for r in a], rtol=1e-6
    )


def test_select_rows_takes_the_outputs():
    x = rows(5, 3)
    np.testing.assert_array_equal(meaning.select_rows(x, np.array([1, 4], np.int32)), x[[1, 4]])


def test_every_op_of_the_vocabulary_has_a_meaning():
    assert set(meaning.MEANINGS) == set(ops.OP_TYPES.values())


def test_an_op_outside_the_vocabulary_is_named():
    class Strange(ops.Scale):
        kind = "strange"

    x = Value("x", 4)
    inputs = meaning.Inputs(Batch.of([], [], [], []), {"x": rows(0, 4)}, {}, {})
    with pytest.raises(DeviceError, match="strange"):
        meaning.evaluate(Strange("s", x, 2.0), inputs)
