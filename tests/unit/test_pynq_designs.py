"""Designs of the PYNQ-Z1 engine: what they take of the part, of time and of energy."""

from __future__ import annotations

import ctypes

import pytest

from hetrun.api import graph_of
from hetrun.config import load_profile
from hetrun.device import Cost, DesignSpace, HardwareSources
from hetrun.errors import UsageError
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import load_shape
from hetrun.ops import MatMul
from hetrun.plugins import Registry
from hetrun_pynq_z1 import designs, native
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.driver import PynqZ1Driver
from hetrun_pynq_z1.fabric import CAPACITY, MOST_SHARE, parts, totals
from hetrun_pynq_z1.timing import Design, header_design, matmul_cycles, matmul_seconds

COLUMNS = definition().numbers["MAX_COLUMNS"]
POINT = {"lanes": 64, "ports": 2, "fifo_words": 128, "tokens": 8, "rows": 8, "clock_mhz": 125}
PINS_BYTES_PER_S = 2.1e9


def test_the_models_design_is_the_headers() -> None:
    n = definition().numbers
    design = header_design()
    assert (design.clock_hz, design.lanes, design.ports) == (n["CLOCK_HZ"], n["LANES"], n["PORTS"])
    assert (design.fifo_words, design.burst_words) == (n["FIFO_WORDS"], n["BURST_WORDS"])
    assert (design.tokens, design.rows, design.ddr_permille) == (n["TOKENS"], n["TILE_ROWS"], 750)


def test_the_call_without_parameters_times_the_headers_design() -> None:
    own = native.Timing()
    native.library().hetrun_pynq_matmul_timing(0, 2048, 2048, 3, ctypes.byref(own))
    assert own.cycles == matmul_cycles(0, 2048, 2048, 3, header_design()).cycles


def test_the_shipped_engine_fits_and_every_part_says_from_what() -> None:
    taken = totals(header_design(), COLUMNS)
    assert all(taken[n] <= MOST_SHARE * CAPACITY[n] for n in CAPACITY)
    for part in parts(header_design(), COLUMNS):
        assert part.basis.startswith(("simulated:", "analytic:"))


def test_a_launch_costs_what_plans_without_the_driver_say() -> None:
    profile = load_profile("pynq-z1")
    for info in (*PynqZ1Driver().probe({}), PynqZ1Driver().design(POINT).info):
        assert (info.launch.seconds, info.launch.basis) == (profile.launch_s.value, profile.launch_s.basis)


def test_totals_are_the_sums_of_parts() -> None:
    found = parts(header_design(), COLUMNS)
    assert totals(header_design(), COLUMNS)["LUT"] == pytest.approx(sum(p.lut for p in found))
    assert totals(header_design(), COLUMNS)["BRAM36"] == sum(p.bram36 for p in found)


def test_arrays_take_the_block_rams_that_their_shape_needs() -> None:
    """Eight tokens of 8,192 codes over 2 x 64 banks: 512 bytes a bank, half a block RAM each (UG473: 512 x 36)."""
    by_name = {p.name: p.bram36 for p in parts(header_design(), COLUMNS)}
    assert by_name["activation codes"] == 64
    assert by_name["activation scales"] == 2  # four banks of 512 x 32 bits: a half each
    assert by_name["gates"] == 8  # two banks of 4,096 x 32 bits: eight halves of 4,096 x 4 each
    many = {p.name: p.bram36 for p in parts(Design.of({"tokens": 128}), COLUMNS)}
    assert many["activation codes"] == 64 * 4  # 8,192 bytes a bank: four halves of 2 KB


@pytest.mark.parametrize(("axis", "low", "high"), [("lanes", 16, 64), ("ports", 1, 2), ("rows", 4, 16)])
def test_more_of_anything_takes_no_less(axis: str, low: int, high: int) -> None:
    small, large = (totals(Design.of({axis: v}), COLUMNS) for v in (low, high))
    assert all(small[n] <= large[n] for n in CAPACITY) and small != large


def test_lanes_that_nobody_synthesised_have_no_estimate() -> None:
    with pytest.raises(ValueError, match="48 lanes"):
        parts(Design.of({"lanes": 48}), COLUMNS)


def test_power_is_what_was_published_at_two_clocks() -> None:
    assert designs.system_watts(100) == pytest.approx(3.12)
    assert designs.system_watts(175) == pytest.approx(3.85)
    assert 3.12 < designs.system_watts(125) < 3.85


@pytest.mark.parametrize(
    "wrong",
    [{"lanes": 48}, {"ports": 3}, {"fifo_words": 8}, {"rows": 2}, {"tokens": 0}, {"clock_mhz": 1000}, {"colour": 1}],
)
def test_a_design_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PynqZ1Driver().design({**POINT, **wrong})


def test_a_design_without_a_parameter_is_refused() -> None:
    with pytest.raises(UsageError, match="'rows'"):
        PynqZ1Driver().design({n: v for n, v in POINT.items() if n != "rows"})


def decode_s(shape: str = "tinyllama-q2_k", **numbers: int) -> float:
    """Of all matmuls of a token."""
    graph = graph_of(load_shape(shape), GraphOptions(n_ctx=32, max_tokens=16), Registry.load())
    return sum(matmul_seconds(op, 1, Design.of(numbers)) for op in graph.ops if isinstance(op, MatMul))


@pytest.mark.parametrize(
    ("numbers", "other_model_s"),
    [({"clock_hz": 100_000_000}, 0.2925), ({}, 0.2923), ({"clock_hz": 150_000_000}, 0.2921), ({"ports": 1}, 0.460)],
)
def test_times_agree_with_another_model_of_such_an_engine(numbers: dict[str, int], other_model_s: float) -> None:
    """A dry run, written by others before this model, of 64 lanes for the paper's file. It counted no results."""
    assert decode_s(**numbers) == pytest.approx(other_model_s, rel=0.015)


@pytest.mark.parametrize("permille", [675, 750, 850])
def test_the_memory_sustains_the_share_that_is_asked_for(permille: int) -> None:
    timing = matmul_cycles(1, 2048, 2048, 1, Design.of({"ddr_permille": permille}))
    seconds = timing.cycles / header_design().clock_hz
    assert 16 * timing.busy_cycles / seconds / PINS_BYTES_PER_S == pytest.approx(permille / 1000, rel=0.02)


def test_few_rows_in_flight_wait_for_float_additions() -> None:
    """Q4_1, two additions a tile: 4 rows arrive in less time, 8 do not. K-quants have tiles long enough."""
    q4_1, q2_k = definition().formats["Q4_1"], definition().formats["Q2_K"]
    cycles = {rows: matmul_cycles(q4_1, 1024, 2048, 1, Design.of({"rows": rows})).cycles for rows in (4, 8, 16)}
    assert cycles[4] > 1.2 * cycles[8]
    assert cycles[16] == pytest.approx(cycles[8], rel=0.01)
    assert matmul_cycles(q2_k, 1024, 2048, 1, Design.of({"rows": 4})).lane_stalls == 0


def test_estimates_of_a_design_are_those_of_its_own_parameters() -> None:
    driver = PynqZ1Driver()
    assert isinstance(driver, DesignSpace) and isinstance(driver, HardwareSources)
    point = driver.design({**POINT, "lanes": 16, "clock_mhz": 100})
    graph = graph_of(load_shape("tinyllama-382mb"), GraphOptions(n_ctx=32, max_tokens=16), Registry.load())
    op = next(op for op in graph.ops if isinstance(op, MatMul))
    from hetrun.ops import Workload

    found = driver.estimate(point.info, op, Workload(1, 16))
    assert isinstance(found, Cost)
    expected = matmul_seconds(op, 1, Design.of({"lanes": 16, "clock_hz": 100_000_000}))
    assert found.seconds == expected > matmul_seconds(op, 1)
    assert found.joules == pytest.approx(expected * 3.12)
