"""The example of the hook `hetrun_architectures`: its files load and run, and mean what the example says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from models import tiny_llama

import hetrun
from hetrun.errors import UnsupportedModelError
from hetrun.ops import GatedActivation
from hetrun.plugins import Plugin, Registry

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def registry(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The installed plugins, and the example."""
    monkeypatch.syspath_prepend(str(checkout / "examples" / "hetrun_example_architecture"))
    import hetrun_example_architecture

    registry = Registry.load()
    registry.add(
        Plugin("example_architecture", "hetrun_example_architecture", None), lambda: hetrun_example_architecture
    )
    monkeypatch.delitem(sys.modules, "hetrun_example_architecture")
    return registry


def logits(path: Path, device: str, registry: Registry) -> np.ndarray:
    with hetrun.load(path, devices=[device], kv_format="f32", registry=registry) as model:
        return np.asarray(model.logits(IDS))


@pytest.mark.parametrize("name", ["example-gelu", "example-parallel"])
def test_a_file_of_a_plugins_architecture_runs_on_every_device(name: str, registry: Registry, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", quant="F32", architecture=name)
    exact = logits(path, "reference", registry)
    assert np.abs(logits(path, "cpu", registry) - exact).max() <= 1e-3
    llama = tiny_llama(tmp_path / "llama.gguf", quant="F32")
    assert np.abs(logits(llama, "reference", registry) - exact).max() > 0.1


def test_data_alone_makes_a_family(registry: Registry, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", architecture="example-gelu")
    with hetrun.load(path, devices=["cpu"], registry=registry) as model:
        gates = [op for op in model.session.runtime.graph.ops if isinstance(op, GatedActivation)]
    assert {gate.function for gate in gates} == {"gelu"}


def test_a_builder_wires_blocks_anew(registry: Registry, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", architecture="example-parallel")
    with hetrun.load(path, devices=["cpu"], registry=registry) as model:
        reads = {op.name: [v.name for v in op.inputs] for op in model.session.runtime.graph.ops}
    assert reads["blk.0.attn_norm"] == reads["blk.0.ffn_norm"] == ["token_embd"]
    assert reads["blk.0.both"] == ["blk.0.attn_output", "blk.0.ffn_down"]


def test_without_the_plugin_the_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", architecture="example-parallel")
    with pytest.raises(UnsupportedModelError, match=r"'example-parallel' is not supported.*llama"):
        hetrun.load(path)
