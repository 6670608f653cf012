"""The tiny models of tests/golden/families: their files, and their headers alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hetrun.tensor import TENSOR_TYPES, Weight

FOLDER = Path(__file__).parent / "golden" / "families"
sys.path.insert(0, str(FOLDER))
from cases import CASES, random_weights, tokens  # noqa: E402
from convert import ARCHITECTURES, convert, metadata, renamed, rope_factors  # noqa: E402

__all__ = ["CASES", "goldens", "header", "tokens", "written"]


@cache
def goldens() -> Mapping[str, np.ndarray]:
    """Logits by `transformers`, float32 [n_tokens, n_vocab] of each case."""
    with np.load(FOLDER / "logits.npz") as stored:
        return dict(stored)


@cache
def _shapes() -> dict[str, dict[str, list[int]]]:
    return json.loads((FOLDER / "shapes.json").read_text())


def written(case: str, folder: Path, quant: str | None = None) -> Path:
    """The model's file. quant: type of its matrices, else float32."""
    return convert(CASES[case], random_weights(case, _shapes()[case]), folder / f"{case}.gguf", quant)


def header(case: str) -> tuple[str, dict[str, Any], dict[str, Weight]]:
    """Architecture, metadata and tensors, as a reader of the file would find them."""
    config = CASES[case]
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    keys = {k if k.startswith("tokenizer.") else f"{arch}.{k}": v for k, v in metadata(config).items()}
    values = {name: np.empty(shape, np.float32) for name, shape in _shapes()[case].items()}
    tensors = {n: v.shape for n, v in [*rope_factors(config), *renamed(config, values)]}
    return arch, keys, {n: Weight(n, TENSOR_TYPES["F32"], shape) for n, shape in tensors.items()}
