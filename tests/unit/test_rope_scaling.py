"""Contexts beyond what a model was trained for, and the checks of rope metadata that tiny models do not reach."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from families import CASES, header
from models import tiny_llama

import hetrun
from hetrun.errors import ContextError, ModelFileError, UsageError
from hetrun.model.architectures import GraphOptions, RopeExtension, architectures, build_graph
from hetrun.ops import Rope


def ropes(case, options=None, blocks=None, **keys):
    arch, metadata, tensors = header(case)
    metadata.update({f"{arch}.{key}": value for key, value in keys.items()})
    graph = build_graph(arch, metadata, tensors, options or GraphOptions(), architectures(), blocks)
    return [op for op in graph.ops if isinstance(op, Rope)]


def test_a_longer_context_is_refused_with_the_option_that_allows_it():
    with pytest.raises(ContextError, match=r"200 tokens.*the 64 that.*--rope-scaling yarn:4"):
        ropes("llama", GraphOptions(n_ctx=200))


def test_an_extended_context_is_a_warning_and_has_a_limit_too():
    with pytest.warns(UserWarning, match="yarn:4 extends the 64 tokens"):
        ropes("llama", GraphOptions(n_ctx=200, extension=RopeExtension("yarn", 4.0)))
    with pytest.raises(ContextError, match=r"257 tokens.*yarn:4 makes of the 64"):
        ropes("llama", GraphOptions(n_ctx=257, extension=RopeExtension("yarn", 4.0)))


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_an_extension_is_the_scaling_of_a_file_that_has_it(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extended = ropes("llama", GraphOptions(extension=RopeExtension(kind, 4.0)))
    told = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    assert extended == ropes("llama", **told)


def test_a_model_that_scales_its_ropes_itself_takes_no_other():
    with pytest.raises(UsageError, match=r"yarn:2.*its own, linear:4"):
        ropes("llama-linear", GraphOptions(extension=RopeExtension("yarn", 2.0)))


@pytest.mark.parametrize("text", ["yarn", "yarn:", "yarn:1", "yarn:nan", "spiral:4", "linear:-2", "linear:9999", ":4"])
def test_an_extension_that_cannot_be_is_refused(text):
    with pytest.raises(UsageError, match="yarn:4 or linear:2"):
        RopeExtension.parse(text)


def test_an_extension_is_written_as_it_is_read():
    assert RopeExtension.parse("yarn:2.5") == RopeExtension("yarn", 2.5)
    assert str(RopeExtension.parse("yarn:2.5")) == "yarn:2.5"


def test_local_layers_have_a_base_of_their_own_and_no_scaling():
    found = {op.layer: op.frequencies for op in ropes("gemma3")}
    n = CASES["gemma3"]["head_dim"]
    assert found[0] == pytest.approx([10000.0 ** (-2 * i / n) for i in range(n // 2)])
    assert found[5] == pytest.approx([1e6 ** (-2 * i / n) / 8 for i in range(n // 2)])
    assert [layer for layer in range(7) if found[layer] == found[5]] == [5]


def test_long_factors_serve_contexts_beyond_the_original_one():
    values = {"rope_factors_long.weight": [4.0] * 8, "rope_factors_short.weight": [2.0] * 8}

    def blocks(name):
        return memoryview(np.array(values[name], np.float32)).cast("B")

    plain = 1.0
    assert ropes("phi3-short", GraphOptions(n_ctx=48), blocks)[0].frequencies[0] == plain / 2
    assert ropes("phi3-short", GraphOptions(n_ctx=49), blocks)[0].frequencies[0] == plain / 4


def test_a_plan_of_the_header_alone_serves_the_file():
    def blocks(name):
        return memoryview(np.full(8, 3.0, np.float32)).cast("B")

    arch, metadata, tensors = header("llama-llama3")
    graphs = [build_graph(arch, metadata, tensors, GraphOptions(), architectures(), b) for b in (None, blocks)]
    assert graphs[0] != graphs[1]
    assert graphs[0].fingerprint == graphs[1].fingerprint


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_factors_that_make_no_sense_are_named(value):
    def blocks(name):
        return memoryview(np.full(8, value, np.float32)).cast("B")

    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight"):
        ropes("llama-llama3", blocks=blocks)


def test_a_model_runs_beyond_its_context_where_it_is_extended(tmp_path):
    path = tiny_llama(tmp_path / "tiny.gguf", n_ctx=32)
    with pytest.raises(ContextError):
        hetrun.load(path, devices=["cpu"], n_ctx=64)
    with (
        pytest.warns(UserWarning, match="extends the 32 tokens"),
        hetrun.load(path, devices=["cpu"], n_ctx=64, extension=RopeExtension("linear", 2.0)) as model,
    ):
        assert np.isfinite(model.logits(list(range(60)))).all()
