"""Compressed models on the U280's source: the bits of the engine's order, and what the reference makes of the file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from models import tiny_llama

import hetrun
from hetrun.compress.run import Options, compress
from hetrun.errors import ModelFileError

sys.path.insert(0, str(Path(__file__).parents[1] / "hls"))
import u280_order_device

CSIM = "alveo-u280:csim"
TOKENS = [5, 17, 3, 99, 250, 17, 64, 8, 1, 200, 42, 7, 7, 31]
TEXT = " ".join(["the and of is it in on to running other water stone"] * 150)

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=["w2s24", "w2"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers in 2 bits, the embedding, which is the head too, in Q8_0, as is `ffn_down` with its rows of 160."""
    folder = tmp_path_factory.mktemp("compressed")
    model = tiny_llama(folder / "tiny.gguf", quant="Q8_0", tied=True)
    options = Options(schemes=(request.param,), n_ctx=128, tokens=2048)
    return compress(model, TEXT, folder / f"{request.param}.gguf", options).path


def logits(path: Path, device: str) -> Floats:
    """Behind each token, prompt and four steps: [14, n_vocab]."""
    registry = u280_order_device.registry()
    with hetrun.load(path, devices=[device], n_ctx=64, kv_format="kv4h", registry=registry) as model:
        assert {weight.type.name for weight in model.session.runtime.graph.weights.values()} >= {"Q8_0"}
        found = [np.asarray(model.session.feed(TOKENS[:10])).copy()]
        found += [np.asarray(model.session.feed([token])).copy() for token in TOKENS[10:]]
        return np.stack(found)


def test_logits_are_bit_for_bit_those_of_the_engine_s_order(small: Path) -> None:
    own, order = (logits(small, device) for device in (CSIM, u280_order_device.DEVICE))
    assert np.array_equal(own.view(np.uint32), order.view(np.uint32))


def test_logits_are_near_the_reference_s(small: Path) -> None:
    own, reference, cpu = (logits(small, device) for device in (CSIM, "reference", "cpu"))
    scale = float(np.sum(reference**2))
    assert np.sum((own - reference) ** 2) / scale < max(0.03, 2 * float(np.sum((cpu - reference) ** 2)) / scale)


def test_a_file_of_another_version_is_refused(small: Path, tmp_path: Path) -> None:
    key = b"hetrun.encoding.version"
    data = bytearray(small.read_bytes())
    at = data.index(key) + len(key) + 4  # behind the value's type
    assert data[at] == 1
    data[at] = 2
    later = tmp_path / "later.gguf"
    later.write_bytes(data)
    with pytest.raises(ModelFileError, match="version 2 of the encodings, this hetrun reads 1"):
        hetrun.load(later, devices=[CSIM])
