"""The folder that holds pulled models: where it is, who may write in it now, and what fits in it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from hetrun.errors import DownloadError
from hetrun.resources import xdg_dir

# Looking up a name is on the way to the first token: hashlib and shutil are imported where they are used.
CHUNK_BYTES = 1 << 20

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def cache_dir() -> Path:
    """The folder of pulled models: $HETRUN_CACHE, else `models` in hetrun's place in the user's cache."""
    named = os.environ.get("HETRUN_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "linux":
        return xdg_dir("XDG_CACHE_HOME", ".cache") / "hetrun" / "models"
    from platformdirs import user_cache_path

    return user_cache_path("hetrun", appauthor=False) / "models"


def config_dir() -> Path:
    """The user's folder of hetrun's configuration files."""
    if sys.platform == "linux":
        return xdg_dir("XDG_CONFIG_HOME", ".config") / "hetrun"
    from platformdirs import user_config_path

    return user_config_path("hetrun", appauthor=False)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents, as 64 hexadecimal digits."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_free(folder: Path, needed_bytes: int) -> None:
    """DownloadError unless the file system of `folder` has `needed_bytes` free."""
    import shutil

    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise full_disk(folder, needed_bytes, free_bytes)


def full_disk(folder: Path, needed_bytes: int | None, free_bytes: int | None = None) -> DownloadError:
    """The error for a folder whose file system has no room for `needed_bytes` (None: not known)."""
    needed = "more space" if needed_bytes is None else f"{needed_bytes:,} bytes"
    has = "" if free_bytes is None else f", {free_bytes:,} are free"
    return DownloadError(
        f"{folder}: no space left: {needed} needed{has}",
        remedy="free space there, or set HETRUN_CACHE to a folder on a larger disk",
    )


@contextlib.contextmanager
def disk_errors(folder: Path, needed_bytes: int | None) -> Iterator[None]:
    """Turns the system's refusals to write in `folder` into DownloadErrors that name it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise full_disk(folder, needed_bytes) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DownloadError(
                f"{folder}: cannot be written ({error.strerror})",
                remedy="set HETRUN_CACHE to a folder of your own",
            ) from error
        raise


@contextlib.contextmanager
def writer_lock(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the only right to write `path`; waits for another process that has it, after saying so to `waiting`.

    The system frees the lock when its holder dies, so none is ever stale.
    """
    if sys.platform == "win32":
        yield
        return
    lock_path = path.with_name(f".{path.name}.lock")
    file = _locked(lock_path, lambda: waiting(f"waiting for another process that is fetching {path.name}"))
    try:
        yield
    finally:
        lock_path.unlink(missing_ok=True)
        file.close()


def _locked(lock_path: Path, waiting: Callable[[], None]) -> IO[bytes]:
    import fcntl

    while True:
        file = lock_path.open("ab")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Its last holder removes the file, so what was just locked may no longer be the file of that name.
            if _same_file(file, lock_path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _same_file(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
