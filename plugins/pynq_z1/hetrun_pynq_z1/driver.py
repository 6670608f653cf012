"""The PYNQ-Z1 driver: finds the board and its emulation, prices matmuls on them, compiles segments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hetrun.device import (
    API_VERSION,
    COMMON_SETTINGS,
    BuildStep,
    Cost,
    DesignPoint,
    Device,
    DeviceInfo,
    MemorySpace,
    Program,
    Segment,
    Unavailable,
    Unsupported,
    Workload,
)
from hetrun.errors import ConfigError, DeviceError
from hetrun.ops import MatMul, Op
from hetrun_pynq_z1 import designs, native, project
from hetrun_pynq_z1.cma import cma_bytes
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.launch import launch_cost
from hetrun_pynq_z1.program import SPACE, compile_segment, refusal, stream_bytes
from hetrun_pynq_z1.pynq_board import TIMEOUT_S, BoardSettings, PynqBoard, absence
from hetrun_pynq_z1.timing import BASIS, Design, activation_seconds, matmul_seconds

BOARD, CSIM = "pynq-z1:0", "pynq-z1:csim"
SETTINGS = ("memory_bytes", "overlay", "clock_mhz", "cma_bytes", "timeout_s")

# analytic: 512 MB of DDR3 less 110 MiB for Linux, the program and the KV cache.
MEMORY_BYTES = 421_527_552

# analytic: what the board's image reserves when its boot arguments say nothing else.
CMA_BYTES = 128 << 20

MOST_HOST_THREADS = 16  # more would find no rows to run in a usual matmul


@dataclass(frozen=True)
class BoardInfo(DeviceInfo):
    """Of the board itself.   settings: what `open` needs to know of the system file."""

    settings: BoardSettings | None = None


class PynqZ1Driver:
    """The board, "pynq-z1:0", and "pynq-z1:csim": the engine's HLS source compiled for this machine, with the board's
    predicted time.

    Settings of the board: overlay (a .bit file, its .hwh beside it), clock_mhz (of the fabric), cma_bytes (contiguous
    memory that it may take; all of the kernel's where absent), timeout_s (of a launch).
    Of csim: memory_bytes (of the board's DDR that weights and values may take), threads (of this machine).
    """

    name = "pynq-z1"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        unknown = sorted(set(config) - set(SETTINGS) - COMMON_SETTINGS)
        if unknown:
            raise ConfigError(
                f"driver {self.name}: unknown setting {unknown[0]!r}", remedy=f"it takes {', '.join(SETTINGS)}"
            )
        memory_bytes = self._bytes(config, "memory_bytes", MEMORY_BYTES)
        problem = native.library_problem()
        unusable = Unavailable(problem.message, problem.remedy or "reinstall hetrun") if problem else None
        clock_hz = 0.0 if unusable else float(definition().numbers["CLOCK_HZ"])
        settings = self._board_settings(config, clock_hz / 1e6 or 1.0)  # of no use without the library
        absent = unusable or absence(settings.overlay)
        cma = self._bytes(config, "cma_bytes", (None if absent else cma_bytes("CmaTotal")) or CMA_BYTES)
        csim = DeviceInfo(
            id=CSIM,
            description="The PYNQ-Z1 matmul engine, its HLS source run on this machine",
            backing="emulated",
            spaces=(MemorySpace(f"{CSIM}/{SPACE}", memory_bytes),),
            launch=launch_cost(),
            model={"clock_hz": clock_hz, "host_threads": float(_host_threads(config))},
            unavailable=unusable,
        )
        board = BoardInfo(
            id=BOARD,
            description=f"The PYNQ-Z1 matmul engine at {settings.clock_mhz:g} MHz"
            + (f", overlay {settings.overlay}" if settings.overlay else ""),
            backing="hardware",
            spaces=(MemorySpace(f"{BOARD}/{SPACE}", cma),),
            launch=launch_cost(),
            model={"clock_hz": settings.clock_mhz * 1e6},
            unavailable=absent,
            settings=settings,
        )
        # "pynq-z1" means the board where there is one.
        return [csim, board] if absent else [board, csim]

    def _board_settings(self, config: Mapping[str, object], clock_mhz: float) -> BoardSettings:
        overlay = config.get("overlay")
        if overlay is not None and not (isinstance(overlay, str) and overlay.endswith(".bit")):
            raise ConfigError(
                f"driver {self.name}: overlay is {overlay!r}", remedy='give the path of a .bit file, "/path/engine.bit"'
            )
        path = None if overlay is None else str(Path(overlay).expanduser().absolute())
        # The bounds are for slips of units: Hz for MHz, ms for s.
        clock_mhz = self._number(config, "clock_mhz", clock_mhz, 500.0)
        return BoardSettings(path, clock_mhz, self._number(config, "timeout_s", TIMEOUT_S, 3600.0))

    def _bytes(self, config: Mapping[str, object], name: str, otherwise: int) -> int:
        value = config.get(name, otherwise)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
            raise ConfigError(f"driver {self.name}: {name} is {value!r}", remedy="give a whole number below 4 GiB")
        return value

    def _number(self, config: Mapping[str, object], name: str, otherwise: float, most: float) -> float:
        value = config.get(name, otherwise)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most:
            raise ConfigError(f"driver {self.name}: {name} is {value!r}", remedy=f"give a number up to {most:g}")
        return float(value)

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        if reason := refusal(op):
            return Unsupported(reason)
        n_tokens, design = workload.rows(op.output.rows), Design.of(info.model)
        resident: dict[tuple[str, str], int] = {}
        if isinstance(op, MatMul):
            seconds = matmul_seconds(op, n_tokens, design)
            resident[info.spaces[0].name, op.weight.name] = stream_bytes(op.weight)
        else:
            # Beside its matmuls, where placement has it: by itself the host works it out, and a run says so.
            seconds = activation_seconds(op.output.width, n_tokens, design)
        watts = info.model.get("watts")
        return Cost(seconds, BASIS, joules=None if watts is None else seconds * watts, resident=resident)

    def compile(self, info: DeviceInfo, segment: Segment) -> Program:
        """DeviceError where an op is one that `estimate` refuses."""
        return compile_segment(segment, info.spaces[0].name)

    def sources(self) -> Mapping[str, str]:
        """The Vitis HLS and Vivado project."""
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
        return designs.design_point(parameters, MEMORY_BYTES, launch_cost())

    def open(self, info: DeviceInfo) -> Device:
        if info.unavailable:
            raise DeviceError(f"{info.id}: {info.unavailable.reason}", remedy=info.unavailable.remedy)
        from hetrun_pynq_z1.board import CsimBoard
        from hetrun_pynq_z1.device import PynqDevice

        if isinstance(info, BoardInfo):
            assert info.settings is not None
            board = PynqBoard(info.id, info.settings, info.spaces[0].capacity_bytes)
            return PynqDevice(info, board, info.settings.timeout_s)
        threads = int(info.model["host_threads"])
        return PynqDevice(info, CsimBoard(info.id, info.spaces[0].capacity_bytes, threads), TIMEOUT_S)


def _host_threads(config: Mapping[str, object]) -> int:
    """Threads of this machine that csim may use: as many as it was given, else a core each."""
    threads = config.get("threads")
    if isinstance(threads, int) and threads >= 1:
        return min(threads, MOST_HOST_THREADS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(cores, MOST_HOST_THREADS)
