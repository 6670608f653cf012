"""Fetches one file by HTTP: resumes, retries, and never takes a part of another file for its own."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from email.message import Message
from pathlib import Path
from typing import Any

from hetrun import __version__
from hetrun.errors import DownloadError
from hetrun.model.cache import CHUNK_BYTES, disk_errors, require_free

Progress = Callable[[int, "int | None"], None]

_TIMEOUT_S = 30.0
_ATTEMPTS = 5
_CONNECT_ATTEMPTS = 2
_MAX_RETRY_AFTER_S = 60.0
# A download that lost its connection is not failing while it gets on by at least this much each time.
_PROGRESS_BYTES = 1 << 20
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = {
    401: "wants a login",
    403: "refuses access; its publisher may want a licence accepted first",
    404: "has no such file",
    410: "has no such file any more",
}
_SHA256 = re.compile(r'^"?([0-9a-f]{64})"?$')
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(\d+|\*)$")


@dataclass(frozen=True)
class RemoteFile:
    """What the server said of the file: the identity by which a part of it can be completed later.

    etag: the strong validator of the response, or None. sha256: the digest the server states, or None.
    """

    url: str
    etag: str | None
    sha256: str | None
    total_bytes: int | None


class _Transient(Exception):
    """A failure worth another attempt."""

    def __init__(self, cause: str, retry_after_s: float | None = None, *, connected: bool = True) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s
        self.connected = connected


class _RangeRejected(Exception):
    """The server's file is not the one that the part on disk was taken from."""


def fetch(
    url: str,
    part: Path,
    *,
    size_bytes: int | None,
    sha256: str | None,
    progress: Progress,
    backoff_s: float = 1.0,
) -> tuple[RemoteFile, bool]:
    """Downloads `url` to `part`, completing what an earlier attempt left there if it is of the same file.

    size_bytes, sha256: what the file must be, or None; a server that states something else is refused before the
    download. The caller checks the content. Returns what the server said, and whether the file was put together from
    several answers.
    DownloadError after bounded retries; the part then stays for the next time, unless the disk is full.
    """
    failures = 0
    while True:
        done_before = _size(part)
        try:
            return _attempt(url, part, size_bytes, sha256, progress)
        except _RangeRejected:
            if not done_before:
                raise DownloadError(f"{url}: the server answers as if only a part were wanted") from None
            discard(part)
        except _Transient as failure:
            failures = 1 if _size(part) >= done_before + _PROGRESS_BYTES else failures + 1
            if failures >= (_ATTEMPTS if failure.connected else _CONNECT_ATTEMPTS):
                raise DownloadError(
                    f"{url}: {failure}", remedy=f"{_again(part)}, {_by_hand(url)}"
                ) from failure.__cause__
            time.sleep(max(backoff_s * 2 ** (failures - 1), failure.retry_after_s or 0.0))


def discard(part: Path) -> None:
    """Removes a part and what is known of it."""
    part.unlink(missing_ok=True)
    _record_path(part).unlink(missing_ok=True)


def forget(part: Path) -> None:
    """Removes what is known of a part that is complete."""
    _record_path(part).unlink(missing_ok=True)


def _again(part: Path) -> str:
    return "pull again to continue where it stopped" if _size(part) else "check the network or the proxy and pull again"


def _by_hand(url: str) -> str:
    return f"or fetch {url} elsewhere and pass the file with --model PATH"


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _attempt(
    url: str, part: Path, size_bytes: int | None, sha256: str | None, progress: Progress
) -> tuple[RemoteFile, bool]:
    """One request. Returns what the server said, and whether the part's earlier bytes were kept."""
    offset = _size(part)
    before = _read_record(part) if offset else None
    if offset and (before is None or before.url != url):
        raise _RangeRejected
    if before is not None and offset == before.total_bytes:
        return before, True
    headers = {"User-Agent": f"hetrun/{__version__}", "Accept-Encoding": "identity"}
    if before is not None:
        headers["Range"] = f"bytes={offset}-"
        if before.etag is not None:
            headers["If-Range"] = before.etag
    redirects = _Redirects()
    response = _open(urllib.request.Request(url, headers=headers), redirects)
    with response:
        remote = _remote_file(url, response, redirects.headers)
        if response.status == 206:
            if before is None or not _continues(before, remote, response.headers, offset, pinned=sha256 is not None):
                raise _RangeRejected
        else:
            offset = 0
        try:
            _check_stated(remote, size_bytes, sha256)
        except DownloadError:
            discard(part)
            raise
        return remote, _receive(response, remote, part, offset, size_bytes, progress)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the headers of the first answer: a hub states a file's digest there and then points to its store."""

    def __init__(self) -> None:
        self.headers: Message | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if self.headers is None:
            self.headers = headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, redirects: _Redirects) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                raise _RangeRejected from error
            if error.code in _TRANSIENT_STATUS:
                raise _Transient(f"the server answers {error.code} {error.reason}", _retry_after_s(error)) from error
            said = _REFUSED.get(error.code, f"answers {error.code} {error.reason}")
            raise DownloadError(
                f"{request.full_url}: the server {said} (HTTP {error.code})",
                remedy="fetch the file with a browser and pass it with --model PATH",
            ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{request.full_url}: the server's certificate is not trusted ({error.reason.verify_message})",
                remedy="set SSL_CERT_FILE to your network's certificates",
            ) from error
        resolved = not isinstance(error.reason, socket.gaierror)
        cause = f"no connection ({error.reason})" if resolved else "its host is not found; is this machine offline?"
        raise _Transient(cause, connected=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(f"no answer ({_name(error)})") from error


def _name(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after_s(error: urllib.error.HTTPError) -> float | None:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(value), _MAX_RETRY_AFTER_S) if value.isascii() and value.isdigit() else None


def _remote_file(url: str, response: http.client.HTTPResponse, first: Message | None) -> RemoteFile:
    headers = response.headers
    etag = headers.get("ETag")
    stated = (first.get("X-Linked-ETag") if first else None) or headers.get("X-Linked-ETag") or etag or ""
    digest = _SHA256.match(stated)
    total: int | None = None
    if response.status == 206:
        if (match := _CONTENT_RANGE.match(headers.get("Content-Range", ""))) and match[2] != "*":
            total = int(match[2])
    elif (length := headers.get("Content-Length", "")).isdigit():
        total = int(length)
    strong = etag if etag and not etag.startswith("W/") else None
    return RemoteFile(url, strong, digest[1] if digest else None, total)


def _continues(before: RemoteFile, now: RemoteFile, headers: Message, offset: int, *, pinned: bool) -> bool:
    """Whether the answer to a range request goes on exactly where the part ends, in the same file."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if match is None or int(match[1]) != offset or before.total_bytes != now.total_bytes:
        return False
    if before.sha256 and now.sha256:
        return before.sha256 == now.sha256
    if before.etag and now.etag:
        return before.etag == now.etag
    # Nothing identifies the file; a pinned digest will tell in the end.
    return pinned


def _check_stated(remote: RemoteFile, size_bytes: int | None, sha256: str | None) -> None:
    if size_bytes is not None and remote.total_bytes is not None and remote.total_bytes != size_bytes:
        raise DownloadError(
            f"{remote.url}: the server has {remote.total_bytes:,} bytes, the catalogue says {size_bytes:,}",
            remedy="the file was replaced; pass a file that you trust with --model PATH",
        )
    if sha256 is not None and remote.sha256 is not None and remote.sha256 != sha256:
        raise DownloadError(
            f"{remote.url}: the server's file has SHA-256 {remote.sha256}, the catalogue says {sha256}",
            remedy="the file was replaced; pass a file that you trust with --model PATH",
        )


def _receive(
    response: http.client.HTTPResponse,
    remote: RemoteFile,
    part: Path,
    offset: int,
    size_bytes: int | None,
    progress: Progress,
) -> bool:
    """Writes the body at `offset` of the part, of which nothing behind that is kept. Returns whether offset > 0."""
    total = remote.total_bytes if remote.total_bytes is not None else size_bytes
    needed_bytes = None if total is None else total - offset
    if needed_bytes is not None:
        require_free(part.parent, needed_bytes)
    done = offset
    try:
        with disk_errors(part.parent, needed_bytes), part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            # After the truncation and before the first byte: at no time does the record speak of another part.
            _write_record(part, remote)
            progress(done, total)
            while chunk := _read(response):
                if total is not None and done + len(chunk) > total:
                    raise DownloadError(f"{remote.url}: the server sends more than {total:,} bytes")
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    except DownloadError:
        discard(part)
        raise
    if total is not None and done < total:
        raise _Transient(f"the connection ended after {done:,} of {total:,} bytes")
    return offset > 0


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(f"the connection broke ({_name(error)})") from error


def _record_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_record(part: Path, remote: RemoteFile) -> None:
    _record_path(part).write_text(json.dumps(asdict(remote)))


def _read_record(part: Path) -> RemoteFile | None:
    try:
        values = json.loads(_record_path(part).read_text())
        return RemoteFile(**{field.name: values[field.name] for field in fields(RemoteFile)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
