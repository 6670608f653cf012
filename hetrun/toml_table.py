"""TOML files of configuration, read with checks: every error names file, line, key and the nearest right key."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hetrun.device import Basis
from hetrun.errors import ConfigError
from hetrun.resources import resource_path

_BASIS = re.compile(r"(measured|simulated|analytic):\s*\S")
_UNIT_HINT = "mind the unit in the key's name"


@dataclass(frozen=True)
class Quantity:
    """A number and where it comes from."""

    value: float
    basis: Basis


def shipped(kind: str) -> tuple[str, ...]:
    """Names of the shipped "devices" (profiles) or "systems", sorted."""
    return tuple(sorted(p.stem for p in resource_path(f"hetrun/configs/{kind}").glob("*.toml")))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. ConfigError where it cannot be read or parsed."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", remedy="check the path and its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}", remedy="see https://toml.io for the syntax") from error


def find(name_or_path: str | Path, kind: str, noun: str) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return Path(name_or_path)
    names = shipped(kind)
    if text not in names:
        hint = near(text, names)
        raise ConfigError(f"no {noun} {text!r}", remedy=f"{hint} (or give the path of a .toml file)")
    return resource_path(f"hetrun/configs/{kind}") / f"{text}.toml"


def near(text: str, known: Any) -> str:
    near = difflib.get_close_matches(text, sorted(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"


@dataclass
class TomlTable:
    """A table being read: remembers which keys were asked for, so that the rest is unknown."""

    path: Path
    name: str
    values: Mapping[str, Any]
    asked: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> TomlTable:
        values = read_toml(path)
        if not values:
            raise ConfigError(
                f"{path}: the file is empty", remedy=f"those in {resource_path('hetrun/configs')} are examples"
            )
        return cls(path, "", values)

    def fail(self, key: str | None, problem: str, remedy: str) -> None:
        """Raises ConfigError at `key`, or at the table."""
        line = _line_of(self.path, self.name, key)
        where = f"[{self.name}]" if self.name else "top level"
        subject = f"{where} {key}" if key else where
        raise ConfigError(f"{self.path}{line}: {subject}: {problem}", remedy=remedy)

    def done(self) -> None:
        """ConfigError on the first key that nobody asked for."""
        for key in self.values:
            if key not in self.asked:
                self.fail(key, "unknown key", near(key, self.asked))

    def get(self, key: str, kind: type | tuple[type, ...], noun: str, required: bool = True) -> Any:
        self.asked.add(key)
        value = self.values.get(key)
        if value is None:
            if required:
                # A misspelt key is both missing and unknown; the unknown one is what the user can see.
                near = [k for k in difflib.get_close_matches(key, list(self.values), n=1) if k not in self.asked]
                if near:
                    self.fail(near[0], "unknown key", f"did you mean {key}?")
                self.fail(None, f"{key} is missing", f"add {key}, {noun}")
        elif not isinstance(value, kind) or isinstance(value, bool):
            self.fail(key, f"{value!r} is not {noun}", f"give {noun}")
        return value

    def text(self, key: str) -> str:
        return str(self.get(key, str, "a text"))

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.get(key, list, "a list of texts")
        for value in values:
            if not isinstance(value, str):
                self.fail(key, f"{value!r} is not a text", "give a list of texts")
        if not values:
            self.fail(key, "the list is empty", "name at least one")
        return tuple(values)

    def names(self, key: str, known: Any, absent: Iterable[str] | None = None) -> frozenset[str]:
        """A list of names out of `known`; ["all"] is every one of them.   absent: those where there is no list."""
        if absent is not None and key not in self.values:
            return frozenset(absent)
        names = self.texts(key)
        if names == ("all",):
            return frozenset(known)
        for name in names:
            if name not in known:
                self.fail(key, f"unknown {name!r}", near(name, known))
        return frozenset(names)

    def integer(self, key: str, default: int) -> int:
        value = self.get(key, int, "a whole number", required=False)
        if value is not None and value < 1:
            self.fail(key, f"{value} is less than 1", "give a whole number from 1 on")
        return default if value is None else int(value)

    def number(self, key: str, positive: bool = False, infinite: bool = False) -> float:
        value = float(self.get(key, (int, float), "a number"))
        if math.isnan(value) or value < 0 or (positive and value == 0):
            self.fail(
                key, f"{value:g} is not {'above' if positive else 'at least'} 0", "mind the unit in the key's name"
            )
        if math.isinf(value) and not infinite:
            self.fail(key, "must be finite", "mind the unit in the key's name")
        return value

    def basis(self, key: str) -> Basis:
        text = self.text(key)
        if not _BASIS.match(text):
            self.fail(
                key, f"{text!r} names no source", 'write "measured:<where>", "simulated:<model>" or "analytic:<source>"'
            )
        return text

    def quantity(self, key: str, positive: bool = False, infinite: bool = False) -> Quantity:
        self.get(key, dict, 'a number with its source: { value = 1.5, basis = "analytic:..." }')
        inner = self._inner(key)
        quantity = Quantity(inner.number("value", positive, infinite), inner.basis("basis"))
        inner.done()
        return quantity

    def optional_quantity(self, key: str, required: bool, positive: bool, infinite: bool) -> Quantity | None:
        self.asked.add(key)
        return self.quantity(key, positive, infinite) if required or key in self.values else None

    def table(self, key: str, required: bool = True) -> Any:
        """The table under `key` as a `TomlTable`, or None."""
        return None if self.get(key, dict, "a table", required) is None else self._inner(key)

    def tables(self, key: str, required: bool = True) -> Iterator[tuple[str, TomlTable]]:
        """Every table in the table under `key`, by name."""
        outer = self.table(key, required)
        for name in outer.values if outer else ():
            yield name, outer.table(name)

    def raw(self) -> dict[str, object]:
        """All keys as they stand."""
        return dict(self.values)

    def _inner(self, key: str) -> TomlTable:
        return TomlTable(self.path, f"{self.name}.{key}" if self.name else key, self.values[key])


@cache
def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except OSError:
        return ()


def _line_of(path: Path, table: str, key: str | None) -> str:
    """ ":<line>" of a key, or of its table: the parser keeps no lines, and an error without one is hard to act on."""
    target = ".".join(filter(None, (table, key)))
    header, header_line = "", ""
    for number, line in enumerate(_lines(path), 1):
        stripped = line.partition("#")[0].strip()
        if stripped.startswith("["):
            header = stripped.strip("[] ").replace('"', "")
            if header == target or target.startswith(f"{header}."):
                header_line = f":{number}"
        elif target.startswith(header):
            # What the header does not name stands on the line: a key, or an inline table and a key in it.
            wanted = target[len(header) :].strip(".").split(".")
            names = [name.strip('"') for name in re.findall(r'[\w."-]+(?=\s*=)', stripped)]
            if names and wanted[0] == names[0] and wanted[-1] in names:
                return f":{number}"
    return header_line
