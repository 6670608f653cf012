"""Device profiles and systems: TOML files that say what hardware can do, each number with its source.

A profile (`configs/devices/*.toml`) is the cost model of a device that may be absent; a system
(`configs/systems/*.toml`) is a set of devices with what connects them. Keys carry their units, and a number is
`{ value = 25e6, basis = "analytic:..." }`.
A profile's device is "model:<file name>"; a system may bring profiles of its own: `profiles = ["my-board.toml"]`, paths
relative to the system's file.
Whatever is unknown, missing or impossible is a `ConfigError` that names file, line, key and the nearest right key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hetrun.device import Basis, DeviceInfo, Link, MemorySpace
from hetrun.errors import ConfigError
from hetrun.ops import FUNCTIONS, KV_FORMAT_BITS, OP_TYPES
from hetrun.tensor import ALL_TYPES
from hetrun.toml_table import Quantity, TomlTable, find, near, shipped

# How far a number may be trusted: what is computed from several is as good as the worst of them.
_BASIS_KINDS = ("measured", "simulated", "analytic")


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

    launch_s: fixed cost of one run of a segment.
    model: the numbers of `hetrun.device.roofline`. watts is what the device draws while it works, idle_watts while it
    waits; what a board draws beside its devices is counted with one of them. `with_idle_power` adds up.
    ops, types, kv_formats: what it accepts: kinds of `hetrun.ops`, tensor types of weights, formats of KV caches.
    functions: of activations.   fused: those of `ops` that it works out on the way from one op of a run to the next:
    they cost `op_s`, and their values meet no memory.
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
    functions: frozenset[str]
    fused: frozenset[str]

    @property
    def basis(self) -> Basis:
        """Basis of a cost computed from this profile: the weakest of its numbers', and the profile's name.

        Power is told apart where it is weaker: it says nothing about the seconds.
        """
        times = _weakest([self.launch_s, *(q for key, q in self.model.items() if key not in _POWER)])
        power = _weakest([q for key, q in self.model.items() if key in _POWER])
        weaker = f", power {power}" if _BASIS_KINDS.index(power) > _BASIS_KINDS.index(times) else ""
        return f"{times}:profile {self.name}{weaker}"


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
    drivers: a table for each driver name, handed to its `probe` as it stands; that of the driver "modelled" holds the
    system's own profiles.
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
        if device and (device.upload or device.download) and all(space.upload is None for space in info.spaces):
            raise ConfigError(
                f"{self.path}: [links.{device.id}]: {info.id} has no memory behind a link, so that nothing is copied",
                remedy="remove these links",
            )
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


def with_idle_power(devices: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    """The devices of one machine, where each that works draws its own watts and the idle_watts of those that wait: one
    works at a time. Devices whose power is unknown stay as they are."""
    idle = {d.id: d.model.get("idle_watts", 0.0) for d in devices}
    result = []
    for device in devices:
        others = sum(watts for other, watts in idle.items() if other != device.id)
        if "watts" not in device.model or not others:
            result.append(device)
            continue
        launch = device.launch
        if launch.joules is not None:
            launch = dataclasses.replace(launch, joules=launch.joules + others * launch.seconds)
        model = {**device.model, "watts": device.model["watts"] + others}
        result.append(dataclasses.replace(device, model=model, launch=launch))
    return result


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The shipped profile of that name, or the profile in that file. ConfigError names what is wrong with it."""
    path = find(name_or_path, "devices", "profile")
    root = TomlTable.read(path)
    ops = root.names("ops", OP_TYPES)
    profile = DeviceProfile(
        name=path.stem,
        description=root.text("description"),
        path=path,
        spaces=tuple(_space(name, table) for name, table in root.tables("memory")),
        launch_s=root.quantity("launch_s"),
        model=_model(root.table("model")),
        ops=ops,
        types=root.names("types", ALL_TYPES),
        kv_formats=root.names("kv_formats", KV_FORMAT_BITS),
        functions=root.names("functions", FUNCTIONS, absent=FUNCTIONS),
        fused=root.names("fused", ops, absent=()),
    )
    if not re.fullmatch(r"[\w.+-]+", profile.name):
        raise ConfigError(
            f"{path}: {profile.name!r} cannot name a device",
            remedy="name the file by letters, digits and . + - _ alone",
        )
    if not profile.spaces:
        root.fail("memory", "a device needs at least one memory", '[memory.host] with "capacity_bytes"')
    root.done()
    return profile


def load_system(name_or_path: str | Path) -> SystemConfig:
    """The shipped system of that name, or the system in that file. ConfigError names what is wrong with it."""
    path = find(name_or_path, "systems", "system")
    root = TomlTable.read(path)
    ids = root.texts("devices")
    drivers = {name: table.raw() for name, table in root.tables("drivers", required=False)}
    profiles = _own_profiles(root, path)
    _check_devices(root, ids, drivers, profiles)
    if profiles:
        drivers["modelled"] = {**drivers.get("modelled", {}), "profiles": [str(p) for p in profiles]}
    links = dict(root.tables("links", required=False))
    for device_id, table in links.items():
        if device_id not in ids:
            table.fail(None, f"links of {device_id!r}, which is no device of this system", near(device_id, ids))
    host = root.table("host", required=False)
    system = SystemConfig(
        name=path.stem,
        description=root.text("description"),
        path=path,
        devices=tuple(_system_device(i, links.get(i)) for i in ids),
        host_capacity=host.quantity("capacity_bytes", positive=True) if host else None,
        drivers=drivers,
    )
    if host:
        host.done()
    root.done()
    return system


def _own_profiles(root: TomlTable, path: Path) -> list[Path]:
    """The profiles that a system names, each read once so that what is wrong with one is said here."""
    if "profiles" not in root.values:
        return []
    found = [path.parent / name for name in root.texts("profiles")]
    for number, profile in enumerate(found):
        if profile.stem in shipped("devices") or profile.stem in (p.stem for p in found[:number]):
            root.fail("profiles", f"a second profile {profile.stem!r}", f"rename {profile.name}")
        load_profile(profile)
    return found


def _check_devices(
    root: TomlTable, ids: Sequence[str], drivers: Mapping[str, Mapping[str, object]], profiles: Sequence[Path]
) -> None:
    """ConfigError for a device that is named twice, or whose profile there is not."""
    # Profiles in the driver's own table are looked for where the program runs, not here.
    elsewhere = "profiles" in drivers.get("modelled", {})
    if elsewhere and profiles:
        root.fail("profiles", "there are profiles in [drivers.modelled], too", "name them in one place")
    known = {f"{_MODELLED}:{name}" for name in (*shipped("devices"), *(p.stem for p in profiles))}
    for number, device_id in enumerate(ids):
        if device_id in ids[:number]:
            root.fail("devices", f"{device_id!r} stands there twice", "name each device once")
        if device_id.startswith(f"{_MODELLED}:") and device_id not in known and not elsewhere:
            name = device_id.removeprefix(f"{_MODELLED}:")
            hint = f'{near(device_id, known)}; or say where it is: profiles = ["{name}.toml"]'
            root.fail("devices", f"no profile {name!r}", hint)


_MODELLED = "model"  # of the ids of modelled devices, "model:<profile>"
_MODEL_KEYS = {"flops_per_s": True, "bytes_per_s": True, "op_s": False, "watts": False, "idle_watts": False}  # required
_POWER = ("watts", "idle_watts")


def _weakest(quantities: Sequence[Quantity]) -> str:
    return max((q.basis.partition(":")[0] for q in quantities), key=_BASIS_KINDS.index, default=_BASIS_KINDS[0])


def _model(table: TomlTable) -> Mapping[str, Quantity]:
    rates = ("flops_per_s", "bytes_per_s")
    found = {
        key: quantity
        for key, required in _MODEL_KEYS.items()
        if (quantity := table.optional_quantity(key, required=required, positive=key in rates, infinite=key in rates))
    }
    table.done()
    return found


def _space(name: str, table: TomlTable) -> SpaceProfile:
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


def _system_device(device_id: str, table: TomlTable | None) -> SystemDevice:
    if table is None:
        return SystemDevice(device_id)
    device = SystemDevice(device_id, *(_link(table.table(key, required=False)) for key in ("upload", "download")))
    table.done()
    return device


def _link(table: TomlTable | None) -> Link | None:
    if table is None:
        return None
    link = Link(table.number("latency_s"), table.number("bytes_per_s", positive=True), table.basis("basis"))
    table.done()
    return link
