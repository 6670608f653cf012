"""HiGHS as a second opinion on the solver, with and without limits: another model of the same costs, other code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import require

from hetrun.errors import PlanError
from hetrun.plan import milp
from hetrun.plan.cost import Terms
from hetrun.plan.fit import STEP, Fit, Misfit, Problem, fit
from hetrun.plan.place import Request, make_plan

from .fakes import fake, link
from .graphs import llama_graph
from .test_fit import RandomSizes, solved
from .test_solve import allowed_of, random_devices, random_graph, random_terms, tables_of


@pytest.fixture(autouse=True)
def highs():
    require.require_module("highspy", "pip install 'hetrun[milp]'")


def larger_problem(seed, n_ops=24, limits=None):
    """Four devices on a graph too large for brute force."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, n_ops)
    devices = random_devices(rng, 4, graph)
    for device in devices:
        object.__setattr__(device, "driver", RandomSizes(rng, device.driver.refusals))
    tables = tables_of(graph, devices)
    spaces = sorted({s.name for d in devices for s in d.info.spaces})
    capacity = {s: int(rng.integers(*limits)) if limits else 1 << 30 for s in spaces}
    return Problem(tables, allowed_of(tables), random_terms(rng), capacity)


def agree(problem):
    """HiGHS's answer, once it is seen to agree with the solver's."""
    ours, theirs = fit(problem), milp.solve(problem)
    assert isinstance(ours, Fit) == isinstance(theirs, Fit)
    if isinstance(theirs, Fit):
        assert problem.fits(theirs.placements)
        assert theirs.gap <= 1e-5
        assert ours.bound <= theirs.cost * (1 + 1e-5)
        assert theirs.cost <= ours.cost * (1 + 1e-5)
        if ours.gap == 0.0:
            assert theirs.cost == pytest.approx(ours.cost, rel=1e-5)
    return theirs


@pytest.mark.parametrize("seed", range(8))
def test_the_solver_is_best_on_random_graphs(seed):
    problem = larger_problem(seed)
    assert fit(problem).gap == 0.0
    assert isinstance(agree(problem), Fit)


def test_the_solver_is_best_on_a_model():
    graph = llama_graph(n_layers=4)
    tables = tables_of(graph, random_devices(np.random.default_rng(3), 3, graph))
    limits = {s.name: 1 << 40 for d in tables["decode"].devices for s in d.spaces}
    agree(Problem(tables, allowed_of(tables), {"prefill": Terms(1.0), "decode": Terms(32.0)}, limits))


@pytest.mark.parametrize("seed", range(40))
def test_highs_is_best_under_limits(seed):
    """Against brute force."""
    problem, expected = solved(seed)
    found = agree(problem)
    if expected is None:
        assert found.proven
    else:
        assert found.cost == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_what_highs_can_place_the_solver_places(seed):
    agree(larger_problem(100 + seed, n_ops=15, limits=(5, 35)))


@pytest.mark.parametrize("seed", range(8))
def test_the_least_energy_at_a_rate(seed):
    problem = larger_problem(200 + seed, n_ops=14)
    fastest = fit(problem.fastest)
    frugal = fit(replace(problem, terms={"prefill": Terms(0.0, 1.0), "decode": Terms(0.0, 8.0)}))
    steps = [problem.tables["decode"].price(f.placements["decode"]).total_s for f in (fastest, frugal)]
    limit_s = (steps[0] + 2 * steps[1]) / 3
    energy = replace(
        problem, terms={"prefill": Terms(0.0, 1.0), "decode": Terms(0.0, 8.0)}, limits={**problem.limits, STEP: limit_s}
    )
    found = agree(energy)
    assert energy.tables["decode"].price(found.placements["decode"]).total_s <= limit_s * (1 + 1e-6)
    assert fit(energy).gap < 0.6


def test_a_rate_beyond_the_fastest_is_impossible():
    problem = larger_problem(7, n_ops=14)
    fastest_s = fit(problem.fastest).cost
    problem = replace(problem, limits={**problem.limits, STEP: 0.99 * fastest_s})
    for found in (fit(problem), milp.solve(problem)):
        assert isinstance(found, Misfit) and found.used[STEP] == pytest.approx(fastest_s)


def test_milp_closes_the_gap_of_prices():
    graph = llama_graph(n_layers=6)
    total = sum(w.nbytes for w in graph.weights.values())
    devices = [fake("host"), fake("card", default_s=1e-4, capacity=total // 2, link=link(1e-5, 1e9))]
    rough, best = make_plan(graph, devices, Request()), make_plan(graph, devices, Request(), solver="milp")
    assert best.gap < 1e-5 < rough.gap
    costs = [p.predicted["prefill"].total_s + 128 * p.predicted["decode"].total_s for p in (best, rough)]
    assert costs[0] <= costs[1] <= costs[0] * (1 + rough.gap) + 1e-9


def test_without_highs_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(milp, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"HiGHS is not installed.*hetrun\[milp\]"):
        make_plan(llama_graph(n_layers=1), [fake("a")], Request(), solver="milp")
    assert make_plan(llama_graph(n_layers=1), [fake("a")], Request()).gap == 0.0
