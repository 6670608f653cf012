"""A driver without hardware: one device for each shipped profile, "model:<profile>".

The probe's settings may name more profiles; `profiles = ["my-board.toml"]` in a system file becomes such a setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hetrun.config import DeviceProfile, load_profile
from hetrun.device import (
    API_VERSION,
    Cost,
    Device,
    DeviceInfo,
    MemorySpace,
    Segment,
    Unavailable,
    Unsupported,
    Workload,
    check_settings,
    residents,
    roofline,
)
from hetrun.errors import ConfigError, DeviceError
from hetrun.ops import Attention, Op
from hetrun.toml_table import shipped


@dataclass(frozen=True)
class ModelledInfo(DeviceInfo):
    """A device's info that carries its profile, so that `estimate` stays a function of its arguments."""

    profile: DeviceProfile | None = None


@dataclass(frozen=True)
class ModelledProgram:
    """A segment and the memory that its weights and KV would take."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]


class ModelledDriver:
    """Plans for devices that are absent, from their profiles."""

    name = "modelled"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        """A device for each shipped profile, and for each file in config["profiles"]. ConfigError on a bad profile."""
        if config.get("modelled") is False:
            return []
        return [
            *map(_shipped_info, shipped("devices")),
            *(_info(load_profile(path)) for path in _profile_paths(config)),
        ]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        profile = _profile(info)
        reason = next(_refusals(profile, op), None)
        if reason is not None:
            return Unsupported(reason)
        if op.kind in profile.fused:
            seconds, watts = info.model.get("op_s", 0.0), info.model.get("watts")
            joules = None if watts is None else seconds * watts
            return Cost(seconds, profile.basis, joules, residents(op, info.spaces[-1].name))
        return roofline(op, workload, info, profile.basis)

    def compile(self, info: DeviceInfo, segment: Segment) -> ModelledProgram:
        resident: dict[tuple[str, str], int] = {}
        for op in segment.ops:
            resident.update(residents(op, info.spaces[-1].name))
        return ModelledProgram(segment, resident)

    def open(self, info: DeviceInfo) -> Device:
        raise DeviceError(f"{info.id} is modelled from a profile: it can be planned for, not run", remedy=_REMEDY)


_REMEDY = 'plan for it with "hetrun plan"; to generate, a device that "hetrun devices" shows as ok stands in for it'


@cache
def _shipped_info(name: str) -> ModelledInfo:
    return _info(load_profile(name))


def _info(profile: DeviceProfile) -> ModelledInfo:
    device_id = f"model:{profile.name}"
    return ModelledInfo(
        id=device_id,
        description=profile.description,
        backing="modelled",
        spaces=tuple(
            MemorySpace(
                name="host" if s.name == "host" else f"{device_id}/{s.name}",
                capacity_bytes=int(s.capacity_bytes.value),
                alignment_bytes=s.alignment_bytes,
                upload=s.upload,
                download=s.download,
            )
            for s in profile.spaces
        ),
        launch=_launch(profile),
        model={key: quantity.value for key, quantity in profile.model.items()},
        unavailable=Unavailable("modelled from a profile: it can be planned for, not run", _REMEDY),
        profile=profile,
    )


def _launch(profile: DeviceProfile) -> Cost:
    seconds, watts = profile.launch_s.value, profile.model.get("watts")
    return Cost(seconds, profile.basis, joules=None if watts is None else seconds * watts.value)


def _profile(info: DeviceInfo) -> DeviceProfile:
    profile = info.profile if isinstance(info, ModelledInfo) else None
    return profile or load_profile(info.id.partition(":")[2])


def _profile_paths(config: Mapping[str, object]) -> Sequence[Path]:
    check_settings(ModelledDriver.name, config, ("profiles",))
    paths = config.get("profiles", [])
    if not isinstance(paths, Sequence) or isinstance(paths, str) or not all(isinstance(p, (str, Path)) for p in paths):
        raise ConfigError(f"driver modelled: profiles is {paths!r}", remedy="give a list of paths")
    found = [Path(p) for p in paths]
    names = [*shipped("devices"), *(p.stem for p in found)]
    for path in found:
        if names.count(path.stem) > 1:
            raise ConfigError(f"driver modelled: {path}: a second profile {path.stem!r}", remedy="rename the file")
    return found


def _refusals(profile: DeviceProfile, op: Op) -> Iterator[str]:
    if op.kind not in profile.ops:
        yield f"{profile.name} has no {op.kind} (it has {', '.join(sorted(profile.ops))})"
    function = getattr(op, "function", None)
    if function is not None and function not in profile.functions:
        yield f"{profile.name} has no {function} (it has {', '.join(sorted(profile.functions))})"
    for weight in op.weights:
        if weight.type.name not in profile.types:
            yield f"{profile.name} reads no {weight.type} weights (it reads {', '.join(sorted(profile.types))})"
    if isinstance(op, Attention) and op.kv.format not in profile.kv_formats:
        yield f"{profile.name} keeps no KV cache in {op.kv.format} (it has {', '.join(sorted(profile.kv_formats))})"
