"""NaN and infinity in weights and activations of the cpu device: they stay where they are, nothing hangs or crashes.

Every tensor type, by every kernel: one token (decode), more than a panel of them (prefill), for every instruction set.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from cpu_rig import ISAS, Rig, activations_of, nmse, tokens, weight
from models import tiny_llama

import hetrun
from hetrun.errors import DeviceError
from hetrun.ops import Add, Embedding, GatedActivation, MatMul, RmsNorm, Value
from hetrun.tensor import ENCODED_TYPES, TENSOR_TYPES, Weight
from hetrun.testing.blocks import random_blocks, values_of
from hetrun_cpu import native
from hetrun_cpu.driver import TYPES
from hetrun_cpu.steps import FLOAT_TYPES, KV_FORMATS, QUANTISED_TYPES

WIDTH, N_ROWS, BAD_ROWS = 512, 37, (2, 36)  # within a group of 16 packed rows, and in the one that is not full
X = Value("x", WIDTH)
POISONS = {"nan": 0x7E00, "inf": 0x7C00, "minus-inf": 0xFC00}
"""float16 bits."""

# Byte offset of a float16 scale in the block. IQ1_M, NVFP4 and MXFP4 have none: any bytes of those are finite, or, of
# MXFP4, as large as float32 holds. Our own encodings have a float32 behind each row instead.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS"), 0),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), 0),
    **{"Q2_K": 80, "Q3_K": 108, "Q6_K": 208, "TQ1_0": 52, "TQ2_0": 64},
}


def poisoned(w: Weight, bits: int) -> memoryview:
    """Random blocks, but for that scale in the second block of each of `BAD_ROWS`, or that value among floats."""
    raw = np.frombuffer(random_blocks(w), np.uint8).reshape(w.shape[0], -1).copy()
    for row in BAD_ROWS:
        if w.type.name in FLOAT_TYPES:
            bad = np.array([bits], "<u2").view("<f2").astype("<f4").view("<u4")
            two, four = {"F16": (bits, 0), "BF16": (int(bad[0]) >> 16, 0), "F32": (0, int(bad[0]))}[w.type.name]
            n = w.type.block_bytes
            raw[row, 7 * n : 8 * n] = np.frombuffer((two or four).to_bytes(n, "little"), np.uint8)
        elif w.type.name in ENCODED_TYPES:
            raw[row, -4:] = np.array([bits], "<u2").view("<f2").astype("<f4").view(np.uint8)
        else:
            start = w.type.block_bytes + SCALES[w.type.name]
            raw[row, start : start + 2] = (bits & 255, bits >> 8)
    return memoryview(raw.tobytes())


def normal(n_tokens: int) -> np.ndarray:
    return np.random.default_rng(n_tokens).standard_normal((n_tokens, WIDTH)).astype(np.float32)


def test_every_type_has_a_scale_to_spoil_or_none_that_can_be() -> None:
    assert set(SCALES) == TYPES - FLOAT_TYPES - ENCODED_TYPES.keys() - {"IQ1_M", "NVFP4", "MXFP4"}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_tokens", [1, 3, 19])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("type_name", sorted({*SCALES, *FLOAT_TYPES, *ENCODED_TYPES}))
def test_a_bad_weight_spoils_its_row_alone(type_name: str, poison: str, n_tokens: int, isa: str) -> None:
    w, x = weight("w", type_name, N_ROWS, WIDTH), normal(n_tokens)
    raw = poisoned(w, POISONS[poison])
    with Rig([MatMul("y", X, w)], [X], None, {"w": raw}, isa=isa, threads=2, max_tokens=19, max_outputs=19) as rig:
        got = rig.run(tokens(n_tokens), x=x)
    with np.errstate(all="ignore"):
        values = values_of(w, raw)
    assert not np.isfinite(got[:, BAD_ROWS]).any()
    good = np.delete(np.arange(N_ROWS), BAD_ROWS)
    assert nmse(got[:, good], activations_of(type_name, isa, x) @ values[good].T) < 2e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_tokens", [1, 19])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("type_name", sorted(TYPES))
def test_a_bad_activation_spoils_its_token_alone(type_name: str, poison: float, n_tokens: int, isa: str) -> None:
    w, x = weight("w", type_name, N_ROWS, WIDTH), normal(n_tokens)
    x[-1, 200] = poison
    with Rig([MatMul("y", X, w)], [X], isa=isa, threads=2, max_tokens=19, max_outputs=19) as rig:
        got = rig.run(tokens(n_tokens), x=x)
    if type_name in QUANTISED_TYPES:
        assert np.isnan(got[-1]).all()
    else:  # infinity times a weight of zero is NaN, times another infinity
        assert not np.isfinite(got[-1]).any()
    assert np.isfinite(got[:-1]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", sorted(TYPES))
def test_rows_of_any_bits_neither_crash_nor_hang(type_name: str, isa: str) -> None:
    """Of one token, of several and as an embedding: scales of every exponent, NaN and infinity, and any codes."""
    w, table = weight("w", type_name, N_ROWS, WIDTH), weight("t", type_name, N_ROWS, WIDTH)
    rng = np.random.default_rng(3)
    raw = {v.name: memoryview(rng.integers(0, 256, v.nbytes, np.uint8).tobytes()) for v in (w, table)}
    embed = Embedding("e", table)
    with Rig([embed, MatMul("y", embed.output, w)], (), None, raw, isa=isa, threads=2) as rig:
        for n in (1, 16):
            assert rig.run(tokens(n)).shape == (n, N_ROWS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_norm_weight_or_gate_is_not_hidden(poison: float, isa: str) -> None:
    w = weight("w", "F32", WIDTH)
    scales = np.ones(WIDTH, np.float32)
    scales[100] = poison
    x, y = normal(3), Value("y", WIDTH)
    with Rig([RmsNorm("n", X, w, 1e-5)], [X], None, {"w": memoryview(scales.tobytes())}, isa=isa) as rig:
        got = rig.run(tokens(3), x=x)
    assert not np.isfinite(got[:, 100]).any() and np.isfinite(np.delete(got, 100, axis=1)).all()
    bad = x.copy()
    bad[1, 7] = poison
    for op in (Add("z", X, y), GatedActivation("z", X, y), GatedActivation("z", X, y, "gelu")):
        with Rig([op], [X, y], isa=isa) as rig:
            np.testing.assert_array_equal(np.isfinite(rig.run(tokens(3), x=bad, y=x)), np.isfinite(bad))


@pytest.mark.parametrize("kv", sorted(KV_FORMATS))
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"])
def test_a_model_with_a_bad_number_ends_with_one_error(tensor: str, poison: float, kv: str, tmp_path: Path) -> None:
    """Every logit is NaN: nothing can be chosen, and the error says so."""
    path = tiny_llama(tmp_path / "model.gguf", 1, "F16", metadata={"embedding_length": 128})
    data = np.memmap(path, np.uint8, "r+")
    (found,) = (t for t in gguf.GGUFReader(path).tensors if t.name == tensor)
    kind = "<f4" if found.tensor_type == gguf.GGMLQuantizationType.F32 else "<f2"
    data[found.data_offset : found.data_offset + found.n_bytes].view(kind)[:] = poison
    data.flush()
    with hetrun.load(path, devices=["cpu"], kv_format=kv) as model, pytest.raises(DeviceError, match="NaN"):
        model.generate([1, 2, 3], max_tokens=4).finish()


@pytest.mark.parametrize("n_columns", [0, 48, 1 << 33])
def test_the_library_itself_refuses_rows_of_broken_blocks(n_columns: int) -> None:
    """The driver refuses them before; a caller of the C ABI gets a status, not a read beyond the end."""
    library, device, pack = native.library(), ctypes.c_void_p(), ctypes.c_void_p()
    assert library.hetrun_cpu_device_create(1, -1, ctypes.byref(device)) == 0
    blocks = ctypes.create_string_buffer(4096)
    table = (native.Weight * 1)(
        native.Weight(ctypes.addressof(blocks), 4096, 4, n_columns, TENSOR_TYPES["Q4_0"].id, 0, 0)
    )
    try:
        status = library.hetrun_cpu_pack_create(device, table, 1, ctypes.byref(pack))
        assert status == 11 or native.isa_names()[-1] not in ("avx2", "avxvnni", "avx512", "avx512_bf16", "amx")
        assert not pack
    finally:
        library.hetrun_cpu_device_destroy(device)
