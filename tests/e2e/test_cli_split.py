"""Split models, tied heads and tensors without use, as `inspect`, `plan` and `generate` show them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import models
import pytest
from models import tiny_llama

from hetrun.cli.main import run
from hetrun.tensor import TENSOR_TYPES, Weight


def result(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert run([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    first = tiny_llama(tmp_path_factory.mktemp("split") / "m.gguf", split=8, tied=True)
    return sorted(first.parent.glob("*.gguf"))


def test_inspect_shows_all_parts_whichever_is_named(parts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    shown = [result(capsys, "inspect", str(path)) for path in parts]
    assert len(parts) == 3 and shown[0] == shown[1] == shown[2]
    assert shown[0]["paths"] == [str(path) for path in parts]
    assert (len(shown[0]["tensors"]), shown[0]["supported"], shown[0]["tied_output"]) == (20, True, True)
    assert run(["inspect", str(parts[1])]) == 0
    out = capsys.readouterr().out
    assert "and 2 more: m-00002-of-00003.gguf, m-00003-of-00003.gguf" in out
    assert "output head: the token embeddings (tied)" in out and "not used" not in out


def test_plan_and_generate_take_any_part(parts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    plans = [result(capsys, "plan", "-m", str(path), "-d", "cpu") for path in (parts[0], parts[2])]
    assert [a["op"] for a in plans[0]["assignment"]] == [a["op"] for a in plans[1]["assignment"]] != []
    texts = [result(capsys, "generate", "-m", str(path), "-d", "cpu", "-p", "the", "-n", "4")["text"] for path in parts]
    assert len(set(texts)) == 1


@pytest.mark.parametrize("verb", ["inspect", "plan", "generate"])
def test_missing_part_is_named(
    verb: str, parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(parts[1], tmp_path)
    prompt = ("-p", "x") if verb == "generate" else ()
    assert run([verb, "-m", str(alone), *prompt]) == 3
    error, hint = capsys.readouterr().err.splitlines()
    assert "part 2 of 3; beside it there is no m-00001-of-00003.gguf, m-00003-of-00003.gguf" in error
    assert "one folder" in hint


def test_tensors_without_use_are_left_out_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = models._weights
    more = Weight("blk.0.attn_rot_embd.weight", TENSOR_TYPES["F32"], (8,))
    monkeypatch.setattr(models, "_weights", lambda *args: [*real(*args), more])
    path = str(tiny_llama(tmp_path / "m.gguf"))
    shown = result(capsys, "inspect", path)
    assert (shown["unused_tensors"], shown["supported"], shown["tied_output"]) == ([more.name], True, False)
    assert run(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "note: not used, and left out: 1 tensors: blk.0.attn_rot_embd.weight" in out and "tied" not in out
    assert result(capsys, "generate", "-m", path, "-d", "cpu", "-p", "the", "-n", "4")["generated_tokens"] == 4
