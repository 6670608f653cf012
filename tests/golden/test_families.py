"""Tiny models of every family against the logits that `transformers` gives for them (tests/golden/families)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import CASES, goldens, tokens, written

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

MAX_TOKENS = 16
N_PREFILL = 32
CONTEXTS = {"phi3-short": 48}  # short factors serve contexts up to the original one


def device(name: str) -> FoundDevice:
    driver = ReferenceDriver() if name == "reference" else CpuDriver()
    return FoundDevice(driver, driver.probe({"threads": 2} if name == "cpu" else {})[0], name)


def logits_of(path: Path, name: str, case: str, kv_format: str = "f32") -> np.ndarray:
    """Of every token, in chunks at first and then one by one: windows slide in both."""
    options = GraphOptions(n_ctx=CONTEXTS.get(case, 0), max_tokens=MAX_TOKENS, max_rollback=1, kv_format=kv_format)
    ids, rows, found = tokens(case), [], device(name)
    starts = [*range(0, N_PREFILL, MAX_TOKENS), *range(N_PREFILL, len(ids))]
    with ModelFile.open(path) as file:
        graph = graph_of(file, options, Registry())
        plan = make_plan(graph, [found], Request())
        with Session(build(graph, plan, [found], file.blocks, MAX_TOKENS, MAX_TOKENS)) as session:
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                n = end - start
                logits = session.step(Batch.of(ids[start:end], range(start, end), [0] * n, range(n)))
                rows.append(np.array(logits).reshape(n, -1))
    return np.concatenate(rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_logits_are_those_of_transformers(name: str, case: str, tmp_path: Path) -> None:
    found = logits_of(written(case, tmp_path), name, case)
    assert found.shape == goldens()[case].shape
    assert np.abs(found - goldens()[case]).max() <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_quantised_weights_stay_within_quantisation_noise_on_cpu(case: str, tmp_path: Path) -> None:
    """The cpu, which rounds activations too, is off the reference by no more than four times what rounding weights did.

    Of the median token: where another expert is chosen by a hair, logits are of another model.
    """
    path = written(case, tmp_path, "Q8_0")
    exact, rounded, cpu = goldens()[case], logits_of(path, "reference", case), logits_of(path, "cpu", case)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.median(((a - b) ** 2).sum(axis=1) / (exact**2).sum(axis=1)))

    assert error(cpu, rounded) <= 4.0 * error(rounded, exact)
    assert error(rounded, exact) <= 1e-3
