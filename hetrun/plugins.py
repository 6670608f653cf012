"""Finds plugins, keeps broken ones apart, and says where each came from."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from hetrun import hookspecs
from hetrun.device import API_VERSION, Cost, DeviceInfo, Driver, Unsupported, Workload
from hetrun.errors import ConfigError, DeviceError
from hetrun.resources import data_dir

if TYPE_CHECKING:
    from hetrun.calibration.table import Calibration

GROUP = "hetrun"


@dataclass(frozen=True)
class Plugin:
    """A plugin that loaded, and its provenance."""

    name: str
    module: str
    origin: metadata.Distribution | None = None

    @property
    def distribution(self) -> str:
        """The installed package it came with, "" where it came with none."""
        return self.origin.name if self.origin else ""

    @property
    def version(self) -> str:
        return self.origin.version if self.origin else ""


@dataclass(frozen=True)
class BrokenPlugin(Plugin):
    """A plugin, or one hook of it, that failed. It stops nobody else.

    error: the last line of the traceback.   detail: the whole traceback.
    """

    error: str = ""
    detail: str = ""


@dataclass(frozen=True)
class FoundDevice:
    """A device and the driver that found it.   calibration: what was measured of it, put in place of its estimates.

    answers: the driver's, by op and workload, kept for who plans one graph again and again; None keeps none.
    """

    driver: Driver
    info: DeviceInfo
    plugin: str
    calibration: Calibration | None = None
    answers: dict[tuple[str, Workload], Cost | Unsupported] | None = field(default=None, compare=False, repr=False)

    def calibrated(self, calibration: Calibration | None) -> FoundDevice:
        """The device as `calibration` has it; as its driver has it where that is None."""
        info = calibration.refine(self.info) if calibration else self.info
        return replace(self, info=info, calibration=calibration)

    def with_stored_calibration(self) -> FoundDevice:
        """The device with what "hetrun calibrate" has stored of it, if anything. A file that cannot be used is warned
        about and left out.
        """
        if self.info.backing != "hardware" or not (data_dir() / "calibration").is_dir():
            return self
        from hetrun.calibration.store import find

        return self.calibrated(find(self.driver, self.info))


def _broken(plugin: Plugin, error: BaseException) -> BrokenPlugin:
    line = traceback.format_exception_only(type(error), error)[-1].strip()
    detail = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return BrokenPlugin(plugin.name, plugin.module, plugin.origin, line, detail)


class Registry:
    """All plugins of this environment. `Registry.load()` imports each once."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self.broken: list[BrokenPlugin] = []

    @classmethod
    def load(cls, entry_points: Iterable[metadata.EntryPoint] | None = None) -> Registry:
        """Imports every plugin of the entry-point group "hetrun" (or those given); failures are kept in `broken`."""
        registry = cls()
        found = metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        for entry_point in sorted(found, key=lambda e: e.name):
            registry.add(Plugin(entry_point.name, entry_point.value, entry_point.dist), entry_point.load)
        return registry

    def add(self, plugin: Plugin, load: Callable[[], object]) -> None:
        """Registers what `load()` returns. A failure of any kind is kept, not raised; Ctrl-C is not a failure."""
        try:
            self._manager.register(load(), plugin.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin that calls sys.exit on import must not end the program
            self.broken.append(_broken(plugin, error))
        else:
            self.plugins.append(plugin)

    def hook_results(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """(plugin name, result) of each implementation, each called apart so that one failure stops nobody else."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            name = implementation.plugin_name
            try:
                wanted = {a: arguments[a] for a in implementation.argnames}
                result = implementation.function(**wanted)
            except Exception as error:
                self._note(name, error)
            else:
                yield name, result

    def drivers(self) -> list[tuple[str, Driver]]:
        """(plugin name, driver) of every plugin whose drivers speak this version of the contract."""
        result: list[tuple[str, Driver]] = []
        for name, drivers in self.hook_results("hetrun_drivers"):
            try:
                for driver in drivers:
                    if driver.api_version != API_VERSION:
                        raise DeviceError(
                            f"driver {driver.name} speaks contract version {driver.api_version}, hetrun {API_VERSION}"
                        )
                    result.append((name, driver))
            except Exception as error:
                self._note(name, error)
        return result

    def devices(
        self, settings: Mapping[str, Mapping[str, object]] | None = None, common: Mapping[str, object] | None = None
    ) -> list[FoundDevice]:
        """Every device that every driver reports.

        settings: a table for each driver name.   common: COMMON_SETTINGS for all of them. ConfigError for a bad one.
        """
        found: list[FoundDevice] = []
        for plugin, driver in self.drivers():
            try:
                infos = list(driver.probe({**(common or {}), **(settings or {}).get(driver.name, {})}))
            except ConfigError:
                raise
            except Exception as error:
                self._note(plugin, error)
                continue
            found += [FoundDevice(driver, info, plugin) for info in infos]
        return found

    def _note(self, name: str, error: Exception) -> None:
        plugin = next((p for p in self.plugins if p.name == name), Plugin(name, name))
        entry = _broken(plugin, error)
        if entry.error not in [b.error for b in self.broken if b.name == name]:
            self.broken.append(entry)


def select_device(found: Sequence[FoundDevice], wanted: str) -> FoundDevice:
    """The device with that id, or the only one (else the first) of a driver with that name ("cpu" for "cpu:0").

    DeviceError with near matches where there is none.
    """
    for device in found:
        if device.info.id == wanted:
            return device
    for device in found:
        if device.info.id.partition(":")[0] == wanted:
            return device
    ids = [d.info.id for d in found]
    near = difflib.get_close_matches(wanted, [*ids, *{i.partition(":")[0] for i in ids}], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise DeviceError(
        f"no device {wanted!r}", remedy=f'{hint}devices here: {", ".join(ids) or "none"}; "hetrun devices" tells more'
    )
