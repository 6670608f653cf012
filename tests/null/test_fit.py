"""Placement under memory limits, against brute force on small graphs: what fits, its cost, and the proven bound."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from hetrun.device import Cost
from hetrun.errors import PlanError
from hetrun.ops import Attention
from hetrun.plan.fit import Fit, Misfit, Problem, fit
from hetrun.plan.place import Request, make_plan
from hetrun.plan.plan import PHASES

from .fakes import fake, link
from .graphs import llama_graph
from .test_solve import RandomDriver, allowed_of, random_devices, random_graph, random_terms, tables_of


class RandomSizes(RandomDriver):
    """Blocks of random size for every op that has a weight or a cache, in the device's own memory."""

    def estimate(self, info, op, workload):
        cost = super().estimate(info, op, workload)
        names = [w.name for w in op.weights] + ([op.kv.name] if isinstance(op, Attention) else [])
        if not isinstance(cost, Cost) or not names:
            return cost
        sizes = {(info.spaces[-1].name, n): 1 + hash_of(n, info.id) for n in names}
        return Cost(cost.seconds, cost.basis, cost.joules, sizes)


def hash_of(name, device):
    return sum(map(ord, name + device)) % 7


def random_problem(seed):
    rng = np.random.default_rng(seed)
    n_devices = int(rng.integers(2, 4))
    graph = random_graph(rng, int(rng.integers(5, 8 if n_devices == 3 else 10)))
    devices = random_devices(rng, n_devices, graph)
    for device in devices:
        object.__setattr__(device, "driver", RandomSizes(rng, device.driver.refusals))
    tables = tables_of(graph, devices)
    spaces = {s.name for d in devices for s in d.info.spaces}
    capacity = {s: int(rng.integers(0, 30)) for s in sorted(spaces)}
    return Problem(tables, allowed_of(tables), random_terms(rng), capacity)


def brute_force(problem):
    """The least cost of all pairs of placements that fit, or None. Attention is on one device in both phases."""
    graph = problem.tables["decode"].graph
    fixed = [i for i, op in enumerate(graph.ops) if isinstance(op, Attention)]
    priced = [
        (p, *(problem.terms[phase].of(problem.tables[phase].price(p)) for phase in PHASES))
        for p in itertools.product(*problem.allowed)
    ]
    best = None
    for prefill, prefill_cost, _ in priced:
        for decode, _, decode_cost in priced:
            cost = prefill_cost + decode_cost
            if (best is None or cost < best) and all(prefill[i] == decode[i] for i in fixed):
                placements = {"prefill": prefill, "decode": decode}
                best = cost if problem.fits(placements) else best
    return best


@cache
def solved(seed):
    """(a random problem, its least cost by brute force), found once for all tests."""
    problem = random_problem(seed)
    return problem, brute_force(problem)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_found_fits_and_its_bound_holds(seed):
    """Limits are drawn at random, and many problems are barely feasible: whatever is feasible must be found."""
    problem, expected = solved(seed)
    found = fit(problem)
    if expected is None:
        assert isinstance(found, Misfit) and found.proven
        return
    assert isinstance(found, Fit)
    assert problem.fits(found.placements)
    assert found.cost == pytest.approx(problem.cost(found.placements))
    assert found.bound <= expected + 1e-6 <= found.cost + 2e-6


def two_devices(card_bytes):
    """A slow host with room for all, and a fast card with little."""
    graph = llama_graph(n_layers=24)
    host = fake("host", default_s=1e-3)
    card = fake("card", default_s=1e-4, capacity=card_bytes, link=link(1e-5, 1e9))
    return graph, [host, card]


def test_a_card_takes_as_many_layers_as_it_holds():
    graph, devices = two_devices(card_bytes=0)
    all_bytes = sum(w.nbytes for w in graph.weights.values()) + sum(kv.nbytes for kv in graph.kv_specs.values())
    graph, devices = two_devices(card_bytes=all_bytes // 2)
    plan = make_plan(graph, devices, Request())
    used = plan.memory["card:0/ram"]
    assert 0.85 * all_bytes / 2 <= used <= all_bytes / 2
    assert 0 < plan.gap <= 0.05


def test_without_limits_the_plan_is_proven_best():
    graph, devices = two_devices(card_bytes=1 << 40)
    assert make_plan(graph, devices, Request()).gap == 0.0


def test_a_plan_under_limits_is_never_worse_than_a_device_alone():
    graph, devices = two_devices(card_bytes=100_000)
    plan = make_plan(graph, devices, Request())
    alone = make_plan(graph, devices[:1], Request())
    total = [
        Request().total_seconds(p.predicted["prefill"].total_s, p.predicted["decode"].total_s) for p in (plan, alone)
    ]
    assert total[0] <= total[1]


def test_no_plan_that_fits_names_the_space_and_what_would_help():
    graph = llama_graph(n_layers=4)
    with pytest.raises(
        PlanError, match=r"ram memory holds 1000 bytes.*needs at least 0.2 MB.*more of card:0/ram.*more devices"
    ):
        make_plan(graph, [fake("card", capacity=1000, link=link())], Request())
