"""Prices by least squares, against brute force; costs between what was measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrun.calibration.table import Calibration, Observation
from hetrun.device import Workload
from hetrun.measure.fit import fit, nonnegative_least_squares, ratios
from hetrun.ops import Add, Value


def best_by_brute_force(matrix: np.ndarray, target: np.ndarray) -> float:
    """The least squared error over all sets of columns whose own best prices are not negative."""
    best = float(target @ target)
    n = matrix.shape[1]
    for size in range(1, n + 1):
        for chosen in itertools.combinations(range(n), size):
            part = matrix[:, chosen]
            x = np.linalg.lstsq(part, target, rcond=None)[0]
            if (x >= -1e-12).all():
                best = min(best, float(np.sum((part @ x - target) ** 2)))
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 5))
def test_prices_are_the_best_that_are_not_negative(seed: int, n_rows: int, n_columns: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(n_rows, n_columns)), rng.normal(size=n_rows)
    x = nonnegative_least_squares(matrix, target)
    assert (x >= 0).all()
    error = float(np.sum((matrix @ x - target) ** 2))
    assert error <= best_by_brute_force(matrix, target) * (1 + 1e-5) + 1e-6


def observation(terms: dict[str, float], seconds: float, n_tokens: int = 1, footprint: int = 0) -> Observation:
    return Observation("g", "p", n_tokens, footprint, seconds, 2 * seconds, terms, {"add": 2 * seconds})


def test_prices_of_exact_times_are_exact() -> None:
    prices = {"add": 3e-6, "add/width": 2e-9}
    programs = [{"add": 4.0, "add/width": 400.0}, {"add": 4.0, "add/width": 9000.0}, {"add": 1.0, "add/width": 7.0}]
    found = fit([observation(p, sum(prices[k] * n for k, n in p.items())) for p in programs])
    assert {name: levels[0][1] for name, levels in found[1].items()} == pytest.approx(prices, rel=1e-3)


def test_prices_of_one_token_know_the_footprint() -> None:
    terms = {"matmul/Q8_0/bytes": 1e6}
    found = fit([observation(terms, 1e-5, footprint=7_000_000), observation(terms, 3e-5, footprint=300_000_000)])
    assert [at for at, _ in found[1]["matmul/Q8_0/bytes"]] == [8_000_000, 256_000_000]
    assert [s for _, s in found[1]["matmul/Q8_0/bytes"]] == pytest.approx([1e-11, 3e-11], rel=1e-3)


def test_ratio_is_that_of_programs_that_a_kind_dominates() -> None:
    mixed = Observation("g", "p", 1, 0, 9.0, 1.0, {}, {"add": 0.4, "rope": 0.6})
    assert ratios([observation({}, 1e-3), mixed]) == pytest.approx({"add": 0.5, "rope": 9.0})


def calibration(prices: dict[int, dict[str, tuple[tuple[float, float], ...]]]) -> Calibration:
    return Calibration("d", "f", "", "0", "2026-11-22", None, prices, {}, {})


def add(width: int) -> Add:
    return Add("sum", Value("a", width), Value("b", width))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(1, 512), st.floats(1e-7, 1e-2), min_size=1, max_size=5), st.integers(1, 2048)
)  # fmt: skip
def test_costs_between_measurements_lie_between_them(grid: dict[int, float], rows: int) -> None:
    found = calibration({n: {"add": ((0.0, s),)} for n, s in grid.items()})
    seconds = found.seconds(add(64), Workload(rows, 0), 0, False)
    assert seconds is not None and math.isfinite(seconds)
    if rows in grid:
        assert seconds == pytest.approx(grid[rows])
    elif min(grid) < rows < max(grid):
        around = grid[max(n for n in grid if n < rows)], grid[min(n for n in grid if n > rows)]
        assert min(around) * (1 - 1e-9) <= seconds <= max(around) * (1 + 1e-9)
    elif rows > max(grid):
        assert seconds == pytest.approx(grid[max(grid)] * rows / max(grid))


def test_price_between_footprints_follows_the_logarithm() -> None:
    found = calibration({1: {"add": ((1e6, 1.0), (1e8, 3.0))}})
    at = {n: found.seconds(add(1), Workload(1, 0), n, False) for n in (10, 10**6, 10**7, 10**8, 10**10)}
    assert list(at.values()) == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])


def test_kind_that_was_not_measured_has_no_price() -> None:
    found = calibration({1: {"rope": ((0.0, 1.0),)}})
    assert found.seconds(add(64), Workload(1, 0), 0, False) is None
