"""Device profiles and systems: TOML files that say what hardware can do, each number with its source.

A profile (`configs/devices/*.toml`) is the cost model of a device that may be absent; a system
(`configs/systems/*.toml`) is a set of devices with what connects them. Keys carry their units, and a number is
`{ value = 25e6, basis = "analytic:..." }`.
Whatever is unknown, missing or impossible is a `ConfigError` that names file, line, key and the nearest right key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hetrun.device import Basis, DeviceInfo, Link, MemorySpace
from hetrun.errors import ConfigError
from hetrun.ops import KV_FORMAT_BITS, OP_TYPES
from hetrun.resources import resource_path
from hetrun.tensor import TENSOR_TYPES

_BASIS = re.compile(r"(measured|simulated|analytic):\s*\S")
# How far a number may be trusted: what is computed from several is as good as the worst of them.
_BASIS_KINDS = ("measured", "simulated", "analytic")
_UNIT_HINT = "mind the unit in the key's name"


@dataclass(frozen=True)
class Quantity:
    """A number and where it comes from."""

    value: float
    basis: Basis


@dataclass(frozen=True)
class SpaceProfile:
    """Memory of a modelled device. name: "host", or a name that becomes "<device id>/<name>".

    upload, download: None for both means that the host addresses the space.
    """

    name: str
    capacity_bytes: Quantity
    alignment_bytes: int
    upload: Link | None
    download: Link | None


@dataclass(frozen=True)
class DeviceProfile:
    """What a device can do and how fast, without the device.

    launch_s: fixed cost of one run of a segment.   model: the numbers of `hetrun.device.roofline`.
    ops, types, kv_formats: what it accepts: kinds of `hetrun.ops`, tensor types of weights, formats of KV caches.
    """

    name: str
    description: str
    path: Path
    spaces: tuple[SpaceProfile, ...]
    launch_s: Quantity
    model: Mapping[str, Quantity]
    ops: frozenset[str]
    types: frozenset[str]
    kv_formats: frozenset[str]

    @property
    def basis(self) -> Basis:
        """Basis of a cost computed from this profile: the weakest of its numbers', and the profile's name."""
        kinds = {q.basis.partition(":")[0] for q in (self.launch_s, *self.model.values())}
        return f"{max(kinds, key=_BASIS_KINDS.index)}:profile {self.name}"


@dataclass(frozen=True)
class SystemDevice:
    """A device of a system. id: a device's id or a driver's name, as `--device` takes it.

    upload, download: links of this system to the device's own memory, instead of the device's; None leaves them.
    """

    id: str
    upload: Link | None = None
    download: Link | None = None


@dataclass(frozen=True)
class SystemConfig:
    """A set of devices, what connects them, and settings for their drivers.

    host_capacity: memory of the space "host", shared by all devices that use it; None leaves what the devices report.
    drivers: a table for each driver name, handed to its `probe` as it stands.
    """

    name: str
    description: str
    path: Path
    devices: tuple[SystemDevice, ...]
    host_capacity: Quantity | None = None
    drivers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def refine(self, info: DeviceInfo) -> DeviceInfo:
        """`info` with the host memory and the links of this system."""
        device = next((d for d in self.devices if d.id in (info.id, info.id.partition(":")[0])), None)
        return dataclasses.replace(info, spaces=tuple(self._refine_space(space, device) for space in info.spaces))

    def _refine_space(self, space: MemorySpace, device: SystemDevice | None) -> MemorySpace:
        if space.name == "host":
            if self.host_capacity is None:
                return space
            return dataclasses.replace(space, capacity_bytes=int(self.host_capacity.value))
        if device is None or (space.upload is None and space.download is None):
            return space
        return dataclasses.replace(
            space, upload=device.upload or space.upload, download=device.download or space.download
        )


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The shipped profile of that name, or the profile in that file. ConfigError names what is wrong with it."""
    path = _find(name_or_path, "devices", "profile")
    root = _Table.read(path)
    profile = DeviceProfile(
        name=path.stem,
        description=root.text("description"),
        path=path,
        spaces=tuple(_space(name, table) for name, table in root.tables("memory")),
        launch_s=root.quantity("launch_s"),
        model=_model(root.table("model")),
        ops=root.names("ops", OP_TYPES),
        types=root.names("types", TENSOR_TYPES),
        kv_formats=root.names("kv_formats", KV_FORMAT_BITS),
    )
    if not profile.spaces:
        root.fail("memory", "a device needs at least one memory", '[memory.host] with "capacity_bytes"')
    root.done()
    return profile


def load_system(name_or_path: str | Path) -> SystemConfig:
    """The shipped system of that name, or the system in that file. ConfigError names what is wrong with it."""
    path = _find(name_or_path, "systems", "system")
    root = _Table.read(path)
    ids = root.texts("devices")
    links = dict(root.tables("links", required=False))
    for device_id, table in links.items():
        if device_id not in ids:
            table.fail(None, f"links of {device_id!r}, which is no device of this system", _near(device_id, ids))
    host = root.table("host", required=False)
    system = SystemConfig(
        name=path.stem,
        description=root.text("description"),
        path=path,
        devices=tuple(_system_device(i, links.get(i)) for i in ids),
        host_capacity=host.quantity("capacity_bytes", positive=True) if host else None,
        drivers={name: table.raw() for name, table in root.tables("drivers", required=False)},
    )
    if host:
        host.done()
    root.done()
    return system


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


def _find(name_or_path: str | Path, kind: str, noun: str) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return Path(name_or_path)
    names = shipped(kind)
    if text not in names:
        hint = _near(text, names)
        raise ConfigError(f"no {noun} {text!r}", remedy=f"{hint}; or give the path of a .toml file")
    return resource_path(f"hetrun/configs/{kind}") / f"{text}.toml"


def _near(text: str, known: Any) -> str:
    near = difflib.get_close_matches(text, sorted(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"


_MODEL_KEYS = {"flops_per_s": True, "bytes_per_s": True, "op_s": False, "watts": False}  # key -> required


def _model(table: _Table) -> Mapping[str, Quantity]:
    rates = ("flops_per_s", "bytes_per_s")
    found = {
        key: quantity
        for key, required in _MODEL_KEYS.items()
        if (quantity := table.optional_quantity(key, required=required, positive=key in rates, infinite=key in rates))
    }
    table.done()
    return found


def _space(name: str, table: _Table) -> SpaceProfile:
    upload, download = (_link(table.table(key, required=False)) for key in ("upload", "download"))
    if (upload is None) != (download is None):
        table.fail(None, "upload and download go together", "give both, or neither where the host addresses the memory")
    if name == "host" and upload is not None:
        table.fail("upload", "the host's own memory has no links", "remove upload and download")
    alignment = table.integer("alignment_bytes", 64)
    if alignment & (alignment - 1):
        table.fail("alignment_bytes", f"{alignment} is no power of two", "for example 64")
    space = SpaceProfile(name, table.quantity("capacity_bytes", positive=True), alignment, upload, download)
    table.done()
    return space


def _system_device(device_id: str, table: _Table | None) -> SystemDevice:
    if table is None:
        return SystemDevice(device_id)
    device = SystemDevice(device_id, *(_link(table.table(key, required=False)) for key in ("upload", "download")))
    table.done()
    return device


def _link(table: _Table | None) -> Link | None:
    if table is None:
        return None
    link = Link(table.number("latency_s"), table.number("bytes_per_s", positive=True), table.basis("basis"))
    table.done()
    return link


@dataclass
class _Table:
    """A table being read: remembers which keys were asked for, so that the rest is unknown."""

    path: Path
    name: str
    values: Mapping[str, Any]
    asked: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> _Table:
        return cls(path, "", read_toml(path))

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
                self.fail(key, "unknown key", _near(key, self.asked))

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

    def names(self, key: str, known: Any) -> frozenset[str]:
        """A list of names out of `known`; ["all"] is every one of them."""
        names = self.texts(key)
        if names == ("all",):
            return frozenset(known)
        for name in names:
            if name not in known:
                self.fail(key, f"unknown {name!r}", _near(name, known))
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
        """The table under `key` as a `_Table`, or None."""
        return None if self.get(key, dict, "a table", required) is None else self._inner(key)

    def tables(self, key: str, required: bool = True) -> Iterator[tuple[str, _Table]]:
        """Every table in the table under `key`, by name."""
        outer = self.table(key, required)
        for name in outer.values if outer else ():
            yield name, outer.table(name)

    def raw(self) -> dict[str, object]:
        """All keys as they stand."""
        return dict(self.values)

    def _inner(self, key: str) -> _Table:
        return _Table(self.path, f"{self.name}.{key}" if self.name else key, self.values[key])


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
