"""Optional on a driver: the project that its hardware is made of, and the designs that could be."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hetrun.device.info import Basis, DeviceInfo
from hetrun.errors import UsageError
from hetrun.resources import resource_path

_SLOT = re.compile(r"@(\w+)@")


@dataclass(frozen=True)
class BuildStep:
    """One run of a tool in the project's folder.

    command: words, the tool first.   makes: the file, relative to the folder, without which the step has failed.
    """

    command: tuple[str, ...]
    makes: str


@runtime_checkable
class HardwareSources(Protocol):
    """Optional on a driver: the project that `hetrun build` writes and makes hardware from."""

    def sources(self) -> Mapping[str, str]:
        """File name, relative to the project's folder -> text."""

    def steps(self) -> Sequence[BuildStep]:
        """What makes hardware of them, in order."""


def project_files(header: str, scripts: str, slots: Mapping[str, str]) -> Mapping[str, str]:
    """`HardwareSources.sources` of an engine whose HLS sources ship with its plugin: file -> text.

    header: the engine's, as `resource_path` takes it; all C++ beside it, and the folder "fabric" next to its own, is
    the project's.   scripts: the folder next to its own whose files have a value for each @NAME@ (KeyError for a name
    without one).   HetrunError where hetrun was installed without them.
    """
    folder = resource_path(header).parent
    parts = (folder, folder.with_name("fabric"))
    files = {f"{part.name}/{p.name}": p.read_text() for part in parts for p in sorted(part.glob("*.[hc]*"))}
    for path in sorted(folder.with_name(scripts).iterdir()):
        files[path.name] = _SLOT.sub(lambda slot: slots[slot.group(1)], path.read_text())
    return files


@dataclass(frozen=True)
class Resource:
    """A kind of resource that a design takes of a part.   basis: of `used`, as costs have it."""

    used: float
    capacity: float
    basis: Basis

    @property
    def share(self) -> float:
        return self.used / self.capacity


@dataclass(frozen=True)
class DesignPoint:
    """A design that could be built.

    info: the device that it would be, for the driver's own `estimate`; its model has "watts", the whole system's power
    while the device works, so that joules of a plan are those of the system.   fits: within what the driver fills.
    pass_tokens: rows that share a pass over the weights, which is what a step of prefill is given.
    """

    parameters: Mapping[str, int]
    info: DeviceInfo
    resources: Mapping[str, Resource]
    fits: bool
    pass_tokens: int


@runtime_checkable
class DesignSpace(Protocol):
    """Optional on a driver: the designs that `hetrun explore` sweeps."""

    @property
    def host_profile(self) -> str:
        """The device beside it, an id such as "model:cortex-a9"."""

    def axes(self) -> Mapping[str, Sequence[int]]:
        """Values of each parameter that a sweep takes where it is told no others."""

    def design(self, parameters: Mapping[str, int]) -> DesignPoint:
        """The point with a value for each axis. UsageError for one that cannot be."""


def check_parameters(
    driver: str, parameters: Mapping[str, int], allowed: Mapping[str, tuple[Collection[int], str]]
) -> None:
    """UsageError for a parameter of a design that is missing, unknown or cannot be.   allowed: values, and in words."""
    if parameters.keys() != allowed.keys():
        name = next(n for n in (*parameters, *allowed) if n not in parameters or n not in allowed)
        raise UsageError(f"{driver}: parameter {name!r}", remedy=f"give {', '.join(allowed)}, all of them")
    for name, value in parameters.items():
        values, words = allowed[name]
        if value not in values:
            raise UsageError(f"{driver}: {name} of {value}", remedy=f"it may be {words}")
