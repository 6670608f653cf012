"""Calibrations on disk: one file a device, in the user's data folder, found again by the device's fingerprint."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hetrun import __version__
from hetrun.calibration.table import Calibration, Check, Levels, LinkTimes, Observation, Speeds
from hetrun.device import DeviceInfo, Driver
from hetrun.errors import ConfigError
from hetrun.resources import data_dir
from hetrun.tensor import TENSOR_TYPES

FORMAT = 2


def fingerprint(driver: Driver, info: DeviceInfo) -> str:
    """Equal for devices whose measurements hold for each other.

    What changes a device's speed (threads, instruction set, clock) stands in its description, by the contract; the
    host's processor is added, since one home may serve several machines.
    """
    text = repr((driver.name, info.id, info.description, info.backing, [s.name for s in info.spaces], _processor()))
    return f"{zlib.crc32(text.encode()):08x}{zlib.crc32(text[::-1].encode()):08x}"


def path_of(driver: Driver, info: DeviceInfo) -> Path:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in info.id)
    return data_dir() / "calibration" / f"{safe}-{fingerprint(driver, info)}.json"


def find(driver: Driver, info: DeviceInfo) -> Calibration | None:
    """The calibration of a device, or None. One that cannot be used is left out, after a warning that says why."""
    try:
        return read(driver, info)
    except ConfigError as error:
        warnings.warn(f"{error.message}; {info.id} is planned by the driver's own estimates", stacklevel=2)
        return None


def read(driver: Driver, info: DeviceInfo) -> Calibration | None:
    """The calibration of a device, or None where there is none. ConfigError where its file cannot be used."""
    path = path_of(driver, info)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise _unusable(path, str(reason)) from error
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise _unusable(path, f"format {data['format']}, this hetrun has {FORMAT}")
        found = _calibration(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unusable(path, f"not a calibration ({type(error).__name__}: {error})") from error
    if found.fingerprint != fingerprint(driver, info):
        raise _unusable(path, f"of another device or machine ({found.description})")
    if found.version != __version__:
        raise _unusable(path, f"made by hetrun {found.version}, this is {__version__}")
    return found


def write(calibration: Calibration, path: Path) -> None:
    """Writes whole or not at all. ConfigError where the folder cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(_record(calibration), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: the calibration cannot be written: {error.strerror}",
            remedy="set HETRUN_DATA to a folder of your own",
        ) from error


def remove(driver: Driver, info: DeviceInfo) -> bool:
    """Whether there was a calibration of the device, usable or not. ConfigError where it cannot be removed."""
    path = path_of(driver, info)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{path}: cannot be removed: {error.strerror}", remedy="remove it by hand") from error
    return True


def _unusable(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path}: {reason}", remedy='measure anew with "hetrun calibrate", or remove the file')


def _processor() -> str:
    """The host's processor as the system names it, and the number of processors."""
    name = os.uname().machine if hasattr(os, "uname") else ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                name = value.strip()
                break
    return f"{name} x {os.cpu_count()}"


def _record(calibration: Calibration) -> dict[str, Any]:
    plain = {
        name: getattr(calibration, name)
        for name in ("device", "fingerprint", "description", "version", "date", "launch_s", "others")
    }
    return {
        "format": FORMAT,
        **plain,
        "prices": {str(n): dict(prices) for n, prices in calibration.prices.items()},
        "speeds": vars(calibration.speeds),
        "ratios": dict(calibration.ratios),
        "alike": dict(calibration.alike),
        "links": {name: vars(times) for name, times in calibration.links.items()},
        "checks": [vars(c) for c in calibration.checks],
        "observations": [{**vars(o), "terms": dict(o.terms), "kinds": dict(o.kinds)} for o in calibration.observations],
    }


def _calibration(data: Mapping[str, Any]) -> Calibration:
    return Calibration(
        device=str(data["device"]),
        fingerprint=str(data["fingerprint"]),
        description=str(data["description"]),
        version=str(data["version"]),
        date=str(data["date"]),
        launch_s=None if data["launch_s"] is None else _number(data["launch_s"]),
        others=None if data["others"] is None else _number(data["others"]),
        speeds=Speeds(**_numbers(data["speeds"])),
        prices={int(n): {str(k): _levels(v) for k, v in prices.items()} for n, prices in data["prices"].items()},
        ratios=_numbers(data["ratios"]),
        alike={_tensor_type(a): _tensor_type(b) for a, b in data["alike"].items()},
        links={str(name): _links(times) for name, times in data["links"].items()},
        checks=tuple(_check(c) for c in data["checks"]),
        observations=tuple(_observation(o) for o in data["observations"]),
    )


def _tensor_type(name: Any) -> str:
    if name not in TENSOR_TYPES:
        raise ValueError(f"{name!r} is no tensor type")
    return str(name)


def _levels(data: Any) -> Levels:
    levels = tuple((_number(footprint), _number(seconds)) for footprint, seconds in data)
    footprints = [footprint for footprint, _ in levels]
    if not levels or footprints != sorted(set(footprints)) or (len(levels) > 1 and footprints[0] <= 0):
        raise ValueError(f"prices {data!r:.60}")
    return levels


def _links(data: Mapping[str, Any]) -> LinkTimes:
    (up_s, up_rate), (down_s, down_rate) = (map(_number, data[way]) for way in ("upload", "download"))
    if min(up_rate, down_rate) <= 0:
        raise ValueError(f"link {data!r:.60}")
    return LinkTimes((up_s, up_rate), (down_s, down_rate))


def _check(data: Mapping[str, Any]) -> Check:
    return Check(str(data["what"]), *(_number(data[k]) for k in ("measured_s", "before_s", "after_s")))


def _observation(data: Mapping[str, Any]) -> Observation:
    found = Observation(**data)
    return replace(
        found,
        terms=_numbers(found.terms),
        kinds=_numbers(found.kinds),
        seconds=_number(found.seconds),
        estimate_s=_number(found.estimate_s),
        probe_s=_number(found.probe_s),
    )


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _number(value) for name, value in data.items()}


def _number(value: Any) -> float:
    """A price or time: finite and not negative, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no time or price")
    return float(value)
