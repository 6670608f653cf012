"""The Alveo U280 driver: finds the card and its emulation, prices ops on them, compiles segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hetrun.device import (
    API_VERSION,
    BuildStep,
    Cost,
    DesignPoint,
    Detail,
    Device,
    DeviceInfo,
    Link,
    MemorySpace,
    Program,
    Segment,
    Unavailable,
    Unsupported,
    Workload,
    host_threads,
    threads_problem,
)
from hetrun.errors import DeviceError, HetrunError
from hetrun.ops import Op
from hetrun_alveo_u280 import designs, native, project
from hetrun_alveo_u280.absence import absence
from hetrun_alveo_u280.cost import idle_watts, launch_cost, op_seconds
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.power import watts
from hetrun_alveo_u280.program import DDR, HBM, compile_segment, residents
from hetrun_alveo_u280.refusal import refusal
from hetrun_alveo_u280.settings import DDR_BYTES, Settings, settings_of
from hetrun_alveo_u280.timing import BASIS, Design, header_design

CARD, CSIM = "alveo-u280:0", "alveo-u280:csim"

_PCIE = "measured:xbutil validate of an Alveo on PCIe 3.0 x 16, {} MB/s (AMD XD099); latency an assumption"
UPLOAD = Link(20e-6, 8.5e9, _PCIE.format("8,485"))
DOWNLOAD = Link(20e-6, 12.1e9, _PCIE.format("12,154"))

_BACKINGS: Mapping[str, Literal["hardware", "emulated"]] = {CSIM: "emulated", CARD: "hardware"}

MOST_HOST_THREADS = 32  # of csim: more than channels find nothing to do


@dataclass(frozen=True)
class U280Info(DeviceInfo):
    """settings: what `open` needs to know of the system file."""

    settings: Settings | None = None


class AlveoU280Driver:
    """The card, "alveo-u280:0", and "alveo-u280:csim": the engine's HLS source compiled for this machine, with the
    card's predicted time.

    Settings: `hetrun_alveo_u280.settings`. threads: those of this machine that csim runs on.
    """

    name = "alveo-u280"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        if broken := native.library_problem():
            return _unusable(broken)
        settings = settings_of(self.name, config)
        absent = absence(settings)
        csim = self._info(
            CSIM,
            "The U280 decoder engine, its HLS source run on this machine",
            settings,
            threads_problem(config),
            host_threads(config, MOST_HOST_THREADS),
        )
        xclbin = f", {settings.xclbin}" if settings.xclbin else ""
        card = self._info(CARD, f"The U280 decoder engine{xclbin}", settings, absent, None)
        # "alveo-u280" means the card where there is one.
        return [csim, card] if absent else [card, csim]

    def _info(
        self, device_id: str, description: str, settings: Settings, absent: Unavailable | None, threads: int | None
    ) -> U280Info:
        """threads: of this machine, for csim."""
        n = definition().numbers
        hbm_bytes = n["CHANNELS"] * settings.channel_bytes
        launch, of_board = launch_cost(), watts(header_design(), "board")
        return U280Info(
            id=device_id,
            description=f"{description}, {n['CLOCK_HZ'] / 1e6:g} MHz",
            backing="hardware" if threads is None else "emulated",
            spaces=(
                MemorySpace(f"{device_id}/{DDR}", settings.ddr_bytes, upload=UPLOAD, download=DOWNLOAD),
                MemorySpace(f"{device_id}/{HBM}", hbm_bytes, upload=UPLOAD, download=DOWNLOAD),
            ),
            launch=replace(launch, joules=launch.seconds * of_board),
            model={"clock_hz": float(n["CLOCK_HZ"]), "watts": of_board, "idle_watts": idle_watts()}
            | ({} if threads is None else {"host_threads": float(threads)}),
            unavailable=absent,
            settings=settings,
        )

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        if broken := native.library_problem():
            return Unsupported(broken.message)
        if reason := refusal(op):
            return Unsupported(reason)
        seconds = op_seconds(op, workload, Design.of(info.model))
        return Cost(seconds, BASIS, seconds * info.model["watts"], residents(op, info.id))

    def compile(self, info: DeviceInfo, segment: Segment) -> Program:
        """DeviceError where an op is one that `estimate` refuses."""
        return compile_segment(segment, info.id)

    def details(self, info: DeviceInfo) -> Sequence[Detail]:
        """Of the card: runtime, platform, xclbin, memories, sensors."""
        if info.id != CARD or not isinstance(info, U280Info) or info.settings is None:
            return ()
        from hetrun_alveo_u280.details import details

        return details(info.id, info.settings)

    def sources(self) -> Mapping[str, str]:
        """The Vitis project."""
        return project.sources()

    def steps(self) -> Sequence[BuildStep]:
        return project.steps()

    @property
    def host_profile(self) -> str:
        return designs.HOST_PROFILE

    def axes(self) -> Mapping[str, Sequence[int]]:
        return designs.AXES

    def design(self, parameters: Mapping[str, int]) -> DesignPoint:
        """The engine with these parameters, for planning only."""
        return designs.design_point(parameters)

    def open(self, info: DeviceInfo) -> Device:
        if info.unavailable:
            raise DeviceError(f"{info.id}: {info.unavailable.reason}", remedy=info.unavailable.remedy)
        from hetrun_alveo_u280.card import Card, CsimCard
        from hetrun_alveo_u280.device import U280Device

        assert isinstance(info, U280Info) and info.settings is not None
        settings = info.settings
        card: Card
        if info.id == CSIM:
            threads = int(info.model["host_threads"])
            card = CsimCard(info.id, settings.channel_bytes, settings.ddr_bytes, threads)
        else:
            from hetrun_alveo_u280.xrt import XrtCard

            card = XrtCard(info.id, settings)
        try:
            return U280Device(info, card)
        except HetrunError:
            card.close()
            raise


def _unusable(broken: HetrunError) -> list[DeviceInfo]:
    """The devices of an installation without the native library, or without the engine's header."""
    absent = Unavailable(broken.message, broken.remedy or "reinstall hetrun")
    return [
        DeviceInfo(
            device_id,
            "The U280 decoder engine",
            backing,
            (MemorySpace(f"{device_id}/{DDR}", DDR_BYTES, upload=UPLOAD, download=DOWNLOAD),),
            launch_cost(),
            {},
            absent,
        )
        for device_id, backing in _BACKINGS.items()
    ]
