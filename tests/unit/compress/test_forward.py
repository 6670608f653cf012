"""The calibration's way through the model, against the reference device's session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hetrun
from hetrun import api
from hetrun.compress.forward import run
from hetrun.model.architectures import GraphOptions
from hetrun.model.gguf_file import ModelFile
from hetrun.ops import MatMul
from hetrun.plugins import Registry
from hetrun.reference.dequant import StoredWeight
from hetrun.tensor import Weight

WINDOWS = [[(13 * i + 7 * n) % 200 + 30 for i in range(24)] for n in range(3)]


@pytest.mark.parametrize("attention", [{}, {"window": 5, "sink": 2}])
def test_every_window_gives_what_a_session_of_its_own_gives(model_path: Path, attention: dict[str, int]) -> None:
    seen: dict[str, np.ndarray] = {}
    with ModelFile.open(model_path) as file:
        graph = api.graph_of(file, GraphOptions(n_ctx=24, kv_format="f32", **attention), Registry.load())

        def fetch(weight: Weight) -> StoredWeight:
            return StoredWeight(weight, file.blocks(weight.name))

        def before(op: MatMul, x: np.ndarray) -> None:
            seen[op.name] = x

        run(graph, WINDOWS, fetch, before, graph.ops[-1])
        head = next(op for op in graph.ops if op.name == "output")
        got = seen["output"] @ fetch(head.weights[0]).array.T
    assert len(seen) == 2 * 7 + 1
    with hetrun.load(model_path, devices=["reference"], n_ctx=24, kv_format="f32", **attention) as model:
        for n, window in enumerate(WINDOWS):
            model.session.truncate(0, 0)
            np.testing.assert_allclose(got[24 * n : 24 * (n + 1)], model.logits(window), rtol=1e-4, atol=1e-4)


def test_a_weight_replaced_before_its_matmul_is_what_the_rest_sees(model_path: Path) -> None:
    with ModelFile.open(model_path) as file:
        graph = api.graph_of(file, GraphOptions(n_ctx=24), Registry.load())
        silenced: set[str] = set()
        seen: dict[str, np.ndarray] = {}

        def fetch(weight: Weight) -> StoredWeight:
            blocks = file.blocks(weight.name)
            return StoredWeight(weight, memoryview(bytes(len(blocks))) if weight.name in silenced else blocks)

        def before(op: MatMul, x: np.ndarray) -> None:
            seen[op.name] = x
            if op.name == "blk.0.ffn_gate":
                silenced.add("blk.0.ffn_gate.weight")

        run(graph, WINDOWS, fetch, before, graph.ops[-1])
    assert not seen["blk.0.ffn_down"].any()
    assert seen["blk.0.ffn_up"].any()
    assert seen["blk.1.ffn_down"].any()
