"""Models in several files, split by the gguf package."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from models import tiny_llama

import hetrun
from hetrun.errors import HetrunError, ModelFileError
from hetrun.model.gguf_file import ModelFile
from hetrun.model.split_name import SplitName

N_PARTS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("whole") / "m.gguf")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    first = tiny_llama(tmp_path_factory.mktemp("split") / "m.gguf", split=6)
    return sorted(first.parent.glob("*.gguf"))


@pytest.fixture
def parts(made: list[Path], tmp_path: Path) -> list[Path]:
    """A copy to spoil."""
    return [Path(shutil.copy(path, tmp_path)) for path in made]


def header(path: Path, **values: Any) -> None:
    """Writes a part anew, with other values of `split.*` keys (None: without the key), and the tensors it has."""
    reader = gguf.GGUFReader(path)
    keys = {k: f.contents() for k, f in reader.fields.items() if k.startswith(("split.", "general.name"))}
    keys |= {f"split.{k.replace('_', '.')}": v for k, v in values.items() if k != "name"}
    if "name" in values:
        keys["general.name"] = values["name"]
    tensors = [(t.name, t.data.copy(), t.tensor_type, t.shape) for t in reader.tensors]
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_int32(key, value)
    for name, data, kind, _ in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("given", range(N_PARTS))
def test_any_part_opens_the_whole_model(made: list[Path], whole: Path, given: int) -> None:
    assert len(made) == N_PARTS
    with ModelFile.open(made[given]) as split, ModelFile.open(whole) as one:
        assert split.path == made[0]
        assert split.paths == tuple(made)
        assert split.size_bytes == sum(path.stat().st_size for path in made)
        assert dict(split.tensors) == dict(one.tensors)
        assert {n: bytes(split.blocks(n)) for n in split.tensors} == {n: bytes(one.blocks(n)) for n in one.tensors}
        assert list(split.metadata) == list(one.metadata)
        assert split.architecture == one.architecture


def test_a_split_model_says_what_the_whole_one_says(made: list[Path], whole: Path) -> None:
    with hetrun.load(made[2], devices=["cpu"]) as split, hetrun.load(whole, devices=["cpu"]) as one:
        assert split.generate("the", max_tokens=8).finish() == one.generate("the", max_tokens=8).finish()


def test_a_first_part_may_hold_no_tensor(tmp_path: Path, whole: Path) -> None:
    first = tiny_llama(tmp_path / "m.gguf", split=10, small_first=True)
    assert not ModelFile.open_single(first).tensors
    with ModelFile.open(first) as split, ModelFile.open(whole) as one:
        assert dict(split.tensors) == dict(one.tensors)


def test_closing_closes_all_parts(made: list[Path]) -> None:
    file = ModelFile.open(made[0])
    file.release_pages()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.blocks("token_embd.weight")
    with pytest.raises(ValueError, match="closed"):
        _ = file.metadata


def test_unknown_tensor_is_refused(made: list[Path]) -> None:
    with ModelFile.open(made[0]) as file, pytest.raises(ModelFileError, match="holds no tensor 'x'"):
        file.blocks("x")


@pytest.mark.parametrize("count", [0, 1])
def test_merged_file_that_kept_its_count_is_whole(tmp_path: Path, count: int) -> None:
    path = tiny_llama(tmp_path / "m.gguf")
    header(path, count=count, no=0)
    with ModelFile.open(path) as file:
        assert type(file) is ModelFile


SPOILS: dict[str, tuple[Callable[[list[Path]], object], int, str]] = {
    "missing": (lambda p: p[1].unlink(), 0, r"is part 1 of 4; beside it there is no m-00002-of-00004\.gguf"),
    "missing-first": (lambda p: p[0].unlink(), 3, r"is part 4 of 4; beside it there is no m-00001-of-00004\.gguf"),
    "two-missing": (
        lambda p: [p[1].unlink(), p[3].unlink()], 0, r"no m-00002-of-00004\.gguf, m-00004-of-00004\.gguf",
    ),
    "renamed": (lambda p: p[0].rename(p[0].with_name("n.gguf")), -1, "is part 1 of 4 of a model, but is not named so"),
    "swapped": (
        lambda p: [p[1].rename(p[1].with_suffix(".x")), p[2].rename(p[1]), p[1].with_suffix(".x").rename(p[2])],
        0,
        r"m-00002-of-00004\.gguf: is named as part 2 of 4, but says that it is part 3 of 4",
    ),
    "other-count": (lambda p: header(p[2], count=5), 0, "named as part 3 of 4, but says that it is part 3 of 5"),
    "no-number": (lambda p: header(p[2], no=None), 0, r"split\.no is missing, it must be from 0 to 3"),
    "wide-number": (lambda p: header(p[2], no=4), 0, r"split\.no is '4', it must be from 0 to 3"),
    "no-tensor-count": (lambda p: header(p[1], tensors_count=None), 0, r"split\.tensors\.count is missing"),
    "other-tensor-count": (
        lambda p: header(p[1], tensors_count=9), 0, r"00002.*the model has 9 tensors by this part, the 4 parts hold 21",
    ),
    "same-tensors": (
        lambda p: [shutil.copy(p[1], p[2]), header(p[2], no=2)],
        0,
        r"00003-of-00004\.gguf: holds tensor '.*', which m-00002-of-00004\.gguf holds too",
    ),
    "other-model": (lambda p: header(p[2], name="another"), 0, "says 'another', the first part 'tiny llama Q8_0'"),
    "cut-off": (lambda p: p[2].write_bytes(p[2].read_bytes()[:-64]), 0, "m-00003-of-00004.gguf: its data ends"),
    "no-file": (lambda p: [p[2].unlink(), p[2].mkdir()], 0, "there is no m-00003"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "given", "says"), SPOILS.values(), ids=SPOILS)
def test_parts_that_do_not_belong_together_are_refused(
    parts: list[Path], tmp_path: Path, spoil: Callable[[list[Path]], object], given: int, says: str
) -> None:
    spoil(parts)
    path = parts[given] if given >= 0 else tmp_path / "n.gguf"
    with pytest.raises(HetrunError, match=says) as caught:
        ModelFile.open(path)
    assert caught.value.exit_code == 3
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("a-00001-of-00003.gguf", ("a", 1, 3)),
        ("a-b-00003-of-00003.gguf", ("a-b", 3, 3)),
        ("a-00000-of-00003.gguf", None),
        ("a-00004-of-00003.gguf", None),
        ("a-0001-of-0003.gguf", None),
        ("a-00001-of-00003.gguf.part", None),
        ("-00001-of-00003.gguf", None),
        ("a.gguf", None),
    ],
)
def test_names_of_parts(name: str, parsed: tuple[str, int, int] | None) -> None:
    found = SplitName.parse(name)
    assert found == (parsed and SplitName(*parsed))
    if found:
        assert found.part(found.number) == name
