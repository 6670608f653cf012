"""A model server on this machine that misbehaves on demand, and what the tests of pulling share."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hetrun.model import download
from hetrun.model.catalog import Catalog, CatalogEntry

CONTENT = b"GGUF" + bytes((i * 7 + i // 251) % 256 for i in range(300_000))
OTHER = b"GGUF" + bytes((i * 11 + i // 241) % 256 for i in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does next. Requests it got are in `ranges`: their Range header, or None."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"v1"'
    linked_etag: str | None = None
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    pause_after: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    no_length: bool = False
    ignore_if_range: bool = False
    extra_headers: dict[str, str] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path == "/redirect":
            request.send_response(302)
            request.send_header("Location", "/file")
            if self.linked_etag:
                request.send_header("X-Linked-ETag", self.linked_etag)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            request.send_response(status)
            for name, value in self.extra_headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        condition = request.headers.get("If-Range")
        if wanted and (self.ignore_if_range or condition in (None, self.etag)):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[start:]
        if not self.no_length:
            request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        if self.pause_after is not None:
            request.wfile.write(body[: self.pause_after])
            body = body[self.pause_after :]
            self.go_on.wait(60)
        request.wfile.write(body)


class Puller:
    """Pulls one entry from the server and keeps what it reports."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.notices: list[str] = []
        self.progress: list[tuple[int, int | None]] = []

    def __call__(
        self,
        *,
        sha256: str | None = SHA256,
        size_bytes: int | None = len(CONTENT),
        path: str = "/file",
        verify: bool = False,
    ) -> Path:
        entry = CatalogEntry("m", "m.gguf", url=self.server.url + path, sha256=sha256, size_bytes=size_bytes)
        return Catalog({"m": entry}).pull(
            "m", lambda done, total: self.progress.append((done, total)), verify=verify, notice=self.notices.append
        )


def leave_part(folder: Path, server: Server, content: bytes, etag: str | None = '"v1"', total: int = 300_004) -> None:
    folder.mkdir(exist_ok=True)
    part = folder / "m.gguf.part"
    part.write_bytes(content)
    download._write_record(part, download.RemoteFile(server.url + "/file", etag, None, total))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


DONE = {"m.gguf", "m.gguf.json"}


CHILD = """
import sys
from hetrun.model.catalog import Catalog, CatalogEntry
Catalog({"m": CatalogEntry("m", "m.gguf", url=sys.argv[1])}).pull("m", lambda done, total: print(done, flush=True))
"""


def read_until(process: subprocess.Popen[str], done_bytes: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= done_bytes:
            return
    pytest.fail("the pull ended too early")
