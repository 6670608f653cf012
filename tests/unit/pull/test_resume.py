"""A download that was interrupted goes on, and never mixes two files."""

from __future__ import annotations

import http.server
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from model_server import CONTENT, DONE, OTHER, SHA256, Puller, Server, leave_part, names, read_until

from hetrun.errors import DownloadError
from hetrun.model import download
from hetrun.model.catalog import Catalog, CatalogEntry


def test_interrupted_download_is_resumed(pull: Puller, server: Server, folder: Path) -> None:
    leave_part(folder, server, CONTENT[:100_000])
    assert pull().read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-"]
    assert pull.progress[0] == (100_000, len(CONTENT))
    assert names(folder) == DONE


def test_complete_part_needs_no_request(pull: Puller, server: Server, folder: Path) -> None:
    leave_part(folder, server, CONTENT)
    assert pull().read_bytes() == CONTENT
    assert server.ranges == []


def test_part_of_a_file_that_changed_is_dropped(pull: Puller, server: Server, folder: Path) -> None:
    leave_part(folder, server, OTHER[:100_000], etag='"v0"')
    assert pull().read_bytes() == CONTENT


def test_part_is_dropped_when_a_server_that_ignores_if_range_has_a_new_file(
    pull: Puller, server: Server, folder: Path
) -> None:
    server.ignore_if_range = True
    leave_part(folder, server, OTHER[:100_000], etag='"v0"')
    assert pull(sha256=None).read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-", None]


def test_part_of_a_file_of_another_size_is_dropped(pull: Puller, server: Server, folder: Path) -> None:
    server.etag = None
    leave_part(folder, server, OTHER[:100_000], etag=None, total=500_000)
    assert pull().read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-", None]


def test_part_without_a_record_is_dropped(pull: Puller, server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "m.gguf.part").write_bytes(OTHER[:100_000])
    assert pull().read_bytes() == CONTENT
    assert server.ranges == [None]


def test_part_of_another_url_is_dropped(pull: Puller, server: Server, folder: Path) -> None:
    leave_part(folder, server, OTHER[:100_000])
    pull(path="/moved", sha256=None)
    assert server.ranges == [None]


def test_part_longer_than_the_file_is_dropped(pull: Puller, server: Server, folder: Path) -> None:
    leave_part(folder, server, CONTENT + b"more")
    assert pull().read_bytes() == CONTENT
    assert server.ranges == ["bytes=300008-", None]


def test_part_that_spoils_the_digest_is_dropped_once(pull: Puller, server: Server, folder: Path) -> None:
    leave_part(folder, server, OTHER[:100_000])
    assert pull().read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-", None]
    assert "fetching it once more" in pull.notices[0]


def test_file_that_changes_between_two_answers_is_not_mixed(pull: Puller, server: Server) -> None:
    server.cuts = [100_000]
    answer = server.answer

    def change_after_first(request: http.server.BaseHTTPRequestHandler) -> None:
        answer(request)
        server.content, server.etag = OTHER, '"v2"'

    server.answer = change_after_first  # type: ignore[method-assign]
    assert pull(sha256=None).read_bytes() == OTHER


def test_truncated_body_is_completed(pull: Puller, server: Server, slept: list[float]) -> None:
    server.cuts = [100_000, 50_000]
    assert pull().read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert slept == [1.0, 2.0]


def test_attempts_are_bounded_and_the_part_stays(pull: Puller, server: Server, folder: Path) -> None:
    server.cuts = [1000] * 20
    with pytest.raises(DownloadError, match=r"the connection ended after 5,000 of 300,004 bytes") as caught:
        pull()
    assert "continue where it stopped" in (caught.value.remedy or "")
    assert names(folder) == {"m.gguf.part", "m.gguf.part.json"}


def test_range_that_is_never_right_does_not_loop(pull: Puller, server: Server) -> None:
    server.statuses = [416] * 20
    with pytest.raises(DownloadError, match="only a part"):
        pull()


def test_ctrl_c_keeps_the_part(pull: Puller, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 50_000)
    entry = CatalogEntry("m", "m.gguf", url=server.url + "/file", sha256=SHA256)

    def interrupt(done: int, total: int | None) -> None:
        if done >= 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Catalog({"m": entry}).pull("m", interrupt)
    assert names(folder) == {"m.gguf.part", "m.gguf.part.json"}
    assert pull().read_bytes() == CONTENT
    assert server.ranges[1] is not None


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_killed_pull_is_resumed(
    pull: Puller, server: Server, folder: Path, child: Callable[[], subprocess.Popen[str]], sent: signal.Signals
) -> None:
    server.pause_after = 200_000
    process = child()
    read_until(process, 200_000)
    process.send_signal(sent)
    process.wait()
    server.pause_after = None
    assert pull().read_bytes() == CONTENT
    # What the file object had not handed to the system yet is lost with the process, and fetched again.
    assert 100_000 <= int((server.ranges[1] or "bytes=0-")[6:-1]) <= 200_000
    assert names(folder) - {".m.gguf.lock"} == DONE
