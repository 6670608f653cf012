"""Whole models of types that are dequantised at load, against llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import tiny_llama
from require import require_module

import hetrun
from hetrun_cpu.steps import DEQUANTISED_TYPES

INSTALL_ORACLE = "pip install llama-cpp-python==0.3.36"
IDS = list(range(40, 72))


@pytest.mark.parametrize("type_name", ["F16", *sorted(DEQUANTISED_TYPES)])
def test_logits_are_llama_cpps(type_name: str, tmp_path: Path) -> None:
    """Up to the 8 bits that llama.cpp rounds activations to; F16, where it does not, shows what the rest leaves."""
    llama_cpp = require_module("llama_cpp", INSTALL_ORACLE)
    path = tiny_llama(tmp_path / "model.gguf", 2, type_name)
    llama = llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    llama.eval(IDS)
    theirs = np.array(llama.scores[: len(IDS)], np.float64)
    llama.close()
    with hetrun.load(path, devices=["cpu"]) as model:
        ours = model.logits(IDS).astype(np.float64)
    error = ((ours - theirs) ** 2).sum() / (theirs**2).sum()
    assert error < (1e-5 if type_name == "F16" else 5e-3)
