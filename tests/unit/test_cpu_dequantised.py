"""Types that no kernel reads: dequantised by the gguf package at load, on the cpu device and on the reference."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from cpu_rig import ISAS, Rig, nmse, tokens, weight
from gguf.quants import _type_traits
from models import tiny_llama

import hetrun
from hetrun.device import Bindings, Cost, Unsupported, Workload
from hetrun.errors import DeviceError
from hetrun.ops import Embedding, MatMul, Value
from hetrun.reference.driver import GGUF_TYPES, OWN_TYPES, ReferenceDriver
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun.testing.blocks import random_blocks, values_of
from hetrun_cpu import dequantised
from hetrun_cpu.driver import CpuDriver
from hetrun_cpu.steps import DEQUANTISED_TYPES, FLOAT_TYPES, QUANTISED_TYPES

X = Value("x", 512)
GGUF_READS = sorted(t.name for t in _type_traits)
TYPES = sorted(name for name in DEQUANTISED_TYPES if name in GGUF_READS)  # an older gguf package lacks NVFP4


def blocks_with(w: Weight, scale: bytes) -> memoryview:
    """Random codes under one float16 scale, for types whose blocks begin with it."""
    raw = np.frombuffer(random_blocks(w), np.uint8).reshape(-1, w.type.block_bytes).copy()
    raw[:, :2] = np.frombuffer(scale, np.uint8)
    return memoryview(raw.tobytes())


def test_all_that_gguf_reads_runs() -> None:
    runs = FLOAT_TYPES | QUANTISED_TYPES | DEQUANTISED_TYPES
    assert set(GGUF_READS) <= runs
    assert set(GGUF_READS) <= OWN_TYPES | GGUF_TYPES
    assert not DEQUANTISED_TYPES & (FLOAT_TYPES | QUANTISED_TYPES)


@pytest.mark.parametrize("name", sorted(set(TENSOR_TYPES) - FLOAT_TYPES - QUANTISED_TYPES - DEQUANTISED_TYPES))
def test_what_nothing_reads_is_refused_by_name(name: str) -> None:
    op = MatMul("y", X, weight("w", name, 8, 512))
    for driver in (CpuDriver(), ReferenceDriver()):
        answer = driver.estimate(driver.probe({})[0], op, Workload(1, 0))
        assert isinstance(answer, Unsupported) and name in answer.reason


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("type_name", TYPES)
def test_matmul_is_that_of_the_values(type_name: str, n_tokens: int, isa: str) -> None:
    w = weight("w", type_name, 37, 512)
    x = np.random.default_rng(n_tokens).standard_normal((n_tokens, 512), np.float32)
    with Rig([MatMul("y", X, w)], [X], isa=isa, threads=2) as rig:
        got = rig.run(tokens(n_tokens), x=x)
        want = x.astype(np.float64) @ values_of(w, rig.weights["w"]).T
    assert nmse(got, want) < 2**-22  # the rounding of the weights to float16


@pytest.mark.parametrize("type_name", TYPES)
def test_rows_are_the_values_in_float16(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "CHUNK_ELEMENTS", 600)  # chunks of two rows, the last one of one
    w = weight("w", type_name, 7, 256)
    with Rig([Embedding("y", w)]) as rig:
        got = rig.run(tokens(7))
        np.testing.assert_array_equal(got, values_of(w, rig.weights["w"]).astype(np.float16))


@pytest.mark.parametrize("type_name", ["IQ1_S", "IQ2_XXS", "IQ2_S"])
@pytest.mark.parametrize("scale", [60000.0, 1e-7], ids=["large", "small"])
def test_values_beyond_float16_are_kept_as_float32(
    type_name: str, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Large ones would be infinite; small ones would lose most of their digits, all in their row being small."""
    w = weight("w", type_name, 5, 256)
    raw = blocks_with(w, np.float16(scale).tobytes())
    with Rig([Embedding("y", w)], weights={"w": raw}) as rig:
        np.testing.assert_array_equal(rig.run(tokens(5)), values_of(w, raw).astype(np.float32))
    assert "float32" in caplog.text


def test_one_row_that_float16_loses_shows_among_others() -> None:
    values = np.ones((3, 64), np.float32)
    values[1] *= 1e-9
    assert not dequantised._survive(values, values.astype(np.float16).astype(np.float32))
    values[1, 0] = 1.0  # beside a large one the others do not count
    assert dequantised._survive(values, values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("type_name", ["IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S"])
def test_a_damaged_scale_poisons_its_rows_alone(type_name: str, bits: int, isa: str) -> None:
    w = weight("w", type_name, 6, 512)
    raw = np.frombuffer(random_blocks(w), np.uint8).reshape(6, -1).copy()
    raw[2, :2] = (bits & 255, bits >> 8)
    x = np.random.default_rng(0).standard_normal((3, 512), np.float32)
    with Rig([MatMul("y", X, w)], [X], None, {"w": memoryview(raw.tobytes())}, isa=isa) as rig:
        got = rig.run(tokens(3), x=x)
    assert not np.isfinite(got[:, 2]).any()
    assert np.isfinite(np.delete(got, 2, axis=1)).all()


def test_memory_is_priced_and_planned_as_it_is_held() -> None:
    w = weight("w", "IQ2_XS", 40, 512)
    op = MatMul("y", X, w)
    driver = CpuDriver()
    info = driver.probe({})[0]
    cost = driver.estimate(info, op, Workload(1, 0))
    assert isinstance(cost, Cost)
    with Rig([op], [X]) as rig:
        assert cost.resident == {("host", "w"): 40 * 512 * 2}
        assert rig.program.resident["host", "w"] == 40 * 512 * 2
        (held,) = rig.executable._dequantised
        assert held.values.nbytes == 40 * 512 * 2
    half = driver.estimate(info, MatMul("y", X, weight("w", "F16", 40, 512)), Workload(1, 0))
    assert isinstance(half, Cost) and cost.seconds == half.seconds


def test_memory_on_the_way_is_bounded() -> None:
    w = weight("w", "IQ3_S", 4096, 2048)  # 8 M values
    blocks = random_blocks(w)
    tracemalloc.start()
    try:
        dequantised.dequantise(w, blocks, lambda start, end: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64e6  # as float32 alone they would take 34 MB, in gguf's temporaries several times that


def test_every_byte_of_the_file_is_given_back_once() -> None:
    w = weight("w", "IQ2_S", 700, 2048)
    ranges: list[tuple[int, int]] = []
    dequantised.dequantise(w, random_blocks(w), lambda start, end: ranges.append((start, end)))
    assert len(ranges) > 1
    assert [0, *(end for _, end in ranges)] == [*(start for start, _ in ranges), w.nbytes]


def test_executables_share_the_values() -> None:
    with Rig([MatMul("y", X, weight("w", "IQ2_XS", 8, 512))], [X]) as rig:
        again = rig.device.load(rig.program, rig.weights, Bindings(rig.buffers, rig.states))
        assert again._dequantised[0] is rig.executable._dequantised[0]


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_without_the_gguf_package_the_error_says_how_to_get_it(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_llama(tmp_path / "model.gguf", 1, "IQ3_XXS")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(DeviceError, match=r"IQ3_XXS.*gguf package") as caught, hetrun.load(path, devices=[device]) as m:
        m.logits([1])
    assert caught.value.remedy == 'pip install "gguf>=0.17"'


def test_an_older_gguf_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_type_traits, gguf.GGMLQuantizationType.IQ2_XS)
    with pytest.raises(DeviceError, match="IQ2_XS") as caught:
        Rig([MatMul("y", X, weight("w", "IQ2_XS", 8, 512))], [X], weights={"w": memoryview(bytes(8 * 148))})
    assert "upgrade" in str(caught.value.remedy)


@pytest.mark.parametrize("type_name", TYPES)
def test_a_whole_model_runs_as_on_the_reference(type_name: str, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model.gguf", 1, type_name)
    ids = list(range(20))
    with hetrun.load(path, devices=["cpu"]) as ours, hetrun.load(path, devices=["reference"]) as theirs:
        np.testing.assert_allclose(ours.logits(ids), theirs.logits(ids), atol=0.05)
