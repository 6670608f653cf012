"""The PYNQ-Z1 driver: finds the board and its emulation, prices matmuls on them, compiles segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetrun.device import (
    API_VERSION,
    BuildStep,
    Cost,
    DesignPoint,
    Detail,
    Device,
    DeviceInfo,
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
from hetrun.ops import GatedActivation, MatMul, Op
from hetrun_pynq_z1 import designs, native, project
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.launch import launch_cost
from hetrun_pynq_z1.program import HOST, SPACE, compile_segment, launches_of, refusal, stream_bytes
from hetrun_pynq_z1.pynq_board import absence, open_board
from hetrun_pynq_z1.settings import TIMEOUT_S, BoardSettings, settings_of
from hetrun_pynq_z1.timing import (
    BASIS,
    HOST_BASIS,
    STREAMED_BASIS,
    Design,
    activation_seconds,
    fused_seconds,
    matmul_seconds,
    streamed_seconds,
)

BOARD, STREAM, CSIM = "pynq-z1:0", "pynq-z1:stream", "pynq-z1:csim"

# analytic: 512 MB of DDR3 less 110 MiB for Linux, the program and the KV cache.
MEMORY_BYTES = 421_527_552

MOST_HOST_THREADS = 16  # of csim: more would find no rows to run in a usual matmul


@dataclass(frozen=True)
class BoardInfo(DeviceInfo):
    """Of the board itself.   settings: what `open` needs to know of the system file.

    staging_bytes: 0 where weights are resident, else what they pass through.
    """

    settings: BoardSettings | None = None
    staging_bytes: int = 0


class PynqZ1Driver:
    """The board, "pynq-z1:0", and "pynq-z1:csim": the engine's HLS source compiled for this machine, with the board's
    predicted time. With `staging_bytes` the board is there a second time, as "pynq-z1:stream": weights of ops placed
    there stay in the host's memory and are copied for every step.

    Settings: `hetrun_pynq_z1.settings`. threads: those of this machine that csim runs on.
    """

    name = "pynq-z1"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        broken = native.library_problem()
        unusable = Unavailable(broken.message, broken.remedy or "reinstall hetrun") if broken else None
        default_mhz = None if unusable else definition().numbers["CLOCK_HZ"] / 1e6
        settings = settings_of(self.name, config, default_mhz)
        board = settings.board
        absent = unusable or absence(board)
        csim = DeviceInfo(
            id=CSIM,
            description="The PYNQ-Z1 matmul engine, its HLS source run on this machine",
            backing="emulated",
            spaces=(MemorySpace(f"{CSIM}/{SPACE}", settings.memory_bytes or MEMORY_BYTES),),
            launch=launch_cost(),
            model={"host_threads": float(host_threads(config, MOST_HOST_THREADS))}
            | ({} if default_mhz is None else {"clock_hz": default_mhz * 1e6}),
            unavailable=unusable or threads_problem(config),
        )
        boards = [self._board_info(BOARD, board, absent, 0)]
        if board.staging_bytes:
            boards.append(self._board_info(STREAM, board, absent, board.staging_bytes))
        # "pynq-z1" means the board where there is one.
        return [csim, *boards] if absent else [*boards, csim]

    def _board_info(
        self, device_id: str, settings: BoardSettings, absent: Unavailable | None, staging_bytes: int
    ) -> BoardInfo:
        clock = f" at {settings.clock_mhz:g} MHz" if settings.clock_mhz else ""
        overlay = f", overlay {settings.overlay}" if settings.overlay else ""
        streams = ", weights copied for every step" if staging_bytes else ""
        return BoardInfo(
            id=device_id,
            description=f"The PYNQ-Z1 matmul engine{clock}{overlay}{streams}",
            backing="hardware",
            spaces=(
                MemorySpace(f"{device_id}/{SPACE}", settings.weight_bytes),
                MemorySpace(HOST, settings.host_bytes),
            ),
            launch=launch_cost(),
            model={"clock_hz": settings.clock_mhz * 1e6} if settings.clock_mhz else {},
            unavailable=absent,
            settings=settings,
            staging_bytes=staging_bytes,
        )

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        if broken := native.library_problem():
            return Unsupported(broken.message)
        if reason := refusal(op):
            return Unsupported(reason)
        assert isinstance(op, (MatMul, GatedActivation))
        n_tokens, design = workload.rows(op.output.rows), Design.of(info.model)
        staging_bytes = info.staging_bytes if isinstance(info, BoardInfo) else 0
        basis, resident = BASIS, {}
        if isinstance(op, GatedActivation):
            if staging_bytes:
                return Unsupported("rows of streamed weights come in pieces, so that gate and up do not meet")
            seconds, basis = activation_seconds(op, n_tokens), HOST_BASIS
        elif staging_bytes:
            seconds, basis = streamed_seconds(op, n_tokens, staging_bytes, design), STREAMED_BASIS
            resident = {(HOST, op.weight.name): stream_bytes(op.weight)}
        else:
            seconds = matmul_seconds(op, n_tokens, design)
            resident = {(info.spaces[0].name, op.weight.name): stream_bytes(op.weight)}
        return _cost(info, seconds, basis, resident)

    def fuse(self, info: DeviceInfo, segment: Segment, workload: Workload) -> Mapping[str, Cost]:
        """Gate, up and the activation between them, where the engine joins them."""
        design, space, costs = Design.of(info.model), info.spaces[0].name, {}
        for pair in launches_of(segment).fused.values():
            seconds = fused_seconds(pair, workload.rows(pair.op.output.rows), design)
            for op in (pair.gate, pair.up, pair.op):
                resident = {(space, weight.name): stream_bytes(weight) for weight in op.weights}
                costs[op.name] = _cost(info, seconds[op.name], BASIS, resident)
        return costs

    def compile(self, info: DeviceInfo, segment: Segment) -> Program:
        """DeviceError where an op is one that `estimate` refuses."""
        streams = isinstance(info, BoardInfo) and info.staging_bytes
        return compile_segment(segment, HOST if streams else info.spaces[0].name)

    def details(self, info: DeviceInfo) -> Sequence[Detail]:
        """Of the board: overlay, engine, memories, permissions."""
        if not isinstance(info, BoardInfo) or info.settings is None:
            return ()
        from hetrun_pynq_z1.details import details

        return details(info.settings)

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
            board = open_board(info.id, info.settings)
            try:
                return PynqDevice(info, board, info.settings.timeout_s, info.staging_bytes)
            except HetrunError:
                board.close()
                raise
        threads = int(info.model["host_threads"])
        return PynqDevice(info, CsimBoard(info.id, info.spaces[0].capacity_bytes, threads), TIMEOUT_S)


def _cost(info: DeviceInfo, seconds: float, basis: str, resident: Mapping[tuple[str, str], int]) -> Cost:
    watts = info.model.get("watts")
    return Cost(seconds, basis, joules=None if watts is None else seconds * watts, resident=resident)
