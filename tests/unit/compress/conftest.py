"""A tiny model, a text to calibrate it on, and what `hetrun compress` makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from models import tiny_llama

from hetrun.compress.run import Options, Result, compress

Compress = Callable[..., Result]


def text_of(n_words: int, seed: int = 0) -> str:
    """Words whose letters repeat, so that activations have directions that matter more than others."""
    rng = random.Random(seed)
    words = ["the", "and", "of", "is", "it", "in", "on", "to", "running", "other", "water", "stone"]
    return " ".join(rng.choice(words) for _ in range(n_words))


TEXT = text_of(1500)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 2 layers; rows of `ffn_down` are 160 wide, no multiple of 64."""
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", quant="F16")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """The model compressed by the defaults."""
    return compressed(model_path, tmp_path_factory.mktemp("small") / "small.gguf").path


def compressed(model: Path, output: Path, text: str = TEXT, **options: object) -> Result:
    return compress(model, text, output, Options(n_ctx=128, tokens=2048, **options))  # type: ignore[arg-type]
