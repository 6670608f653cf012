"""Whole models: what is written, who reads it, who refuses it, and what happens when a run ends before its end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from models import tiny_llama
from require import require_module

import hetrun
from hetrun.cli.main import run as cli
from hetrun.compress import run as compress_run
from hetrun.compress.work import WorkFolder
from hetrun.errors import HetrunError, UsageError
from hetrun.model.encodings import VERSION_KEY
from hetrun.model.gguf_file import ModelFile
from hetrun.reference.dequant import dequantize

from .conftest import TEXT, compressed, text_of

IDS = [7 * i % 200 + 30 for i in range(40)]


def types(path: Path) -> dict[str, str]:
    with ModelFile.open(path) as file:
        return {name: w.type.name for name, w in file.tensors.items()}


def logits(path: Path, device: str) -> np.ndarray:
    with hetrun.load(path, devices=[device]) as model:
        return model.logits(IDS).astype(np.float64)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(((got - want) ** 2).sum() / (want**2).sum())


def test_matrices_of_the_layers_are_encoded_and_all_else_is_as_it_was(model_path: Path, small: Path) -> None:
    found = types(small)
    for layer in range(2):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            assert found[f"blk.{layer}.{name}.weight"] == "W2S24"
        assert found[f"blk.{layer}.ffn_down.weight"] == "F16"  # rows of 160
    with ModelFile.open(model_path) as old, ModelFile.open(small) as new:
        assert new.architecture == "llama"
        assert new.metadata["general.architecture"] == "hetrun"
        assert {k: w.shape for k, w in new.tensors.items()} == {k: w.shape for k, w in old.tensors.items()}
        for name, weight in old.tensors.items():
            if found[name] == weight.type.name:
                assert bytes(new.blocks(name)) == bytes(old.blocks(name))
        for key in old.metadata:
            if key not in ("general.architecture", "general.file_type"):
                assert new.metadata_bytes(key) == old.metadata_bytes(key)


def test_every_device_makes_the_same_of_it(small: Path) -> None:
    assert error(logits(small, "cpu"), logits(small, "reference")) < 5e-4


def test_two_of_four_are_kept_and_outputs_resemble_what_they_were(model_path: Path, tmp_path: Path) -> None:
    result = compressed(model_path, tmp_path / "out.gguf")
    with ModelFile.open(result.path) as file:
        weight = file.tensors["blk.1.ffn_up.weight"]
        fours = dequantize(file.blocks(weight.name), weight).reshape(-1, 4)
    assert ((fours != 0).sum(axis=1) <= 2).all()
    assert len(result.errors) == 12
    assert max(result.errors.values()) < 0.4


def test_the_gguf_package_lists_it(small: Path) -> None:
    reader = gguf.GGUFReader(small)
    tensor = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.I8
    assert list(tensor.shape) == [64 // 64 * 16 + 4, 160]
    with ModelFile.open(small) as file:
        assert tensor.data.tobytes() == bytes(file.blocks(tensor.name))
    assert reader.fields["hetrun.encoding.version"].contents() == 1
    assert reader.fields["llama.block_count"].contents() == 2


def test_llama_cpp_refuses_it_and_reads_what_is_only_pruned(model_path: Path, small: Path, tmp_path: Path) -> None:
    llama_cpp = require_module("llama_cpp", "pip install llama-cpp-python==0.3.36")
    with pytest.raises(ValueError, match=r"[Ff]ailed to load"):
        llama_cpp.Llama(str(small), n_ctx=64, verbose=False)
    pruned = compressed(model_path, tmp_path / "pruned.gguf", schemes=["s24"]).path
    llama = llama_cpp.Llama(str(pruned), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    llama.eval(IDS)
    theirs = np.array(llama.scores[: len(IDS)], np.float64)
    llama.close()
    assert error(logits(pruned, "cpu"), theirs) < 1e-3


def test_schemes_and_types_by_name(model_path: Path, tmp_path: Path) -> None:
    result = compressed(
        model_path,
        tmp_path / "mixed.gguf",
        schemes=["w2s24", "blk.*.attn_?=w2", "blk.0.ffn_up=s24"],
        keeps=["output=q8_0", "blk.1.ffn_gate", "token_embd=q4_0"],
    )
    found = types(result.path)
    assert found["output.weight"] == "Q8_0"
    assert found["token_embd.weight"] == "Q4_0"
    assert found["blk.1.ffn_gate.weight"] == "F16"
    assert found["blk.0.attn_q.weight"] == "W2"
    assert found["blk.0.attn_output.weight"] == "W2S24"
    assert found["blk.0.ffn_up.weight"] == "Q8_0"
    assert error(logits(result.path, "cpu"), logits(result.path, "reference")) < 5e-4


def test_a_model_in_parts_is_compressed_as_a_whole(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    first = tiny_llama(folder / "tiny.gguf", quant="F16", split=6)
    result = compressed(first, tmp_path / "out.gguf")
    assert result.path.read_bytes() == small.read_bytes()
    with pytest.raises(UsageError, match="is the model itself"):
        compressed(first, sorted(folder.glob("*.gguf"))[-1], force=True)


def test_output_names_the_embedding_where_that_serves_as_head(tmp_path: Path) -> None:
    tied = tiny_llama(tmp_path / "tied.gguf", 1, "F16", tied=True)
    result = compressed(tied, tmp_path / "out.gguf", keeps=["output=q8_0"])
    assert types(result.path)["token_embd.weight"] == "Q8_0"


def test_the_head_can_be_compressed_too(model_path: Path, tmp_path: Path) -> None:
    result = compressed(model_path, tmp_path / "out.gguf", schemes=["output=w2s24"])
    assert types(result.path)["output.weight"] == "W2S24"
    assert set(result.errors) == {"output.weight"}


class Stopped(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> object:
    """stop_after(n): the next run ends as if killed when n tensors are finished."""
    real = WorkFolder.put

    def arm(n: int) -> None:
        left = [n]

        def put(self: WorkFolder, number: int, error: float, data: bytes) -> None:
            if not left[0]:
                raise Stopped
            left[0] -= 1
            real(self, number, error, data)

        monkeypatch.setattr(WorkFolder, "put", put)

    yield arm
    monkeypatch.undo()


def test_a_run_that_was_ended_goes_on_with_the_same_bytes(
    model_path: Path, small: Path, tmp_path: Path, stop_after, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "small.gguf"
    stop_after(7)
    with pytest.raises(Stopped):
        compressed(model_path, output)
    assert not output.exists()
    (tmp_path / "small.gguf.part" / "tensor.new").write_bytes(b"half a tensor")
    monkeypatch.undo()
    result = compressed(model_path, output)
    assert result.resumed == 7
    assert output.read_bytes() == small.read_bytes()
    assert os.listdir(tmp_path) == ["small.gguf"]


def test_other_options_do_not_go_on_with_it(model_path: Path, tmp_path: Path, stop_after, monkeypatch) -> None:
    output = tmp_path / "small.gguf"
    stop_after(3)
    with pytest.raises(Stopped):
        compressed(model_path, output)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"small.gguf.part holds what another run.* differs in method") as caught:
        compressed(model_path, output, method="wanda")
    assert "--restart" in (caught.value.remedy or "")
    assert compressed(model_path, output, method="wanda", restart=True).resumed == 0


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "a.gguf", {}), pytest.raises(UsageError, match="another run is at work"):
        WorkFolder(tmp_path / "a.gguf", {})


def test_a_full_disk_keeps_what_is_done(model_path: Path, small: Path, tmp_path: Path, monkeypatch) -> None:
    output, real = tmp_path / "small.gguf", os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    with pytest.raises(UsageError, match=r"small.gguf: cannot be written: No space left on device") as caught:
        compressed(model_path, output)
    assert "goes on where it was" in (caught.value.remedy or "")
    assert real is os.replace
    assert not output.exists()
    monkeypatch.undo()
    assert compressed(model_path, output).resumed == 12
    assert output.read_bytes() == small.read_bytes()


def test_too_little_room_is_found_before_the_work(model_path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UsageError, match=r"MB are needed there, 0 MB are free"):
        compressed(model_path, tmp_path / "small.gguf")


BAD = {
    "short": ({"text": text_of(20)}, r"the calibration text has \d+ tokens, at least 2048 are needed", "longer text"),
    "keep": ({"keeps": ["outptu=q8_0"]}, r"--keep outptu=q8_0: 'outptu' matches no tensor", "did you mean output"),
    "keep-type": ({"keeps": ["output=q8"]}, r"--keep output=q8: no type 'q8'", "did you mean q8_0"),
    "keep-encoding": ({"keeps": ["output=w2"]}, r"--keep output=w2: no type 'w2'", ""),
    "scheme": ({"schemes": ["w2s42"]}, r"--scheme w2s42: no scheme 'w2s42'", "did you mean w2s24"),
    "scheme-pattern": ({"schemes": ["blk.9.*=w2"]}, r"'blk.9.\*' matches no tensor", "did you mean blk."),
    "scheme-width": (
        {"schemes": ["blk.0.ffn_down=w2"]},
        r"blk.0.ffn_down.weight cannot be compressed: its rows of 160 are no multiple of 64",
        "leave it out",
    ),
    "scheme-table": ({"schemes": ["token_embd=w2"]}, r"token_embd.weight cannot be .*: no matmul reads it", "leave"),
    "method": ({"method": "magnitude"}, r"no method 'magnitude'", "sparsegpt, wanda"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_one_error(case: str, model_path: Path, tmp_path: Path) -> None:
    options, message, remedy = BAD[case]
    with pytest.raises(UsageError, match=message) as caught:
        compressed(model_path, tmp_path / "out.gguf", **{"text": TEXT, **options})
    assert remedy in (caught.value.remedy or "")
    assert os.listdir(tmp_path) == []


def test_outputs_that_exist_are_safe(model_path: Path, small: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"out.gguf: exists") as caught:
        compressed(model_path, output)
    assert "--force" in (caught.value.remedy or "")
    assert output.read_bytes() == b"mine"
    with pytest.raises(UsageError, match="is the model itself"):
        compressed(model_path, model_path, force=True)
    with pytest.raises(UsageError, match="no such folder"):
        compressed(model_path, tmp_path / "no/out.gguf")
    with pytest.raises(UsageError, match="is compressed already"):
        compressed(small, tmp_path / "twice.gguf")


def test_the_verb(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    args = ["compress", "--model", str(model_path), "-c", str(text), "-o", str(tmp_path / "a.gguf"), "--ctx", "128"]
    assert cli([*args, "--json", "--method", "wanda"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = {t["name"]: t for t in record["tensors"]}
    assert found["blk.0.ffn_up.weight"]["bits_per_weight"] == 2 + 32 / 64
    assert found["blk.0.ffn_down.weight"]["kept"] == "its rows of 160 are no multiple of 64"
    assert record["calibration_tokens"] % 128 == 0
    assert cli([*args, "--force"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'a.gguf'}\n"
    assert "kept (its rows of 160 are no multiple of 64, in F16): blk.0.ffn_down.weight" in shown.err
    assert cli(args) == 2
    assert cli(["compress", "--model", str(model_path), "-c", str(tmp_path / "no.txt"), "-o", "x.gguf"]) == 2
    assert "no.txt: No such file or directory" in capsys.readouterr().err


def test_the_model_runs_by_every_verb(small: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_of(60, seed=1))
    assert cli(["perplexity", "--model", str(small), "--file", str(text), "--ctx", "64"]) == 0
    assert float(capsys.readouterr().out) > 1
    assert cli(["generate", "--model", str(small), "--prompt", "the water", "--max-tokens", "4"]) == 0
    assert cli(["inspect", "--model", str(small)]) == 0
    shown = capsys.readouterr().out
    assert "W2S24" in shown
    assert cli(["plan", "--model", str(small)]) == 0


def test_damage_is_named(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    at = data.index(VERSION_KEY.encode()) + len(VERSION_KEY) + 4
    for number, message in ((9, "version 9 of the encodings, this hetrun reads 1"), (0, "version 0 of the encodings")):
        refused(tmp_path, data[:at] + bytes([number]) + data[at + 1 :], message)
    for old, new, message in damages(data):
        assert old in data, old
        refused(tmp_path, data.replace(old, new, 1), message)


def damages(data: bytes) -> Sequence[tuple[bytes, bytes, str]]:
    def item(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text

    return [
        (b"hetrun.encoding.version", b"hetrun.encoding.versiom", "has no key hetrun.encoding.version"),
        (b"hetrun.encoding.types", b"hetrun.encoding.typos", "has no key hetrun.encoding.types"),
        (b"hetrun.encoding.columns", b"hetrun.encoding.columms", "has no key hetrun.encoding.columns"),
        (b"hetrun.architecture", b"hetrun.arcHitecture", "has no key hetrun.architecture"),
        (item(b"W2S24"), item(b"W2S42"), r"unknown encoding 'W2S42' \(the nearest is W2S24\)"),
        (item(b"blk.0.attn_q.weight"), item(b"blk.0.attn_x.weight"), "tensor 'blk.0.attn_x.weight', which the file"),
        (item(b"blk.0.attn_q.weight"), item(b"blk.0.attn_k.weight"), "names a tensor twice"),
        (item(b"blk.0.attn_q.weight"), item(b"blk.0.attn_norm.wei"), "which the file does not hold"),
    ]


def refused(folder: Path, data: bytes, message: str) -> None:
    path = folder / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(HetrunError, match=message):
        ModelFile.open(path).architecture  # noqa: B018


def test_widths_and_carriers_must_fit(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    key = b"hetrun.encoding.columns"
    at = data.index(key) + len(key) + 4 + 4 + 8
    for columns, message in (
        (63, "no multiple of W2S24's 64"),
        (128, "20 bytes a row, but 128 columns of W2S24 take 36"),
    ):
        refused(tmp_path, data[:at] + columns.to_bytes(4, "little") + data[at + 4 :], message)


def test_activations_that_are_not_finite_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(tmp_path / "m.gguf", 1, "F16")
    with ModelFile.open(model) as file:
        data = bytearray(model.read_bytes())
        start = file._starts["blk.0.attn_norm.weight"]
    data[start : start + 4] = np.float32(np.inf).tobytes()
    model.write_bytes(data)
    with pytest.raises(HetrunError, match=r"the input of blk.0.attn_norm is not finite"):
        compressed(model, tmp_path / "out.gguf")
    assert compress_run.LEAST_TOKENS == 2048
