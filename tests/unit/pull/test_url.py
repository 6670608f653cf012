"""Pulling by URL: what is fetched, what is believed, and what is said when it fails."""

from __future__ import annotations

import os
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from model_server import CONTENT, DONE, OTHER, SHA256, Puller, Server, names

from hetrun.errors import DownloadError


def test_pull_stores_the_file_and_nothing_else(pull: Puller, folder: Path) -> None:
    path = pull()
    assert path == folder / "m.gguf"
    assert path.read_bytes() == CONTENT
    assert names(folder) == DONE


def test_progress_goes_from_nothing_to_everything(pull: Puller) -> None:
    pull()
    assert pull.progress[0] == (0, len(CONTENT))
    assert pull.progress[-1] == (len(CONTENT), len(CONTENT))
    assert pull.progress == sorted(pull.progress)


def test_present_file_is_not_fetched_again(pull: Puller, server: Server) -> None:
    pull()
    pull()
    assert server.ranges == [None]


def test_verify_finds_a_changed_file_and_fetches_it_anew(pull: Puller, folder: Path) -> None:
    pull()
    stat = (folder / "m.gguf").stat()
    (folder / "m.gguf").write_bytes(OTHER)
    os.utime(folder / "m.gguf", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert pull().read_bytes() == OTHER
    assert pull(verify=True).read_bytes() == CONTENT
    assert "fetching it anew" in pull.notices[0]


def test_file_put_there_by_hand_is_taken_if_it_is_the_right_one(pull: Puller, server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "m.gguf").write_bytes(CONTENT)
    pull()
    assert server.ranges == []


def test_file_put_there_by_hand_is_replaced_if_it_is_another(pull: Puller, folder: Path) -> None:
    folder.mkdir()
    (folder / "m.gguf").write_bytes(OTHER)
    assert pull().read_bytes() == CONTENT


def test_busy_server_is_asked_again(pull: Puller, server: Server) -> None:
    server.statuses = [503, 429]
    assert pull().read_bytes() == CONTENT


def test_retry_after_is_honoured(pull: Puller, server: Server, slept: list[float]) -> None:
    server.statuses = [503]
    server.extra_headers = {"Retry-After": "7"}
    pull()
    assert slept == [7.0]


def test_server_that_stays_busy_is_an_error(pull: Puller, server: Server, folder: Path) -> None:
    server.statuses = [503] * 20
    with pytest.raises(DownloadError, match="the server answers 503"):
        pull()
    assert len(server.ranges) == 5
    assert names(folder) == set()


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "wants a login"), (403, "licence"), (404, "no such file"), (410, "any more"), (418, "418")],
)
def test_refusal_is_an_error_at_once(pull: Puller, server: Server, folder: Path, status: int, says: str) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=says) as caught:
        pull()
    assert f"(HTTP {status})" in caught.value.message
    assert "--model PATH" in (caught.value.remedy or "")
    assert len(server.ranges) == 1
    assert names(folder) == set()


def test_wrong_digest_is_an_error_and_leaves_nothing(pull: Puller, server: Server, folder: Path) -> None:
    server.content = OTHER
    with pytest.raises(DownloadError, match=f"instead of {SHA256}"):
        pull()
    assert names(folder) == set()


def test_other_size_is_refused_before_the_download(pull: Puller, server: Server, folder: Path) -> None:
    with pytest.raises(DownloadError, match="the server has 300,004 bytes, the catalogue says 99"):
        pull(size_bytes=99)
    assert names(folder) == set()
    assert pull.progress == []


def test_other_stated_digest_is_refused_before_the_download(pull: Puller, server: Server, folder: Path) -> None:
    server.etag = f'"{"0" * 64}"'
    with pytest.raises(DownloadError, match="the server's file has SHA-256 0000"):
        pull()
    assert names(folder) == set()
    assert pull.progress == []


def test_size_is_checked_where_the_server_states_none(pull: Puller, server: Server, folder: Path) -> None:
    server.no_length = True
    server.content = CONTENT[:-1]
    with pytest.raises(DownloadError, match="connection ended after"):
        pull()
    server.content = CONTENT + b"x"
    with pytest.raises(DownloadError, match="sends more than 300,004 bytes"):
        pull()
    assert names(folder) == set()


def test_server_without_length_or_etag_serves_an_unpinned_file(pull: Puller, server: Server) -> None:
    server.no_length = True
    server.etag = None
    assert pull(sha256=None, size_bytes=None).read_bytes() == CONTENT
    assert pull.progress[0] == (0, None)
    assert pull.notices == [f"m: the catalogue pins no digest; only its size and type were checked (SHA-256 {SHA256})"]


def test_digest_stated_before_the_redirect_is_checked(pull: Puller, server: Server, folder: Path) -> None:
    server.linked_etag = f'"{"0" * 64}"'
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256} instead of 0000"):
        pull(sha256=None, path="/redirect")
    assert names(folder) == set()


def test_digest_that_the_server_states_is_named(pull: Puller, server: Server) -> None:
    server.linked_etag = f'"{SHA256}"'
    pull(sha256=None, path="/redirect")
    assert pull.notices == [
        f"m: the catalogue pins no digest; the one its server states was checked (SHA-256 {SHA256})"
    ]


def test_login_page_is_no_model(pull: Puller, server: Server, folder: Path) -> None:
    server.content = b"<html>Please log in</html>"
    with pytest.raises(DownloadError, match="no GGUF file"):
        pull(sha256=None, size_bytes=None)
    assert names(folder) == set()


def test_refused_connection_says_what_to_do(pull: Puller, server: Server, slept: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match="no connection") as caught:
            pull()
    remedy = caught.value.remedy or ""
    assert "check the network or the proxy" in remedy
    assert f"fetch {server.url}/file elsewhere and pass the file with --model PATH" in remedy
    assert len(slept) == 1


def test_unknown_host_is_named_as_being_offline(pull: Puller, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name_service(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    server.url = "http://models.example"
    monkeypatch.setattr(socket, "getaddrinfo", no_name_service)
    with pytest.raises(DownloadError, match="is this machine offline"):
        pull()


def test_untrusted_certificate_is_named(pull: Puller, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"

    def no_trust(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_trust)
    with pytest.raises(DownloadError, match=r"certificate is not trusted \(self-signed certificate\)") as caught:
        pull()
    assert "SSL_CERT_FILE" in (caught.value.remedy or "")
    assert slept == []


def test_proxy_of_the_environment_is_used(pull: Puller, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.url = "http://models.example"
    assert pull().read_bytes() == CONTENT
