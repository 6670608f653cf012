"""A headless browser: what it makes of a page, and what it complains of."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import require

INSTALL = "sudo apt-get install -y chromium"
TIMEOUT_S = 120


@dataclass(frozen=True)
class Opened:
    """dom: the page after its scripts.   console: what scripts and the browser said of it."""

    dom: str
    console: list[str]


def open_page(page: Path, folder: Path, *, width: int = 1280, height: int = 1600, dark: bool = False) -> Opened:
    """Runs the page's scripts in Chromium, without a network. The test is skipped where there is no browser."""
    return Opened(*_run(page, folder, "--dump-dom", width, height, dark))


def screenshot(page: Path, folder: Path, *, width: int = 1280, height: int = 1600, dark: bool = False) -> Path:
    path = folder / f"{page.stem}-{'dark' if dark else 'light'}.png"
    _run(page, folder, f"--screenshot={path}", width, height, dark)
    return path


def _run(page: Path, folder: Path, what: str, width: int, height: int, dark: bool) -> tuple[str, list[str]]:
    browser = require.require_tool("chromium", INSTALL)
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--proxy-server=127.0.0.1:9", f"--window-size={width},{height}", "--enable-logging=stderr",
        "--virtual-time-budget=3000", f"--user-data-dir={folder / 'browser'}", what,
        *(["--blink-settings=preferredColorScheme=0"] if dark else []), page.as_uri(),
    ]  # fmt: skip
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env=env)
    log = done.stderr.decode(errors="replace")
    assert done.returncode == 0, log
    console = [line for line in log.splitlines() if re.search(r":CONSOLE[:(]", line)]
    return done.stdout.decode(), console


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes, own text and that of what is in it, ancestors' ids)."""

    _VOID = frozenset(("meta", "link", "br", "img", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        within = frozenset(e.attributes["id"] for e in self._open if "id" in e.attributes)
        element = Element(tag, {name: value or "" for name, value in attrs}, within)
        self.found.append(element)
        if tag not in self._VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    within: frozenset[str]
    text: str = ""


def pixels(path: Path) -> list[bytes]:
    """The rows of a PNG of 8-bit RGB or RGBA, 3 bytes a pixel."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, size = 8, b"", (0, 0, 0, 0)
    while at < len(data):
        n = int.from_bytes(data[at : at + 4], "big")
        kind, chunk = data[at + 4 : at + 8], data[at + 8 : at + 8 + n]
        if kind == b"IHDR":
            size = (int.from_bytes(chunk[:4], "big"), int.from_bytes(chunk[4:8], "big"), chunk[8], chunk[9])
        packed += chunk if kind == b"IDAT" else b""
        at += 12 + n
    width, height, depth, colour = size
    assert depth == 8 and colour in (2, 6), size
    n_bytes = 3 if colour == 2 else 4
    raw = zlib.decompress(packed)
    stride = width * n_bytes
    rows: list[bytes] = []
    before = bytearray(stride)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        before = _unfilter(kind, line, before, n_bytes)
        rows.append(bytes(before) if n_bytes == 3 else b"".join(bytes(before[i : i + 3]) for i in range(0, stride, 4)))
    return rows


def _unfilter(kind: int, line: bytearray, before: bytearray, n_bytes: int) -> bytearray:
    """One row of a PNG without its filter (PNG specification, section 9)."""
    for i in range(len(line)):
        left = line[i - n_bytes] if i >= n_bytes else 0
        up, corner = before[i], before[i - n_bytes] if i >= n_bytes else 0
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = up
        elif kind == 3:
            guess = (left + up) // 2
        elif kind == 4:
            p = left + up - corner
            guess = min((left, up, corner), key=lambda v: abs(p - v))
        else:
            guess = 0
        line[i] = (line[i] + guess) & 255
    return line
