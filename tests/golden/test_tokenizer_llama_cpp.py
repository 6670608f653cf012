"""The same ids as llama.cpp: its recorded answers, and its live ones where llama-cpp-python is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from golden.tokenizer import make_goldens
from golden.tokenizer.sample_text import mixed_strings, random_strings

from hetrun.model.gguf_file import ModelFile
from hetrun.model.tokenizer import Tokenizer

FOLDER = Path(make_goldens.__file__).parent
GOLDENS = json.loads((FOLDER / "goldens.json").read_text())
VARIANTS = dict(make_goldens.variants())
INSTALL_ORACLE = "pip install 'llama-cpp-python==0.3.36'"
N_LIVE_TEXTS = 300
N_MIXED_TEXTS = 10_000


@cache
def tokenizer_of(variant: str) -> Tokenizer:
    return Tokenizer.from_metadata(VARIANTS[variant])


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_metadata(ModelFile.open(smollm2_path).metadata)


def differing(tokenizer: Tokenizer, variant: str, mode: str) -> list[Any]:
    """Text, ids, llama.cpp's ids: the first few that differ."""
    recorded = (GOLDENS["ids"][i] for i in GOLDENS["answers"][variant][mode])
    pairs = (
        (text, tokenizer.encode(text, parse_special=mode == "parsed"), ids)
        for text, ids in zip(GOLDENS["texts"], recorded, strict=True)
    )
    return [pair for pair in pairs if pair[1] != pair[2]][:3]


def differing_live(tokenizer: Tokenizer, llama: make_goldens.LlamaCpp, seed: int) -> list[Any]:
    found = []
    for text in random_strings(seed, N_LIVE_TEXTS):
        for parse_special in (False, True):
            ids = tokenizer.encode(text, parse_special=parse_special)
            expected = llama.encode(text, add_special=True, parse_special=parse_special)
            if ids != expected:
                found.append((text, ids, expected))
    return found[:3]


@pytest.mark.parametrize("mode", ["plain", "parsed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ids_equal_the_recorded_ones(variant: str, mode: str) -> None:
    assert differing(tokenizer_of(variant), variant, mode) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_end_of_generation_tokens_equal_the_recorded_ones(variant: str) -> None:
    assert sorted(tokenizer_of(variant).eog_ids) == GOLDENS["answers"][variant]["eog_ids"]


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "sentencepiece_phrases"])
def test_own_reader_gives_the_tokens_that_the_gguf_package_reads(name: str) -> None:
    path = FOLDER / f"{name}.gguf"
    own = Tokenizer.from_metadata(ModelFile.open(path).metadata)
    plain = Tokenizer.from_metadata(make_goldens.read_vocabulary(path))
    assert [own.token_bytes(i) for i in range(own.n_vocab)] == [plain.token_bytes(i) for i in range(plain.n_vocab)]
    assert own.pieces() == [own.token_bytes(i) for i in range(own.n_vocab)]


@pytest.mark.parametrize("mode", ["plain", "parsed"])
def test_smollm2_ids_equal_the_recorded_ones(smollm2: Tokenizer, mode: str) -> None:
    assert differing(smollm2, "smollm2", mode) == []


def test_smollm2_end_of_generation_tokens_equal_the_recorded_ones(smollm2: Tokenizer) -> None:
    assert sorted(smollm2.eog_ids) == GOLDENS["answers"]["smollm2"]["eog_ids"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ids_of_random_text_equal_the_live_ones(variant: str, require_module: Callable[[str, str], ModuleType]) -> None:
    require_module("llama_cpp", INSTALL_ORACLE)
    with make_goldens.llama_cpp_of(VARIANTS[variant]) as llama:
        assert differing_live(tokenizer_of(variant), llama, seed=3) == []


@pytest.mark.parametrize("variant", ["byte_level-qwen2", "sentencepiece"])
def test_pieces_equal_the_live_ones(variant: str, require_module: Callable[[str, str], ModuleType]) -> None:
    require_module("llama_cpp", INSTALL_ORACLE)
    tokenizer = tokenizer_of(variant)
    with make_goldens.llama_cpp_of(VARIANTS[variant]) as llama:
        differing = [i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) != llama.piece(i)]
    assert differing == []


@pytest.mark.parametrize("variant", ["byte_level-llama-bpe", "byte_level-deepseek-v3", "sentencepiece"])
def test_ids_of_long_text_equal_the_live_ones(variant: str, require_module: Callable[[str, str], ModuleType]) -> None:
    require_module("llama_cpp", INSTALL_ORACLE)
    text = " ".join(random_strings(4, 6000))
    with make_goldens.llama_cpp_of(VARIANTS[variant]) as llama:
        assert tokenizer_of(variant).encode(text) == llama.encode(text, add_special=True, parse_special=False)


def test_smollm2_ids_of_random_text_equal_the_live_ones(
    smollm2: Tokenizer, smollm2_path: Path, require_module: Callable[[str, str], ModuleType]
) -> None:
    require_module("llama_cpp", INSTALL_ORACLE)
    assert differing_live(smollm2, make_goldens.LlamaCpp(smollm2_path), seed=5) == []


@pytest.mark.parametrize("path", ["smollm2_path", "gemma3_path"])
def test_ids_of_mixed_bytes_equal_the_live_ones(
    path: str, request: pytest.FixtureRequest, require_module: Callable[[str, str], ModuleType]
) -> None:
    """All scripts, emoji, spaces, and bytes that are no UTF-8, special tokens read as text and as tokens in turn."""
    require_module("llama_cpp", INSTALL_ORACLE)
    file = request.getfixturevalue(path)
    llama = make_goldens.LlamaCpp(file)
    tokenizer = Tokenizer.from_metadata(ModelFile.open(file).metadata)
    found = []
    for i, text in enumerate(mixed_strings(6, N_MIXED_TEXTS)):
        ids = tokenizer.encode(text, parse_special=i % 2 == 1)
        expected = llama.encode(text, add_special=True, parse_special=i % 2 == 1)
        if ids != expected:
            found.append((text, ids, expected))
    assert found[:3] == []


def test_gemma3_end_of_generation_tokens_and_pieces_equal_the_live_ones(
    gemma3_path: Path, require_module: Callable[[str, str], ModuleType]
) -> None:
    require_module("llama_cpp", INSTALL_ORACLE)
    llama = make_goldens.LlamaCpp(gemma3_path)
    tokenizer = Tokenizer.from_metadata(ModelFile.open(gemma3_path).metadata)
    assert tokenizer.eog_ids == llama.eog_ids()
    ids = range(0, tokenizer.n_vocab, 37)
    assert [i for i in ids if tokenizer.token_bytes(i) != llama.piece(i)] == []
