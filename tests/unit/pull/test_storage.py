"""The cache folder: full disks, refused writes, and two processes at once."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_server import DONE, Puller, Server, names, read_until

from hetrun.errors import DownloadError
from hetrun.model import cache, download


class FullDisk:
    """A file that takes the first bytes and then has no more room."""

    def __init__(self, file: Any, code: int) -> None:
        self.file, self.code = file, code
        self.seek = file.seek

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        if self.file.tell():
            raise OSError(self.code, os.strerror(self.code))
        return int(self.file.write(data))


def fill_disk(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real_open = Path.open

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_open(self, mode, *args, **kwargs)
        return FullDisk(file, code) if self.name == "m.gguf.part" and mode == "wb" else file

    monkeypatch.setattr(Path, "open", open_)


def test_full_disk_is_found_before_the_download(
    pull: Puller, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(DownloadError) as caught:
        pull()
    assert caught.value.message == f"{folder}: no space left: 300,004 bytes needed, 1,000 are free"
    assert "HETRUN_CACHE" in (caught.value.remedy or "")
    assert names(folder) == set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["ENOSPC", "EDQUOT"])
def test_disk_that_fills_up_leaves_nothing(
    pull: Puller, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fill_disk(monkeypatch, code)
    monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
    with pytest.raises(DownloadError) as caught:
        pull()
    assert caught.value.message == f"{folder}: no space left: 300,004 bytes needed"
    assert names(folder) == set()


def test_folder_that_cannot_be_made_is_named(pull: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HETRUN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"file/cache: cannot be written \(Not a directory\)"):
        pull()


def test_two_pulls_at_once_fetch_once(
    pull: Puller, server: Server, folder: Path, child: Callable[[], subprocess.Popen[str]]
) -> None:
    server.pause_after = 100_000
    first = child()
    read_until(first, 100_000)
    second = child()
    assert second.stderr is not None
    assert second.stderr.readline() == "waiting for another process that is fetching m.gguf\n"
    server.go_on.set()
    first.communicate()
    second.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.ranges) == 1
    assert names(folder) == DONE


def test_lock_on_a_file_that_its_last_holder_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_path = tmp_path / ".m.gguf.lock"
    real_flock = fcntl.flock
    removed: list[Path] = []

    def flock(file: Any, operation: int) -> None:
        real_flock(file, operation)
        if not removed:
            lock_path.unlink()
            removed.append(lock_path)

    monkeypatch.setattr(fcntl, "flock", flock)
    with cache.writer_lock(tmp_path / "m.gguf", pytest.fail):
        assert lock_path.exists()
    assert not lock_path.exists()
