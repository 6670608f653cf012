"""Where weights are: in parts, in no memory of the engine, and what that costs. No board and no pynq."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import engine_order

from hetrun.api import choose_devices
from hetrun.config import SystemConfig, load_system
from hetrun.device import Batch, Bindings, Cost, DeviceInfo, Segment, Unsupported, Workload
from hetrun.errors import AllocationError, DeviceError
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.model.shape import load_shape
from hetrun.ops import GatedActivation, MatMul, Op, Value
from hetrun.plan.place import Request, Task
from hetrun.plan.plan import Plan
from hetrun.plugins import Registry
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.board import Block, CsimBoard
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.device import PynqDevice
from hetrun_pynq_z1.driver import PynqZ1Driver
from hetrun_pynq_z1.program import stream_bytes
from hetrun_pynq_z1.timing import COPY_BYTES_PER_S, START_S, Design, matmul_cycles, streamed_seconds


class CrampedBoard(CsimBoard):
    """Memory for weights comes in small pieces, and now and then in larger ones; none is next to another."""

    def __init__(self, largest: Iterator[int]) -> None:
        super().__init__("pynq-z1:csim", 64 << 20)
        self._largest = largest
        self.pieces: list[int] = []

    def allocate_weights(self, nbytes: int) -> Block:
        most = next(self._largest)
        if nbytes > most:
            raise AllocationError(f"{nbytes} bytes are more than {most}")
        self.pieces.append(nbytes)
        self.allocate(64)
        return self.allocate(nbytes)


def csim() -> DeviceInfo:
    return next(info for info in PynqZ1Driver().probe({}) if info.id == "pynq-z1:csim")


def multiply(
    board: CsimBoard, ops: tuple[Op, ...], out: Value, blocks: dict[str, np.ndarray], x: np.ndarray, **options: int
) -> np.ndarray:
    device = PynqDevice(csim(), board, 10.0, **options)
    try:
        n = len(x)
        value = Value("x", x.shape[1])
        segment = Segment("s", ops, (value,), (out,), n, 1)
        buffers = {v.name: device.alloc(segment.value_bytes(v)) for v in (value, out)}
        buffers["x"].write(memoryview(np.ascontiguousarray(x)).cast("B"))
        weights = {name: memoryview(b.tobytes()) for name, b in blocks.items()}
        executable = device.load(PynqZ1Driver().compile(csim(), segment), weights, Bindings(buffers, {}))
        executable.run(Batch.of([0] * n, range(n), [0] * n, []))
        (event,) = device.synchronize()
        y = np.empty((n, out.width), np.float32)
        buffers[out.name].read(memoryview(y).cast("B"))
        assert event.counters["copied_bytes"] == (
            sum(stream_bytes(op.weight) for op in ops if isinstance(op, MatMul)) if options else 0
        )
        return y
    finally:
        device.close()


def matmul(name: str, quant: str, rows: int, columns: int) -> tuple[MatMul, np.ndarray]:
    op = MatMul(name, Value("x", columns), Weight(f"{name}.weight", TENSOR_TYPES[quant], (rows, columns)))
    return op, engine_order.random_blocks(np.random.default_rng(rows), quant, rows, columns)


def repeated(*sizes: int) -> Iterator[int]:
    """One size for each attempt; the last for all that follow."""
    yield from sizes
    while True:
        yield sizes[-1]


@pytest.mark.parametrize("quant", ["Q3_K", "Q5_1"])
def test_a_weight_in_parts_gives_the_same_bits(quant: str) -> None:
    op, blocks = matmul("y", quant, 4100, 256)
    x = np.random.default_rng(1).standard_normal((11, 256)).astype(np.float32)
    board = CrampedBoard(repeated(stream_bytes(op.weight) // 3))
    y = multiply(board, (op,), op.output, {"y.weight": blocks}, x)
    assert np.array_equal(y.view(np.uint32), engine_order.multiply(quant, blocks, x).view(np.uint32))
    assert len(board.pieces) == 4 and sum(board.pieces) == stream_bytes(op.weight)


@pytest.mark.parametrize("fused", [False, True], ids=["floats", "codes"])
def test_gate_and_up_meet_whatever_parts_each_is_in(fused: bool) -> None:
    """The gate in one piece, up in two, or the other way round; their activation as floats, or as codes for down."""
    gate, gate_blocks = matmul("gate", "Q4_K", 2304, 256)
    up, up_blocks = matmul("up", "Q3_K", 2304, 256)
    act = GatedActivation("act", gate.output, up.output)
    blocks = {"gate.weight": gate_blocks, "up.weight": up_blocks}
    ops: tuple[Op, ...] = (gate, up, act)
    out = act.output
    if fused:
        down = MatMul("down", act.output, Weight("down.weight", TENSOR_TYPES["Q6_K"], (40, 2304)))
        blocks["down.weight"] = engine_order.random_blocks(np.random.default_rng(9), "Q6_K", 40, 2304)
        ops, out = (*ops, down), down.output
    x = np.random.default_rng(2).standard_normal((9, 256)).astype(np.float32)
    large = 1 << 24
    whole = multiply(CrampedBoard(repeated(large)), ops, out, blocks, x)
    for sizes in ((large, 0, large), (0, large), (0, large, large, 0, large)):
        board = CrampedBoard(repeated(*sizes))
        assert np.array_equal(multiply(board, ops, out, blocks, x).view(np.uint32), whole.view(np.uint32))
        assert len(board.pieces) > (3 if fused else 2)


def test_a_weight_that_no_pieces_hold_is_named_whole_and_takes_nothing() -> None:
    op, blocks = matmul("y", "Q8_0", 4096, 256)
    board = CrampedBoard(iter([0, 0, 1 << 24, 0, 0, 0, 0]))
    with pytest.raises(AllocationError, match=f"{stream_bytes(op.weight)} bytes are more"):
        multiply(board, (op,), op.output, {"y.weight": blocks}, np.zeros((1, 256), np.float32))
    assert board._pieces.n_free == (64 << 20) - 64 * len(board.pieces)


@pytest.mark.parametrize("quant", ["Q2_K", "Q4_0"])
def test_streamed_weights_give_the_same_bits_beside_others(quant: str) -> None:
    op, blocks = matmul("y", quant, 1300, 768)
    x = np.random.default_rng(3).standard_normal((521, 768)).astype(np.float32)  # more groups of tokens than one start
    y = multiply(CsimBoard("b", 64 << 20), (op,), op.output, {"y.weight": blocks}, x, staging_bytes=300_000)
    assert np.array_equal(y.view(np.uint32), engine_order.multiply(quant, blocks, x).view(np.uint32))


def test_a_staging_area_that_is_too_small_is_an_error_and_no_wrong_number() -> None:
    op, blocks = matmul("y", "Q8_0", 64, 8192)
    with pytest.raises(DeviceError, match="more memory than was set aside"):
        x = np.ones((1, 8192), np.float32)
        multiply(CsimBoard("b", 64 << 20), (op,), op.output, {"y.weight": blocks}, x, staging_bytes=100_000)


# What streaming costs.


def timeline(op: MatMul, n_tokens: int, staging_bytes: int) -> float:
    """Piece by piece: the processor starts the engine, copies the next piece, and waits."""
    rows, columns = op.weight.shape
    number = definition().formats[op.weight.type.name]
    most = native.library().hetrun_pynq_staged_rows(number, columns, staging_bytes)
    pieces = []
    for first in range(0, rows, 1024):
        left = min(1024, rows - first)
        while left:
            pieces.append(min(most, left))
            left -= pieces[-1]
    row_bytes = stream_bytes(op.weight) / rows
    now = pieces[0] * row_bytes / COPY_BYTES_PER_S
    for i, n in enumerate(pieces):
        engine_done = now + matmul_cycles(number, n, columns, n_tokens).cycles / definition().numbers["CLOCK_HZ"]
        copied = now + (pieces[i + 1] * row_bytes / COPY_BYTES_PER_S if i + 1 < len(pieces) else 0.0)
        now = max(engine_done, copied) + (START_S if i else 0.0)
    return now


@pytest.mark.parametrize("n_tokens", [1, 8, 64])
@pytest.mark.parametrize(("quant", "rows", "columns"), [("Q3_K", 5632, 2048), ("Q8_0", 1000, 8192), ("Q4_0", 48, 64)])
def test_a_streamed_matmul_takes_what_its_pieces_take(quant: str, rows: int, columns: int, n_tokens: int) -> None:
    op, _ = MatMul("y", Value("x", columns), Weight("w", TENSOR_TYPES[quant], (rows, columns))), None
    for staging_bytes in (1 << 18, 1 << 21):
        seconds = streamed_seconds(op, n_tokens, staging_bytes, Design.of({}))
        assert seconds == pytest.approx(timeline(op, n_tokens, staging_bytes))
        assert seconds > stream_bytes(op.weight) / COPY_BYTES_PER_S


@pytest.fixture
def system(tmp_path: Path) -> SystemConfig:
    """SmolLM2 does not fit 48 MB of CMA beside its values."""
    path = tmp_path / "board.toml"
    path.write_text(
        'description = "a board"\ndevices = ["model:cortex-a9", "pynq-z1:0", "pynq-z1:stream"]\n'
        "[drivers.pynq-z1]\ncma_bytes = 50_331_648\nstaging_bytes = 2_097_152\n"
    )
    return load_system(path)


def planned(system: SystemConfig, ids: tuple[str, ...]) -> tuple[Graph, Plan]:
    shape = load_shape("smollm2-135m")
    graph = build_graph(shape.architecture, shape.metadata, shape.tensors, GraphOptions(n_ctx=512), architectures())
    found = [d for d in choose_devices(Registry.load(), (), system=system, to_run=False) if d.info.id in ids]
    return graph, Task.of(graph, found, Request(64, 64)).solve()


def test_the_planner_streams_what_does_not_fit_where_that_is_faster(system: SystemConfig) -> None:
    cores, resident, stream = "model:cortex-a9", "pynq-z1:0", "pynq-z1:stream"
    graph, plan = planned(system, (cores, resident, stream))
    placed = {a.op: a.device for a in plan.assignments("prefill")}
    streamed = [op for op in graph.ops if isinstance(op, MatMul) and placed[op.name] == stream]
    assert streamed and set(placed.values()) == {cores, resident, stream}
    assert 0 < plan.memory["pynq-z1:0/ddr"] <= (50_331_648 - 50_331_648 // 2 - 2_097_152)
    on_host = [op for op in graph.ops if placed[op.name] in (cores, stream)]
    host = {w.name: w.nbytes for op in on_host for w in op.weights}
    assert plan.memory["host"] >= sum(host.values())  # streamed weights are the host's bytes, and KV comes on top
    _, without = planned(system, (cores, resident))
    assert plan.predicted["prefill"].total_s < 0.8 * without.predicted["prefill"].total_s
    assert any("copies at 400 MB/s" in basis for basis in plan.basis)


def test_the_streaming_device_says_what_it_takes_and_what_not(system: SystemConfig) -> None:
    infos = {i.id: i for i in PynqZ1Driver().probe(system.drivers["pynq-z1"])}
    op, _ = matmul("up", "Q4_K", 2304, 256)
    answer = PynqZ1Driver().estimate(infos["pynq-z1:stream"], op, Workload(1, 0))
    assert isinstance(answer, Cost) and dict(answer.resident) == {("host", "up.weight"): stream_bytes(op.weight)}
    act = GatedActivation("act", op.output, op.output)
    refused = PynqZ1Driver().estimate(infos["pynq-z1:stream"], act, Workload(1, 0))
    assert isinstance(refused, Unsupported) and "in pieces" in refused.reason
    assert "pynq-z1:stream" not in {i.id for i in PynqZ1Driver().probe({})}
