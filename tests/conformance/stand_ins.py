"""Modelled devices that other devices stand in for, as a plugin for the kit."""

from __future__ import annotations

from dataclasses import replace

from hetrun.device import DeviceInfo, Driver
from hetrun.hookspecs import hookimpl
from hetrun.plugins import FoundDevice
from hetrun.reference.driver import ReferenceDriver
from hetrun.run.stand_in import Actor, stand_in
from hetrun_modelled.driver import ModelledDriver


def found(driver: Driver, device_id: str) -> FoundDevice:
    info = next(i for i in driver.probe({}) if i.id == device_id)
    return FoundDevice(driver, info, "test")


def renamed(device: FoundDevice, device_id: str) -> FoundDevice:
    """The same device under another id, its memories with it: the modelled driver has the first."""
    info: DeviceInfo = device.info
    spaces = tuple(replace(s, name=s.name.replace(info.id, device_id)) for s in info.spaces)
    return replace(device, info=replace(info, id=device_id, spaces=spaces))


def stand_in_for(device_id: str, actor: str) -> Driver:
    """A driver of "acted:<profile>-<actor>"."""
    if actor == "cpu":
        from hetrun_cpu.driver import CpuDriver

        acting = found(CpuDriver(), "cpu:0")
    else:
        acting = found(ReferenceDriver(), "reference:0")
    modelled = renamed(found(ModelledDriver(), device_id), f"acted:{device_id.removeprefix('model:')}-{actor}")
    return stand_in(modelled, Actor(acting)).driver


@hookimpl
def hetrun_drivers() -> list[Driver]:
    return [
        stand_in_for("model:cortex-a9", "reference"),
        stand_in_for("model:cortex-a76", "cpu"),
        stand_in_for("model:alveo-u280", "cpu"),
        stand_in_for("model:null", "reference"),
    ]
