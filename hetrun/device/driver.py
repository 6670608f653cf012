"""The half of a plugin that needs no hardware, and what it may offer beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hetrun.device.info import Cost, DeviceInfo, Unsupported
from hetrun.device.run import Device, Program, Segment
from hetrun.ops import Op, Workload

API_VERSION = 1


class Driver(Protocol):
    """One kind of device. Only `open` touches hardware (or starts an emulator)."""

    @property
    def name(self) -> str: ...

    @property
    def api_version(self) -> int: ...

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        """Devices at hand, absent ones too with `unavailable` set. No side effects; absence is reported, not raised.

        config: the driver's table of a system file, and COMMON_SETTINGS. ConfigError for any other key or a bad value.
        """

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        """Time of the op inside a run (the launch is counted apart), or the reason why it cannot run here. Pure."""

    def compile(self, info: DeviceInfo, segment: Segment) -> Program:
        """Pure and deterministic; needs no weights and no hardware."""

    def open(self, info: DeviceInfo) -> Device:
        """DeviceError where the device is unavailable or only modelled."""


@runtime_checkable
class Fusing(Protocol):
    """Optional on a driver: some ops of one run take less together than each by itself."""

    def fuse(self, info: DeviceInfo, segment: Segment, workload: Workload) -> Mapping[str, Cost]:
        """Costs by op of those ops of a run for which `estimate`, which sees an op alone, says too much; of the rest it
        holds. Never more seconds than it says, so that a placement that breaks a pattern up costs no less. Pure.
        """


@dataclass(frozen=True)
class Detail:
    """A line about a device.   name: what it tells, "overlay".   missing: what is wrong with it, and what to do."""

    name: str
    value: str
    missing: str | None = None


@runtime_checkable
class Described(Protocol):
    """Optional on a driver: what `hetrun devices` shows below its table."""

    def details(self, info: DeviceInfo) -> Sequence[Detail]:
        """What there is to tell of a device, present or not; nothing where the table says it all. No side effects."""
