"""silu(gate) * up in the engine: its bits, what of a segment is fused, what it costs, and what it refuses."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import engine_order

from hetrun.device import Batch, Bindings, Cost, RunEvent, Segment, Unsupported
from hetrun.ops import GatedActivation, MatMul, Op, Value, Workload
from hetrun.plan.cost import fused_costs
from hetrun.plugins import FoundDevice
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.definition import definition, super_blocks
from hetrun_pynq_z1.driver import PynqZ1Driver
from hetrun_pynq_z1.program import PynqProgram, launches_of
from hetrun_pynq_z1.timing import HOST_ACTIVATION_S, launches_seconds

Floats = engine_order.Floats


@dataclass(frozen=True)
class Block:
    """gate, up, their activation and down, as a feed-forward block has them, with random weights."""

    gate: MatMul
    up: MatMul
    act: GatedActivation
    down: MatMul

    @classmethod
    def of(cls, gate: str, up: str, down: str, columns: int, width: int, rows: int = 24) -> Block:
        x = Value("x", columns)
        ops = [
            MatMul(name, x, Weight(f"{name}.weight", TENSOR_TYPES[quant], (width, columns)))
            for name, quant in (("gate", gate), ("up", up))
        ]
        act = GatedActivation("act", ops[0].output, ops[1].output)
        down_op = MatMul("down", act.output, Weight("down.weight", TENSOR_TYPES[down], (rows, width)))
        return cls(ops[0], ops[1], act, down_op)

    @cached_property
    def blocks(self) -> dict[str, np.ndarray]:
        """Weights by name, as GGUF has them."""
        weights = [op.weight for op in (self.gate, self.up, self.down)]
        rng = np.random.default_rng([number for w in weights for number in w.shape])
        return {w.name: engine_order.random_blocks(rng, w.type.name, *w.shape) for w in weights}

    @property
    def ops(self) -> tuple[Op, ...]:
        return (self.gate, self.up, self.act, self.down)

    def multiply(self, op: MatMul, x: Floats) -> Floats:
        return engine_order.multiply(op.weight.type.name, self.blocks[op.weight.name], x)

    def activated(self, x: Floats) -> Floats:
        with np.errstate(all="ignore"):
            return engine_order.silu_times(self.multiply(self.gate, x), self.multiply(self.up, x))


def run(
    ops: tuple[Op, ...], outputs: tuple[Value, ...], blocks: dict[str, np.ndarray], **inputs: Floats
) -> tuple[list[Floats], RunEvent]:
    """The values of pynq-z1:csim, through the contract."""
    driver = PynqZ1Driver()
    info, *_ = driver.probe({"memory_bytes": 64 << 20})
    n = len(next(iter(inputs.values())))
    values = tuple(Value(name, x.shape[1]) for name, x in inputs.items())
    segment = Segment("ffn", ops, values, outputs, max(1, n), 1)
    device = driver.open(info)
    try:
        buffers = {v.name: device.alloc(segment.value_bytes(v)) for v in (*values, *outputs)}
        for name, x in inputs.items():
            buffers[name].write(memoryview(np.ascontiguousarray(x)).cast("B"))
        weights = {w.name: memoryview(blocks[w.name].tobytes()) for op in ops for w in op.weights}
        executable = device.load(driver.compile(info, segment), weights, Bindings(buffers, {}))
        found = []
        window = device._window.block.view  # type: ignore[attr-defined]
        for _ in range(2):  # the second run finds what the first has left
            window[:] = b"\xff" * len(window)  # floats of these bits are NaN
            executable.run(Batch.of([0] * n, range(n), [0] * n, []))
        for value in outputs:
            y = np.empty((n, value.width), np.float32)
            buffers[value.name].read(memoryview(y).cast("B"))
            found.append(y)
        return found, device.synchronize()[-1]
    finally:
        device.close()


def same_bits(a: Floats, b: Floats) -> bool:
    numbers = ~np.isnan(a)
    return np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(
        a[numbers].view(np.uint32), b[numbers].view(np.uint32)
    )


def numbers(tokens: int, columns: int) -> Floats:
    rng = np.random.default_rng([tokens, columns])
    return (rng.standard_normal((tokens, columns)) * 10.0 ** rng.integers(-2, 3, (tokens, 1))).astype(np.float32)


# Slabs of rows, groups of tokens, columns that are padded (288 = 4.5 x 64), and formats that differ.
BLOCKS = [
    ("Q2_K", "Q2_K", "Q3_K", 512, 1280),
    ("Q4_K", "Q6_K", "Q5_K", 256, 2048 + 256),
    ("Q4_0", "Q4_0", "Q4_0", 96, 288),
    ("Q8_0", "Q8_0", "Q8_0", 64, 1536),
    ("Q4_1", "Q5_0", "Q6_K", 160, 256),
    ("Q4_K", "Q4_K", "Q5_1", 256, 1056),
]


@pytest.mark.parametrize("names", BLOCKS, ids=lambda names: "-".join(map(str, names)))
@pytest.mark.parametrize("tokens", [1, 2, 7, 11])
def test_a_fused_block_has_the_bits_of_the_specification(names: tuple[str, str, str, int, int], tokens: int) -> None:
    block, x = Block.of(*names), numbers(tokens, names[3])
    (y,), event = run(block.ops, (block.down.output,), block.blocks, x=x)
    expected = block.multiply(block.down, block.activated(x))
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0
    assert same_bits(y, expected)
    assert event.counters["launches"] == 1


def test_a_fused_activation_that_others_read_leaves_floats() -> None:
    block, x = Block.of("Q4_K", "Q4_K", "Q4_0", 256, 1056), numbers(9, 256)
    (y, act), event = run(block.ops, (block.down.output, block.act.output), block.blocks, x=x)
    expected = block.activated(x)
    assert same_bits(act, expected)
    assert same_bits(y, block.multiply(block.down, expected))
    assert event.counters["launches"] == 2


def test_gates_that_others_read_stay_and_the_host_activates() -> None:
    block, x = Block.of("Q8_0", "Q8_0", "Q8_0", 64, 96), numbers(3, 64)
    outputs = (block.gate.output, block.down.output)
    (gate, y), event = run(block.ops, outputs, block.blocks, x=x)
    assert same_bits(gate, block.multiply(block.gate, x))
    assert same_bits(y, block.multiply(block.down, block.activated(x)))
    assert event.counters["launches"] == 2


def test_an_activation_alone_is_the_hosts_with_the_same_bits_and_its_time() -> None:
    rng = np.random.default_rng(3)
    gate = np.concatenate([rng.uniform(-130, 130, 4000), rng.standard_normal(4000) * 1e-30]).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 86.6, -86.6, 86.7, -86.7, 3e38, -3e38], np.float32)
    gate = np.concatenate([gate, special])[None]
    up = rng.standard_normal(gate.shape).astype(np.float32)
    act = GatedActivation("act", Value("gate", gate.shape[1]), Value("up", gate.shape[1]))
    (y,), event = run((act,), (act.output,), {}, gate=gate, up=up)
    assert same_bits(y, engine_order.silu_times(gate, up))
    assert event.counters["launches"] == 0
    assert event.seconds == pytest.approx(HOST_ACTIVATION_S * gate.shape[1])


def test_the_exponential_is_close_to_the_exact_one() -> None:
    gate = np.linspace(-60, 60, 100_003, dtype=np.float32)[None]
    exact = gate / (1 + np.exp(-gate.astype(np.float64)))
    y = engine_order.silu_times(gate, np.ones_like(gate))
    assert (np.abs(y - exact) <= 1.2e-7 * np.abs(gate)).all()
    assert (np.abs(y - exact) <= 5e-7 * np.abs(exact))[gate > -5].all()


def test_a_token_that_overflows_spoils_no_other() -> None:
    block, x = Block.of("Q4_K", "Q4_K", "Q4_K", 256, 512), numbers(5, 256)
    x[2] = np.float32(1e37)
    (y,), _ = run(block.ops, (block.down.output,), block.blocks, x=x)
    expected = block.multiply(block.down, block.activated(x))
    assert np.isnan(expected[2]).all() and np.isfinite(expected[[0, 1, 3, 4]]).all()
    assert same_bits(y, expected)


def test_what_is_fused() -> None:
    """Not: what others read, one value as both, an activation of other ops' results."""
    block = Block.of("Q8_0", "Q8_0", "Q8_0", 64, 64)
    x, (gate, up, act, down) = Value("x", 64), block.ops

    def launches(ops: tuple[Op, ...], *outputs: Value) -> tuple[list[list[str]], list[int]]:
        found = launches_of(Segment("s", ops, (x,), outputs, 1, 1))
        return [[f"{op.name}:{found.mode(op)}" for op in wave] for wave in found.waves], [w for w, _ in found.hosted]

    assert isinstance(down, MatMul) and isinstance(gate, MatMul)
    assert launches(block.ops, down.output) == ([["gate:GATE", "up:CODES_32", "down:WRITE"]], [])
    assert launches((up, gate, act), act.output) == ([["gate:GATE", "up:ACTIVATE"]], [])
    unfused = [["gate:WRITE", "up:WRITE"], ["down:WRITE"]]
    assert launches(block.ops, down.output, up.output) == (unfused, [1])
    other = MatMul("other", gate.output, gate.weight)
    assert launches((*block.ops, other), down.output, other.output)[1] == [1]
    twice = GatedActivation("act", gate.output, gate.output)
    assert launches((gate, twice), twice.output) == ([["gate:WRITE"]], [1])
    assert launches((up, act), act.output) == ([["up:WRITE"]], [1])
    k_quant = MatMul("k", Value("act", 256), Weight("k.weight", TENSOR_TYPES["Q4_K"], (8, 256)))
    wide = Block.of("Q8_0", "Q8_0", "Q8_0", 64, 256)
    both = launches((*wide.ops, k_quant), wide.down.output, k_quant.output)
    assert both == ([["gate:GATE", "up:ACTIVATE"], ["down:WRITE", "k:WRITE"]], [])


SHAPES = [(256, 768), (288, 768), (576, 1536), (2048, 5632)]  # columns and rows of gate and up
FUSED = [
    (name, *shape) for name in definition().formats for shape in SHAPES if not (super_blocks(name) and shape[0] % 256)
]


@pytest.mark.parametrize("names", FUSED, ids=lambda names: "-".join(map(str, names)))
@pytest.mark.parametrize("tokens", [1, 2, 8, 12])
def test_a_fused_block_costs_what_it_takes(names: tuple[str, int, int], tokens: int) -> None:
    """Of the plan's estimates and of the engine's events, which sum up what the cycle model says of each descriptor."""
    name, columns, width = names
    block = Block.of(name, name, name, columns, width, rows=columns)
    seconds, took = priced(block.ops, (block.down.output,), tokens)
    assert sum(seconds.values()) == pytest.approx(took, rel=1e-9)
    assert seconds["act"] < 0.05 * took


def test_an_activation_that_is_left_to_the_host_costs_what_it_takes_there() -> None:
    """Its gate is read by others, comes from elsewhere, or up does."""
    block = Block.of("Q8_0", "Q8_0", "Q8_0", 576, 1536)
    down = block.down.output
    for ops, outputs in (
        (block.ops, (down, block.gate.output)),
        (block.ops[1:], (down,)),
        ((block.gate, block.act, block.down), (down,)),
    ):
        seconds, took = priced(ops, outputs, 5)
        assert seconds["act"] == pytest.approx(5 * 1536 * HOST_ACTIVATION_S)
        assert sum(seconds.values()) == pytest.approx(took, rel=1e-9)


def priced(ops: tuple[Op, ...], outputs: tuple[Value, ...], tokens: int) -> tuple[dict[str, float], float]:
    """(seconds of each op in a run of them by the driver's estimates, seconds of that run by its events)"""
    driver = PynqZ1Driver()
    info, *_ = driver.probe({})
    made = {op.name for op in ops}
    inputs = {v.name: v for op in ops for v in op.inputs if v.name not in made}
    segment = Segment("ffn", ops, tuple(inputs.values()), outputs, tokens, 1)
    costs = {op.name: driver.estimate(info, op, Workload(tokens, 0)) for op in ops}
    costs |= fused_costs(FoundDevice(driver, info, "pynq-z1"), segment, Workload(tokens, 0))
    program = driver.compile(info, segment)
    assert isinstance(program, PynqProgram)
    took = launches_seconds(program.launches, Batch.of([0] * tokens, range(tokens), [0] * tokens, []))
    return {name: cost.seconds for name, cost in costs.items() if isinstance(cost, Cost)}, took


def test_gelu_is_refused_with_the_reason() -> None:
    driver = PynqZ1Driver()
    info, *_ = driver.probe({})
    op = GatedActivation("act", Value("gate", 64), Value("up", 64), "gelu")
    answer = driver.estimate(info, op, Workload(1, 0))
    assert isinstance(answer, Unsupported) and "gelu" in answer.reason


def test_the_engine_refuses_an_activation_without_its_gates() -> None:
    """Descriptors that no driver writes."""
    known = definition()
    memory = np.zeros(1 << 16, np.uint8)
    names = ["format", "n_rows", "n_chunks", "n_tokens", "weights", "codes", "code_stride", "scales", "scale_stride"]
    names += ["out", "out_stride", "out_rows", "mode", "gate_row", "out_scales", "out_scale_stride"]
    usual = [known.formats["Q8_0"], 32, 1, 2, 4096, 8192, 64, 12288, 8, 16384, 128, 32, 0, 0, 20480, 4]
    status = {value: name for name, value in known.statuses.items()}

    def ring(*descriptors: dict[str, int | str]) -> tuple[int, int]:
        for i, changes in enumerate(descriptors):
            fields = list(usual)
            for name, value in changes.items():
                number = known.numbers[f"MODE_{value}"] if isinstance(value, str) else value
                fields[names.index(name)] = number
            memory[64 * i : 64 * i + 64] = np.array(fields, "<u4").view(np.uint8)
        pointer = ctypes.c_void_p(memory.ctypes.data)
        registers = [ctypes.c_uint32() for _ in range(6)]
        native.library().hetrun_pynq_engine(
            *[pointer] * 4, ctypes.c_uint32(0), ctypes.c_uint32(len(descriptors)), *map(ctypes.byref, registers)
        )
        return registers[2].value, registers[3].value

    bad, ok, gate = status["BAD_MODE"], status["OK"], {"mode": "GATE"}
    for mode in ("ACTIVATE", "CODES_32"):
        assert ring(gate, {"mode": mode}) == (ok, 2)
        assert ring({"mode": mode}) == (bad, 0)
        assert ring({}, {"mode": mode}) == (bad, 1)
        assert ring(gate, {}, {"mode": mode}) == (bad, 2)
        assert ring(gate, {"mode": mode}, {"mode": mode}) == (bad, 2)
        for other in ({"n_rows": 64, "out_rows": 64}, {"n_tokens": 1}, {"gate_row": 8}):
            assert ring(gate, {"mode": mode, **other}) == (bad, 1), other
    assert ring(gate, {"mode": "CODES_256"}) == (bad, 1)  # 32 rows are no block of 256
    assert ring(gate, {"mode": "CODES_32", "out_rows": 24}) == (bad, 1)
    assert ring({"mode": known.numbers["MODE_CODES_256"] + 1}) == (bad, 0)
    assert ring({"mode": "GATE", "gate_row": known.numbers["MAX_ROWS"] - 24}) == (bad, 0)
    assert ring(gate, {"mode": "CODES_32", "out_scales": 20481}) == (status["BAD_ADDRESS"], 1)
