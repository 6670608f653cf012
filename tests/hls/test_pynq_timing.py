"""The cycle model: the published design's rows, and how ours answers to what it is built of."""

from __future__ import annotations

import pytest

from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.timing import matmul_cycles, secda_matmul

Q2_WORDS, Q3_WORDS = 21, 28  # 32-bit words of a super-block on the published design's streams


@pytest.mark.parametrize(("columns", "rows"), [(2048, 128), (5632, 46)])
def test_the_published_design_has_the_published_tiles(columns: int, rows: int) -> None:
    assert secda_matmul(5632, columns // 256, 1, Q3_WORDS, False, 125_000_000).tile_rows == rows


def test_its_tiles_of_a_token_add_up_to_the_published_number() -> None:
    shapes = {"q": (2048, 8), "k": (256, 8), "v": (256, 8), "o": (2048, 8)}
    shapes |= {"gate": (5632, 8), "up": (5632, 8), "down": (2048, 22)}
    tiles = {name: secda_matmul(*shape, 1, Q3_WORDS, False, 125_000_000).n_tiles for name, shape in shapes.items()}
    assert tiles == {"q": 16, "k": 2, "v": 2, "o": 16, "gate": 44, "up": 44, "down": 45}
    assert 22 * sum(n for name, n in tiles.items() if name not in ("q", "k")) == 3322


def test_its_streams_and_cycles_are_the_published_ones() -> None:
    """v3, Q2_K, M = 128, N = 4, K = 256 on a KV260 at 200 MHz: 298 and 4 x 672 words, 117.77 us on the board."""
    timing = secda_matmul(128, 1, 4, Q2_WORDS, False, 200_000_000)
    assert timing.input_words == 298
    assert timing.weight_words == 4 * 672
    assert timing.compute_cycles == 128 * 4 * 46
    assert timing.compute_s == pytest.approx(117.77e-6, rel=2e-4)


def test_its_cycles_for_mobilellm_are_within_two_percent_of_the_board() -> None:
    timing = secda_matmul(576, 6, 37, Q3_WORDS, False, 125_000_000)
    assert 30 * timing.compute_cycles == pytest.approx(80_342_232, rel=0.02)


def format_number(name: str) -> int:
    return definition().formats[name]


@pytest.mark.parametrize("name", definition().formats)
def test_decode_is_bound_by_memory_and_takes_three_quarters_of_it(name: str) -> None:
    timing = matmul_cycles(format_number(name), 1024, 2048, 1)
    nbytes = 16 * timing.busy_cycles
    bytes_per_s = nbytes / (timing.cycles / definition().numbers["CLOCK_HZ"])
    assert 0.70 < bytes_per_s / 2.1e9 < 0.78
    assert timing.lane_stalls == 0


def test_tokens_of_a_pass_are_free_until_the_lanes_are_full() -> None:
    """At Q2_K a packet of 64 weights arrives every 1.7 cycles, and two tokens share a cycle of the lanes."""
    cycles = {n: matmul_cycles(format_number("Q2_K"), 1024, 2048, n).cycles for n in (1, 2, 4, 8, 9)}
    assert cycles[2] == pytest.approx(cycles[1], rel=0.03)
    assert cycles[8] == pytest.approx(4 * 1024 * 2048 / 64, rel=0.05)
    assert cycles[9] > cycles[8] + 0.9 * cycles[1]


def test_time_follows_rows_and_columns() -> None:
    one = matmul_cycles(format_number("Q3_K"), 1024, 2048, 1)
    wide = matmul_cycles(format_number("Q3_K"), 1024, 4096, 1)
    tall = matmul_cycles(format_number("Q3_K"), 4096, 2048, 1)
    assert wide.cycles == pytest.approx(2 * one.cycles, rel=0.02)
    assert tall.cycles == pytest.approx(4 * one.cycles, rel=0.02)
    assert tall.n_descriptors == 4
