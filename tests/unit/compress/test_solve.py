"""What stays and what codes it gets, against brute force on small matrices and the loss that is to be small."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from hetrun.compress.solve import Gram, Solution, clipped_scale, kept_of_four, nearest, solve

RNG = np.random.default_rng(5)
N_OUT, N_IN = 48, 256
WEIGHT = RNG.standard_normal((N_OUT, N_IN)).astype(np.float32)
MIX = np.eye(N_IN) + 0.25 * RNG.standard_normal((N_IN, N_IN))
INPUTS = (RNG.standard_normal((2000, N_IN)) @ MIX * np.exp(RNG.standard_normal(N_IN))).astype(np.float32)
GRAM = INPUTS.T @ INPUTS


def run(method: str, *, prune: bool, quantise: bool) -> Solution:
    return solve(WEIGHT, Gram(GRAM), prune=prune, quantise=quantise, method=method)  # type: ignore[arg-type]


def loss(values: np.ndarray) -> float:
    """The squared error of the output over the inputs, relative: by the outputs themselves."""
    wanted = INPUTS.astype(np.float64) @ WEIGHT.T.astype(np.float64)
    got = INPUTS.astype(np.float64) @ values.T.astype(np.float64)
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize(("prune", "quantise"), [(True, False), (False, True), (True, True)])
def test_the_error_it_tells_is_that_of_the_outputs(method: str, prune: bool, quantise: bool) -> None:
    found = run(method, prune=prune, quantise=quantise)
    assert found.error == pytest.approx(loss(found.values), rel=1e-3)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("quantise", [True, False])
def test_two_of_each_four_go(method: str, quantise: bool) -> None:
    fours = run(method, prune=True, quantise=quantise).values.reshape(-1, 4)
    assert ((fours != 0).sum(axis=1) <= 2).all()
    assert (fours != 0).mean() > (0.3 if quantise else 0.499)  # a code may be the zero point


@pytest.mark.parametrize(("prune", "quantise"), [(True, False), (False, True), (True, True)])
def test_compensation_loses_less(prune: bool, quantise: bool) -> None:
    """Inputs hang together, so that columns can make up for one another."""
    compensated = run("sparsegpt", prune=prune, quantise=quantise).error
    assert compensated < 0.8 * run("wanda", prune=prune, quantise=quantise).error


def test_a_single_row_of_four_is_pruned_as_the_best_of_all_pairs_where_inputs_are_independent() -> None:
    gram = np.diag(RNG.uniform(0.1, 10, 64)).astype(np.float32)
    weight = RNG.standard_normal((20, 64)).astype(np.float32)
    found = solve(weight, Gram(gram), prune=True, quantise=False, method="wanda").values
    for row, values in zip(weight, found, strict=True):
        for i in range(0, 64, 4):
            cost = {
                pair: sum(gram[i + j, i + j] * row[i + j] ** 2 for j in range(4) if j not in pair)
                for pair in combinations(range(4), 2)
            }
            best = min(cost, key=lambda pair: cost[pair])
            assert tuple(np.nonzero(values[i : i + 4])[0]) == best
            np.testing.assert_array_equal(values[i : i + 4][list(best)], row[i : i + 4][list(best)])


def test_pruning_with_compensation_is_near_the_least_squares_of_what_stays() -> None:
    """Or near it: what is done in one pass cannot take back what an early column passed on to one that went later."""
    found = run("sparsegpt", prune=True, quantise=False)
    best = np.zeros_like(WEIGHT, np.float64)
    for row, values in enumerate(found.values):
        kept = np.nonzero(values)[0]
        best[row, kept] = np.linalg.solve(
            GRAM[np.ix_(kept, kept)].astype(np.float64), (GRAM[kept] @ WEIGHT[row]).astype(np.float64)
        )
    assert loss(best) <= found.error <= 2 * loss(best)


def test_codes_are_the_nearest_of_four_levels() -> None:
    scale, zero = np.array([0.5, 0.25], np.float32), np.array([1, 2], np.uint8)
    values = RNG.uniform(-2, 2, (50, 2)).astype(np.float32)
    code, got = nearest(values, scale, zero)
    for i, j in product(range(50), range(2)):
        levels = (np.arange(4) - int(zero[j])) * scale[j]
        assert abs(got[i, j] - values[i, j]) == pytest.approx(np.abs(levels - values[i, j]).min())
        assert levels[code[i, j]] == got[i, j]


def test_the_scale_and_zero_point_are_about_the_best_there_are() -> None:
    """Against all zero points by scales in steps of 1%; and it clips, as the largest weight would round others to 0."""
    block = (RNG.standard_normal((64, 7)) ** 3).astype(np.float32)
    importance = RNG.uniform(0.1, 3, 64)

    def cost(scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        return ((nearest(block, scale, zero)[1] - block) ** 2 * importance[:, None]).sum(axis=0)

    scale, zero = clipped_scale(block, np.ones_like(block, bool), importance)
    steps = [np.full(7, s, np.float32) for s in np.geomspace(0.05, 10, 500)]
    best = np.min([cost(s, np.full(7, z, np.uint8)) for s in steps for z in range(4)], axis=0)
    assert (cost(scale, zero) < 1.05 * best).all()
    assert (scale * np.maximum(zero, 3 - zero) < 0.9 * np.abs(block).max(axis=0)).mean() > 0.5


def test_pruned_weights_have_no_say_in_the_scale() -> None:
    block = RNG.standard_normal((64, 3)).astype(np.float32)
    kept = kept_of_four(block, np.ones(64))
    other = np.where(kept, block, 100 * block).astype(np.float32)
    np.testing.assert_array_equal(clipped_scale(block, kept, np.ones(64)), clipped_scale(other, kept, np.ones(64)))


def test_columns_that_no_input_reaches_cost_nothing() -> None:
    gram = GRAM.copy()
    gram[64:80] = 0
    gram[:, 64:80] = 0
    found = solve(WEIGHT, Gram(gram), prune=True, quantise=True, method="sparsegpt")
    assert np.isfinite(found.values).all()
    assert found.error < 0.5


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_a_matrix_of_zeros_stays_one(method: str) -> None:
    found = solve(np.zeros((4, 64), np.float32), Gram(GRAM[:64, :64]), prune=True, quantise=True, method=method)  # type: ignore[arg-type]
    assert not found.values.any()
    assert found.codes is not None
    assert len(found.codes.to_bytes()) == 4 * 20


def test_a_token_that_is_a_thousand_times_as_large_does_not_decide_alone() -> None:
    loud = INPUTS.copy()
    loud[0] = 1000 * RNG.standard_normal(N_IN)
    median = np.median((INPUTS**2).sum(axis=1))
    share = ((loud[0] / np.linalg.norm(loud[0])) ** 2).sum() * 4 * median
    assert Gram.of(loud).diagonal.sum() == pytest.approx(Gram.of(INPUTS[1:]).diagonal.sum() + share, rel=0.01)
    quiet = INPUTS / np.linalg.norm(INPUTS, axis=1, keepdims=True)
    np.testing.assert_allclose(Gram.of(quiet).values, quiet.T @ quiet, rtol=1e-4, atol=1e-3)
