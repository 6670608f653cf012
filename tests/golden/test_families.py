"""Tiny models of every family against the logits that `transformers` gives for them (tests/golden/families)."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hetrun.api import graph_of
from hetrun.device import Batch
from hetrun.model.architectures import GraphOptions
from hetrun.model.gguf_file import ModelFile
from hetrun.plan.place import Request, make_plan
from hetrun.plugins import FoundDevice, Registry
from hetrun.reference.driver import ReferenceDriver
from hetrun.run.build import build
from hetrun.run.session import Session
from hetrun_cpu.driver import CpuDriver

FOLDER = Path(__file__).parent / "families"
sys.path.insert(0, str(FOLDER))
from cases import CASES, N_VOCAB, random_weights, tokens  # noqa: E402
from convert import convert  # noqa: E402

MAX_TOKENS = 16
CONTEXTS = {"phi3-short": 48}  # short factors serve contexts up to the original one


@cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "logits.npz") as stored:
        return dict(stored)


@cache
def shapes() -> dict[str, dict[str, list[int]]]:
    return json.loads((FOLDER / "shapes.json").read_text())


def written(case: str, folder: Path, quant: str | None = None) -> Path:
    return convert(CASES[case], random_weights(case, shapes()[case]), folder / f"{case}.gguf", quant)


def device(name: str) -> FoundDevice:
    driver = {"reference": ReferenceDriver, "cpu": CpuDriver}[name]()
    settings = {"threads": 2} if name == "cpu" else {}
    return FoundDevice(driver, driver.probe(settings)[0], name)


def logits_of(path: Path, found: FoundDevice, ids: list[int], options: GraphOptions) -> np.ndarray:
    """Of every token, in chunks of a few and then one by one: windows slide in both."""
    with ModelFile.open(path) as file:
        graph = graph_of(file, options, Registry())
        plan = make_plan(graph, [found], Request())
        rows = []
        with Session(build(graph, plan, [found], file.blocks, MAX_TOKENS, MAX_TOKENS)) as session:
            start = 0
            while start < len(ids):
                n = MAX_TOKENS if start + MAX_TOKENS <= 32 else 1
                part = ids[start : start + n]
                batch = Batch.of(part, range(start, start + n), [0] * n, range(n))
                rows.append(np.array(session.step(batch)).reshape(n, -1))
                start += n
    return np.concatenate(rows)


def options_of(case: str, kv_format: str = "f32") -> GraphOptions:
    return GraphOptions(n_ctx=CONTEXTS.get(case, 0), max_tokens=MAX_TOKENS, max_rollback=1, kv_format=kv_format)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_logits_are_those_of_transformers(name: str, case: str, tmp_path: Path) -> None:
    found = logits_of(written(case, tmp_path), device(name), tokens(case), options_of(case))
    expected = goldens()[case]
    assert found.shape == expected.shape == (len(tokens(case)), N_VOCAB)
    assert np.abs(found - expected).max() <= 1e-4
