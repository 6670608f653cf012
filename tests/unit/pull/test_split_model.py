"""Pulling a split model: each part is a file of its own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hetrun.errors import DownloadError
from hetrun.model.catalog import Catalog
from hetrun.model.catalog_entries import CatalogEntry

CONTENTS = [b"GGUF" + bytes([i]) * (1000 * i) for i in (1, 2, 3)]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str, list[str]]]:
    """(folder, address, paths that were asked for) of a server of files."""
    monkeypatch.setenv("HETRUN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "www"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            asked.append(self.path)

    for i, content in enumerate(CONTENTS):
        (folder / f"m-0000{i + 1}-of-00003.gguf").write_bytes(content)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def catalog(address: str) -> Catalog:
    entries = [
        CatalogEntry(
            "m",
            f"m-0000{i + 1}-of-00003.gguf",
            url=f"{address}/m-0000{i + 1}-of-00003.gguf",
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        for i, content in enumerate(CONTENTS)
    ]
    return Catalog({"m": replace(entries[0], others=tuple(entries[1:]))})


def test_all_parts_are_fetched_and_progress_is_of_the_whole(served: tuple[Path, str, list[str]]) -> None:
    progress: list[tuple[int, int | None]] = []
    path = catalog(served[1]).pull("m", lambda done, total: progress.append((done, total)), notice=lambda line: None)
    assert path.name == "m-00001-of-00003.gguf"
    assert [p.read_bytes() for p in sorted(path.parent.glob("*.gguf"))] == CONTENTS
    total = sum(map(len, CONTENTS))
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)


def test_parts_that_are_there_are_not_fetched_again(served: tuple[Path, str, list[str]]) -> None:
    folder, address, asked = served
    aside = (folder / "m-00003-of-00003.gguf").rename(folder / "aside")
    with pytest.raises(DownloadError, match=r"m-00003-of-00003\.gguf: the server has no such file"):
        catalog(address).pull("m", notice=lambda line: None)
    assert catalog(address).cached("m") is None
    aside.rename(folder / "m-00003-of-00003.gguf")
    asked.clear()
    path = catalog(address).pull("m", notice=lambda line: None)
    assert [p.read_bytes() for p in sorted(path.parent.glob("*.gguf"))] == CONTENTS
    assert set(asked) == {"/m-00003-of-00003.gguf"}
    assert catalog(address).cached("m") == path


def test_a_part_with_another_digest_is_refused(served: tuple[Path, str, list[str]]) -> None:
    folder, address, _ = served
    (folder / "m-00002-of-00003.gguf").write_bytes(CONTENTS[1][:-1] + b"x")
    with pytest.raises(DownloadError, match="SHA-256"):
        catalog(address).pull("m", notice=lambda line: None)
    assert catalog(address).cached("m") is None
