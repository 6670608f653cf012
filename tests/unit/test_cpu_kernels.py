"""Matmul, embedding, norm and elementwise kernels of the cpu device against float64, for every instruction set here."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest
from cpu_rig import ISAS, Rig, activations_of, int8_rounded, nmse, tokens, weight

from hetrun.device import Batch
from hetrun.ops import Add, Bias, Embedding, GatedActivation, MatMul, RmsNorm, Rope, Scale, SelectRows, SoftCap, Value
from hetrun.tensor import ALL_TYPES
from hetrun.testing.blocks import random_blocks, values_of
from hetrun_cpu import native
from hetrun_cpu.steps import FLOAT_TYPES, QUANTISED_TYPES

X = Value("x", 512)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def block_size(type_name: str) -> int:
    return ALL_TYPES[type_name].block_size


def bound(type_name: str) -> float:
    """Exact up to float32 sums, but that Q4_1 and Q5_1 meet sums of 32 activations as rough as llama.cpp's Q8_1."""
    return 2e-5 if type_name in ("Q4_1", "Q5_1") else 1e-11


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 7])
@pytest.mark.parametrize("type_name", sorted(QUANTISED_TYPES))
def test_matmul_equals_float64_of_the_quantised_activations(type_name: str, n_tokens: int, isa: str) -> None:
    w = weight("w", type_name, 23, 512)
    x = normal(n_tokens, 512, seed=n_tokens) * np.exp(normal(1, 512, seed=9))
    with Rig([MatMul("y", X, w)], [X], isa=isa, threads=2) as rig:
        got = rig.run(tokens(n_tokens), x=x)
        want = int8_rounded(x) @ values_of(w, rig.weights["w"]).T
    assert nmse(got, want) < bound(type_name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [32, 96, 576, 1056])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0"])
def test_matmul_of_rows_that_fill_no_vector(type_name: str, width: int, isa: str) -> None:
    w, x = weight("w", type_name, 5, width), normal(3, width)
    value = Value("x", width)
    with Rig([MatMul("y", value, w)], [value], isa=isa) as rig:
        got = rig.run(tokens(3), x=x)
        want = int8_rounded(x) @ values_of(w, rig.weights["w"]).T
    assert nmse(got, want) < bound(type_name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n_rows", "n_tokens"), [(1, 8), (16, 9), (33, 21), (70, 1), (70, 16)])
@pytest.mark.parametrize("type_name", sorted(QUANTISED_TYPES))
def test_matmul_of_any_number_of_rows_and_tokens_and_more_columns_than_a_chunk(
    type_name: str, n_rows: int, n_tokens: int, isa: str
) -> None:
    width = {256: 2304, 64: 1152}.get(block_size(type_name), 1120)
    w, x, value = weight("w", type_name, n_rows, width), normal(n_tokens, width, seed=n_rows), Value("x", width)
    with Rig([MatMul("y", value, w)], [value], isa=isa, threads=3, max_tokens=21, max_outputs=21) as rig:
        got = rig.run(tokens(n_tokens), x=x)
        want = int8_rounded(x) @ values_of(w, rig.weights["w"]).T
    assert nmse(got, want) < bound(type_name)


CODES = {
    **{
        "Q4_0": (2, 18),
        "Q4_1": (4, 20),
        "Q5_0": (2, 22),
        "Q5_1": (4, 24),
        "Q8_0": (2, 34),
        "IQ4_NL": (2, 18),
        "MXFP4": (1, 17),
    },
    **{"Q2_K": (16, 80), "Q3_K": (0, 96), "Q4_K": (16, 144), "Q5_K": (16, 176), "Q6_K": (0, 192), "IQ4_XS": (8, 136)},
    **{"TQ1_0": (0, 52), "TQ2_0": (0, 64), "W2": (0, 16), "W2S24": (6, 14)},
}
"""The bytes of a block that hold codes, and not scales."""
# But for digits of 1: such a weight is zero, which its minimum makes it to within rounding.
LARGEST = [(t, c) for t in sorted(CODES) for c in (0x00, 0x7F, 0x80, 0xFF) if (t, c) != ("TQ1_0", 0x80)]


def test_codes_of_every_type_are_known() -> None:
    assert CODES.keys() == QUANTISED_TYPES


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize(("type_name", "codes"), LARGEST)
def test_sums_of_the_largest_products_fit(type_name: str, codes: int, n_tokens: int, isa: str) -> None:
    w = weight("w", type_name, 37, 512)
    end = w.nbytes // w.shape[0] - w.type.row_tail_bytes
    rows = np.frombuffer(random_blocks(w), np.uint8).reshape(w.shape[0], -1).copy()
    blocks = rows[:, :end].reshape(w.shape[0], -1, w.type.block_bytes)
    blocks[:, :, slice(*CODES[type_name])] = codes
    rows[:, :end] = blocks.reshape(w.shape[0], -1)
    raw, x = memoryview(rows.tobytes()), np.ones((n_tokens, 512), np.float32)
    x[n_tokens // 2 :] = -1
    with Rig([MatMul("y", X, w)], [X], None, {"w": raw}, isa=isa, max_tokens=9, max_outputs=9) as rig:
        got = rig.run(tokens(n_tokens), x=x)
    want = int8_rounded(x) @ values_of(w, raw).T  # zeros, where codes mean zero
    assert np.square(got - want).sum() <= bound(type_name) * np.square(want).sum()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 17, 100, 512])
@pytest.mark.parametrize("type_name", sorted(FLOAT_TYPES))
def test_float_weights_use_float_activations(type_name: str, width: int, isa: str) -> None:
    w, x = weight("w", type_name, 7, width), normal(5, width)
    value = Value("x", width)
    with Rig([MatMul("y", value, w)], [value], isa=isa) as rig:
        got = rig.run(tokens(5), x=x)
        want = activations_of(type_name, isa, x) @ values_of(w, rig.weights["w"]).T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [17, 520, 1100])
@pytest.mark.parametrize(("n_rows", "n_tokens"), [(1, 2), (6, 3), (33, 31), (18, 53)])
@pytest.mark.parametrize("type_name", sorted(FLOAT_TYPES))
def test_a_prompt_of_float_weights_has_the_bits_of_single_steps(
    type_name: str, n_rows: int, n_tokens: int, width: int, isa: str
) -> None:
    w, x, value = weight("w", type_name, n_rows, width), normal(n_tokens, width, seed=n_rows), Value("x", width)
    with Rig([MatMul("y", value, w)], [value], isa=isa, threads=2, max_tokens=53, max_outputs=53) as rig:
        got = rig.run(tokens(n_tokens), x=x)
        want = activations_of(type_name, isa, x) @ values_of(w, rig.weights["w"]).T
        single = np.concatenate([rig.run(tokens(1), x=x[t : t + 1]) for t in range(n_tokens)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got.view(np.uint32), single.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", sorted(FLOAT_TYPES | QUANTISED_TYPES))
def test_embedding_is_the_dequantised_row(type_name: str, isa: str) -> None:
    w = weight("w", type_name, 7, 256)
    with Rig([Embedding("y", w)], isa=isa) as rig:
        got = rig.run(tokens(7))
        want = values_of(w, rig.weights["w"])
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", sorted(FLOAT_TYPES | QUANTISED_TYPES))
def test_a_table_that_a_matmul_reads_too_gives_the_same_rows(type_name: str, isa: str) -> None:
    w = weight("table", type_name, 40, 512)
    embedding, batch = Embedding("x", w), Batch.of([39, 0, 15, 16, 31], range(5), [0] * 5, range(5))
    with (
        Rig([embedding], isa=isa) as alone,
        Rig([embedding, MatMul("y", embedding.output, w)], (), [embedding.output], isa=isa) as tied,
    ):
        np.testing.assert_array_equal(tied.run(batch), alone.run(batch))


@pytest.mark.parametrize("isa", ISAS)
def test_weights_may_lie_at_any_address(isa: str) -> None:
    w = weight("w", "Q6_K", 9, 512)
    x, blocks = normal(2, 512), random_blocks(w)
    moved = memoryview(bytes(1) + bytes(blocks))[1:]
    with (
        Rig([MatMul("y", X, w)], [X], isa=isa) as rig,
        Rig([MatMul("y", X, w)], [X], None, {"w": moved}, isa=isa) as odd,
    ):
        np.testing.assert_array_equal(odd.run(tokens(2), x=x), rig.run(tokens(2), x=x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", ["F16", *sorted(QUANTISED_TYPES)])
def test_rows_do_not_depend_on_threads_or_on_other_tokens(type_name: str, isa: str) -> None:
    w, x = weight("w", type_name, 37, 512), normal(13, 512)
    results = []
    for threads in (1, 2, 3):
        with Rig([MatMul("y", X, w)], [X], isa=isa, threads=threads) as rig:
            results.append(rig.run(tokens(13), x=x))
            results.append(np.concatenate([rig.run(tokens(1, i), x=x[i : i + 1]) for i in range(13)]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_beyond_the_cache_give_the_bits_of_single_ones(threads: int, isa: str) -> None:
    """Rows so wide that a prompt is multiplied in blocks of 32 tokens: gate and up, and their product by a third."""
    width, inner, n = 16384, 288, 37
    x = Value("x", width)
    gate, up = (MatMul(name, x, weight(f"{name}.w", "Q4_0", inner, width)) for name in ("gate", "up"))
    both = GatedActivation("act", gate.output, up.output)
    ops = [gate, up, both, MatMul("y", both.output, weight("y.w", "Q4_0", 65, inner))]
    rows = normal(n, width)
    with Rig(ops, [x], isa=isa, threads=threads, max_tokens=n, max_outputs=n) as rig:
        got = rig.run(tokens(n), x=rows)
        want = np.concatenate([rig.run(tokens(1, i), x=rows[i : i + 1]) for i in range(n)])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa == "amx"])
@pytest.mark.parametrize("n_tokens", [8, 9, 16, 17, 33])
@pytest.mark.parametrize("type_name", sorted(QUANTISED_TYPES))
def test_tiles_give_the_bits_of_vectors(type_name: str, n_tokens: int, isa: str) -> None:
    """Codes of any bits, so that sums of scaled codes reach what they can."""
    width = {256: 2304, 64: 1152}.get(block_size(type_name), 1120)
    w, x, value = weight("w", type_name, 53, width), np.sign(normal(n_tokens, width)) * 127, Value("x", width)
    results = []
    for name in (isa, "avx512_bf16"):
        with Rig([MatMul("y", value, w)], [value], isa=name, threads=2, max_tokens=33, max_outputs=33) as rig:
            results.append(rig.run(tokens(n_tokens), x=x))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["F32", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q6_K"])
def test_a_poisoned_activation_poisons_its_row_alone(type_name: str, poison: float, isa: str) -> None:
    w, x = weight("w", type_name, 6, 512), normal(5, 512)
    x[3, 200] = poison
    with Rig([MatMul("y", X, w)], [X], isa=isa) as rig:
        got = rig.run(tokens(5), x=x)
    if type_name == "F32":
        assert not np.isfinite(got[3]).any()
    else:
        assert np.isnan(got[3]).all()
    assert np.isfinite(got[[0, 1, 2, 4]]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_tokens", [1, 6])
def test_a_nan_weight_poisons_its_output_alone(n_tokens: int, isa: str) -> None:
    w = weight("w", "Q4_0", 6, 512)
    blocks = np.frombuffer(random_blocks(w), np.uint8).reshape(6, -1).copy()
    blocks[2, 18:20] = (0x00, 0x7E)  # float16 NaN as the scale of the second block
    with Rig([MatMul("y", X, w)], [X], None, {"w": memoryview(blocks).cast("B")}, isa=isa) as rig:
        got = rig.run(tokens(n_tokens), x=normal(n_tokens, 512))
    assert np.isnan(got[:, 2]).all()
    assert np.isfinite(got[:, [0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-37, 1e-30, 1e30])
def test_activations_of_any_size_quantise(size: float, isa: str) -> None:
    x = (normal(1, 64) * size).astype(np.float32)
    codes, scales = quantised(x, isa)
    assert np.abs(codes.astype(int)).max() <= 127
    error = np.abs(codes.reshape(2, 32) * scales[:, None].astype(np.float64) - x.reshape(2, 32))
    assert (error <= np.maximum(np.abs(x).max() / 127, 1e-35)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_activations_round_to_the_nearest_code(isa: str) -> None:
    x = normal(4, 256)
    codes, scales = quantised(x, isa)
    got = codes.reshape(-1, 32) * scales[:, None].astype(np.float64)
    np.testing.assert_allclose(got, int8_rounded(x).reshape(-1, 32), rtol=1e-7)


def quantised(x: np.ndarray, isa: str) -> tuple[np.ndarray, np.ndarray]:
    device = ctypes.c_void_p()
    library = native.library()
    assert library.hetrun_cpu_device_create(1, native.ISA_NAMES.index(isa), ctypes.byref(device)) == 0
    codes, scales = np.zeros(x.size, np.int8), np.zeros(x.size // 32, np.float32)
    try:
        status = library.hetrun_cpu_quantize(device, x.ctypes.data, x.size, codes.ctypes.data, scales.ctypes.data)
    finally:
        library.hetrun_cpu_device_destroy(device)
    assert status == 0
    return codes, scales


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("type_name", ["IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"])
def test_rows_of_any_bytes_are_what_gguf_reads(type_name: str, packed: bool, isa: str) -> None:
    """Scales of every exponent, infinite ones and NaN among them, and codes that no quantiser writes."""
    w = weight("w", type_name, 600, 256)
    raw = memoryview(np.random.default_rng(4).integers(0, 256, w.nbytes, dtype=np.uint8).tobytes())
    embedding = Embedding("y", w)
    ops = [embedding, MatMul("z", embedding.output, w)] if packed else [embedding]
    with Rig(ops, (), [embedding.output], {"w": raw}, isa=isa, max_tokens=600) as rig:
        got = rig.run(Batch.of(range(600), range(600), [0] * 600, []))
    with np.errstate(invalid="ignore", over="ignore"):
        want = values_of(w, raw).astype(np.float32)
    if isa == "neon" and sys.maxsize < 1 << 32:
        # NEON of 32-bit ARM takes subnormal scales for zero; codes go up to 12.
        vanished = (got == 0) & (np.abs(want) < 12 * np.finfo(np.float32).tiny)
        want[vanished] = got[vanished]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [512, 64, 4])
def test_rms_norm(group: int, isa: str) -> None:
    w, x = weight("w", "F32", group), normal(5, 512) * 3
    with Rig([RmsNorm("y", X, w, 1e-5)], [X], isa=isa) as rig:
        got = rig.run(tokens(5), x=x)
        scale = values_of(w, rig.weights["w"])
    groups = x.astype(np.float64).reshape(5, -1, group)
    want = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(got, want.reshape(5, 512), rtol=1e-6, atol=1e-7)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", ["silu", "gelu"])
def test_gated_activation(function: str, isa: str) -> None:
    gate, up = Value("gate", 100), Value("up", 100)
    g, u = normal(6, 100) * np.float32(4), normal(6, 100, seed=1)
    g[0, :4] = (0.0, 80.0, -80.0, 1e-4)
    with Rig([GatedActivation("y", gate, up, function)], [gate, up], isa=isa) as rig:
        got = rig.run(tokens(6), gate=g, up=u)
    want = (silu if function == "silu" else gelu)(g.astype(np.float64)) * u
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_soft_cap_is_precise_for_small_values_too(isa: str) -> None:
    x = np.geomspace(1e-6, 1e4, 512, dtype=np.float32)[None] * np.float32(-1)
    with Rig([SoftCap("y", X, 30.0)], [X], isa=isa) as rig:
        got = rig.run(tokens(1), x=x)
    np.testing.assert_allclose(got, 30 * np.tanh(x.astype(np.float64) / 30), rtol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["add", "scale", "bias", "soft_cap", "gated"])
def test_elementwise_keeps_nan(op: str, isa: str) -> None:
    y, w = Value("y", 512), weight("w", "F32", 512)
    ops = {
        "add": Add("z", X, y),
        "scale": Scale("z", X, 2.0),
        "bias": Bias("z", X, w),
        "soft_cap": SoftCap("z", X, 5.0),
        "gated": GatedActivation("z", X, y),
    }
    x = normal(2, 512)
    x[1, 511] = np.nan
    inputs = {"x": x, "y": normal(2, 512, seed=1)}
    chosen = ops[op]
    with Rig([chosen], chosen.inputs, isa=isa) as rig:
        got = rig.run(tokens(2), **{v.name: inputs[v.name] for v in chosen.inputs})
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("n_pairs", [32, 20])
def test_rope_turns_pairs_by_position_times_frequency(n_pairs: int, layout: str, isa: str) -> None:
    frequencies = tuple(10000.0 ** (-i / 32) for i in range(n_pairs))
    x, start = normal(3, 512), 100_000
    with Rig([Rope("y", X, 64, layout, frequencies, 1.25)], [X], isa=isa) as rig:  # type: ignore[arg-type]
        got = rig.run(tokens(3, start), x=x)
    heads = x.astype(np.float64).reshape(3, 8, 64)
    angle = np.arange(start, start + 3)[:, None] * np.array(frequencies)
    rotation = (1.25 * np.exp(1j * angle))[:, None]
    first, second = (slice(0, 2 * n_pairs, 2), slice(1, 2 * n_pairs, 2)) if layout == "interleaved" else (
        slice(0, n_pairs), slice(n_pairs, 2 * n_pairs))  # fmt: skip
    turned = (heads[..., first] + 1j * heads[..., second]) * rotation
    want = heads.copy()
    want[..., first], want[..., second] = turned.real, turned.imag
    np.testing.assert_allclose(got, want.reshape(3, 512), atol=2e-6)


def test_select_rows_follows_the_batch() -> None:
    x = normal(5, 512)
    with Rig([SelectRows("y", X)], [X]) as rig:
        np.testing.assert_array_equal(rig.run(tokens(5, outputs=[1, 4]), x=x), x[[1, 4]])
        assert rig.run(tokens(5, outputs=[]), x=x).shape == (0, 512)


def test_no_tokens_is_a_run() -> None:
    with Rig([MatMul("y", X, weight("w", "Q4_0", 4, 512))], [X]) as rig:
        assert rig.run(tokens(0)).shape == (0, 4)
