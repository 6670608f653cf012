"""From times of programs to prices of terms: the prices, none below zero, whose sums come closest in relative terms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hetrun.calibration.table import Levels, Observation, Speeds
from hetrun.calibration.terms import KEYS, by_context, by_footprint, visible_keys
from hetrun.measure.timing import LEVELS

Prices = dict[int, dict[str, Levels]]

# How much prices that the times do not tell apart are drawn to zero and so to each other, beside errors of 1.
_RIDGE = 1e-4

_BLOCK_KINDS, _BLOCK_WEIGHT = 5, 3.0


def usual_speeds(observations: Sequence[Observation]) -> Speeds:
    """What the probes mostly took."""
    took = [[o.probe_s for o in observations if o.probe_s and o.reading == reading] for reading in (False, True)]
    return Speeds(*(statistics.median(times) if times else 0.0 for times in took))


def fit(observations: Sequence[Observation]) -> Prices:
    """Prices for each number of rows that was timed, at the speeds that the machine mostly had."""
    speeds = usual_speeds(observations)
    observations = [replace(o, seconds=o.at_speeds(speeds)) for o in observations]
    found: Prices = {}
    for n_tokens in sorted({o.n_tokens for o in observations}):
        found[n_tokens] = _fit_rows([o for o in observations if o.n_tokens == n_tokens])
    return found


def ratios(observations: Sequence[Observation]) -> dict[str, float]:
    """Measured over estimated time of the programs where an op kind makes up most of the estimate."""
    by_kind: dict[str, list[float]] = {}
    for o in observations:
        for kind, seconds in o.kinds.items():
            if o.estimate_s > 0 and seconds > o.estimate_s / 2:
                by_kind.setdefault(kind, []).append(o.seconds / o.estimate_s)
    return {kind: statistics.median(values) for kind, values in by_kind.items()}


def _fit_rows(observations: Sequence[Observation]) -> dict[str, Levels]:
    columns: dict[tuple[str, int], int] = {}
    rows: list[dict[int, float]] = []
    for o in observations:
        row: dict[int, float] = {}
        for name, quantity in o.terms.items():
            key = (name, _level(name, o))
            row[columns.setdefault(key, len(columns))] = _weight(o) * quantity / o.seconds
        rows.append(row)
    matrix = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for column, value in row.items():
            matrix[i, column] = value
    prices = nonnegative_least_squares(matrix, np.array([_weight(o) for o in observations]))
    result: dict[str, list[tuple[float, float]]] = {}
    for (name, at), column in sorted(columns.items(), key=lambda item: item[0]):
        result.setdefault(name, []).append((float(at), float(prices[column])))
    return {name: tuple(prices_at) for name, prices_at in result.items()}


def _weight(observation: Observation) -> float:
    """How much a program counts: whole blocks are what models are made of."""
    return _BLOCK_WEIGHT if len(observation.kinds) >= _BLOCK_KINDS else 1.0


def _level(term: str, observation: Observation) -> int:
    """Where on its axis a term was timed, or 0 where its price has none.

    Footprints are those of LEVELS, the nearest by ratio. Keys are in a cache or beyond it, by their own bytes: where
    weights are many more, the time says little about keys.
    """
    if by_context(term, observation.n_tokens):
        return max(1, round(visible_keys(observation.terms)))
    if not by_footprint(term, observation.n_tokens):
        return 0
    of_keys = term.endswith(KEYS)
    footprint = observation.terms[term] if of_keys else float(observation.footprint)
    return min(LEVELS[:2] if of_keys else LEVELS, key=lambda at: abs(math.log(max(footprint, 1) / at)))


def nonnegative_least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """x >= 0 with the least |matrix x - target|, by Lawson and Hanson's active sets.   matrix: [rows, columns]."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    n_columns = matrix.shape[1]
    scaled = matrix / scale
    # Normal equations: small ones, which no linear algebra library divides among threads that wait for each other.
    gram = scaled.T @ scaled + _RIDGE**2 * np.eye(n_columns)
    wanted = scaled.T @ target
    x = np.zeros(n_columns)
    active = np.zeros(n_columns, bool)
    for _ in range(10 * n_columns):
        gradient = wanted - gram @ x
        gradient[active] = -np.inf
        best = int(np.argmax(gradient))
        if active.all() or gradient[best] <= 1e-10:
            break
        active[best] = True
        while True:
            step = np.zeros(n_columns)
            step[active] = np.linalg.solve(gram[np.ix_(active, active)], wanted[active])
            negative = active & (step <= 0)
            if not negative.any():
                break
            share = np.min(x[negative] / np.maximum(x[negative] - step[negative], 1e-300))
            x += share * (step - x)
            active &= x > 1e-14
        x = step
    return np.asarray(x / scale)
