"""The PYNQ-Z1 driver: finds the board and its emulation, prices matmuls on them, compiles segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from hetrun_pynq_z1 import designs, project
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.program import SPACE, compile_segment, refusal, stream_bytes
from hetrun_pynq_z1.timing import BASIS, Design, matmul_seconds

CSIM = "pynq-z1:csim"
SETTINGS = ("memory_bytes",)

# analytic: 512 MB of DDR3 less 110 MiB for Linux, the program and the KV cache.
MEMORY_BYTES = 421_527_552
# analytic: a register write and a wait from C, with cache maintenance of the activations.
LAUNCH_S = 25e-6
LAUNCH_BASIS = "analytic:a register write, a wait and cache maintenance from C"


class PynqZ1Driver:
    """One device, "pynq-z1:csim": the engine's HLS source compiled for this machine, with the board's predicted time.

    Settings: memory_bytes (of the board's DDR that weights and values may take).
    """

    name = "pynq-z1"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        from hetrun_pynq_z1 import native

        unknown = sorted(set(config) - set(SETTINGS) - COMMON_SETTINGS)
        if unknown:
            raise ConfigError(
                f"driver {self.name}: unknown setting {unknown[0]!r}", remedy=f"it takes {', '.join(SETTINGS)}"
            )
        memory_bytes = config.get("memory_bytes", MEMORY_BYTES)
        if not isinstance(memory_bytes, int) or isinstance(memory_bytes, bool) or not 0 < memory_bytes < 1 << 32:
            raise ConfigError(
                f"driver {self.name}: memory_bytes is {memory_bytes!r}", remedy="give a whole number below 4 GiB"
            )
        problem = native.library_problem()
        unavailable = Unavailable(problem.message, problem.remedy or "reinstall hetrun") if problem else None
        numbers = {} if problem else definition().numbers
        return [
            DeviceInfo(
                id=CSIM,
                description="The PYNQ-Z1 matmul engine, its HLS source run on this machine",
                backing="emulated",
                spaces=(MemorySpace(f"{CSIM}/{SPACE}", memory_bytes),),
                launch=Cost(LAUNCH_S, LAUNCH_BASIS),
                model={"clock_hz": float(numbers.get("CLOCK_HZ", 0))},
                unavailable=unavailable,
            )
        ]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        reason = refusal(op)
        if reason or not isinstance(op, MatMul):
            return Unsupported(str(reason))
        resident = {(info.spaces[0].name, op.weight.name): stream_bytes(op.weight)}
        seconds = matmul_seconds(op, workload.rows(op.output.rows), Design.of(info.model))
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
        return designs.design_point(parameters, MEMORY_BYTES, Cost(LAUNCH_S, LAUNCH_BASIS))

    def open(self, info: DeviceInfo) -> Device:
        if info.unavailable:
            raise DeviceError(f"{info.id}: {info.unavailable.reason}", remedy=info.unavailable.remedy)
        from hetrun_pynq_z1.board import CsimBoard
        from hetrun_pynq_z1.device import PynqDevice

        return PynqDevice(info, CsimBoard(info.id, info.spaces[0].capacity_bytes))
