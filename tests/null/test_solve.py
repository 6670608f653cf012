"""The solver against brute force: every placement of both phases, priced by `CostTable.price`, which is other code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from null.fakes import fake, link
from null.graphs import llama_graph

from hetrun.device import Cost, Unsupported
from hetrun.graph.graph import Graph
from hetrun.ops import Add, Attention, Embedding, KvSpec, MatMul, RmsNorm, SelectRows, Workload
from hetrun.plan.cost import CostTable, Terms
from hetrun.plan.plan import PHASES
from hetrun.plan.solve import cheapest
from hetrun.tensor import TENSOR_TYPES, Weight

F32 = TENSOR_TYPES["F32"]
WORKLOADS = {"prefill": Workload(6, 0), "decode": Workload(1, 6)}


class RandomDriver:
    """A cost for each (op, phase), drawn once; some ops are refused."""

    def __init__(self, rng, refusals):
        self.rng = rng
        self.refusals = refusals
        self.costs = {}

    def estimate(self, info, op, workload):
        key = (op.name, workload)
        if key not in self.costs:
            self.costs[key] = tuple(map(float, self.rng.exponential(1.0, 2)))
        seconds, joules = self.costs[key]
        return Unsupported("drawn so") if op.name in self.refusals else Cost(seconds, "analytic:test", joules)


def random_devices(rng, n, graph):
    """Device 0 runs everything, so that there is always a placement."""
    devices = []
    for i in range(n):
        behind = link(float(rng.exponential(0.5)), 1e3) if rng.random() < 0.6 else None
        watts = float(rng.exponential(1.0))
        device = fake(f"d{i}", launch_s=float(rng.exponential(0.5)), link=behind, watts=watts)
        refused = {op.name for op in graph.ops if i and rng.random() < 0.25}
        object.__setattr__(device, "driver", RandomDriver(rng, refused))
        devices.append(device)
    return devices


def random_graph(rng, n_ops):
    """Values are read by later ops at random, so that several are live at once and some never read."""
    ops = [Embedding("embd", Weight("t", F32, (12, 8)))]
    values = [ops[0].output]
    for i in range(n_ops - 3):
        a, b = (values[int(k)] for k in rng.integers(max(0, len(values) - 3), len(values), 2))
        kind = rng.integers(4)
        if kind == 0:
            op = RmsNorm(f"n{i}", a, Weight(f"n{i}.w", F32, (8,)), 1e-5)
        elif kind == 1:
            op = MatMul(f"m{i}", a, Weight(f"m{i}.w", F32, (8, 8)))
        elif kind == 2:
            op = Add(f"a{i}", a, b)
        else:
            op = Attention(f"t{i}", a, b, b, KvSpec(f"t{i}.kv", 1, 16, 2, 4), 1.0)
        ops.append(op)
        values.append(op.output)
    rows = SelectRows("rows", values[-1])
    return Graph((*ops, rows, MatMul("output", rows.output, Weight("head", F32, (12, 8)))))


def tables_of(graph, devices):
    return {phase: CostTable.ask(graph, WORKLOADS[phase], devices) for phase in PHASES}


def allowed_of(tables):
    first = tables["prefill"]
    return [[d for d, a in answers.items() if isinstance(a, Cost)] for answers in first.answers]


def random_terms(rng):
    """Of seconds, of joules, or of both; now and then of one phase alone."""
    counted = {"prefill": float(rng.integers(0, 3)), "decode": float(rng.integers(1, 9))}
    per_second, per_joule = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)][int(rng.integers(3))]
    return {phase: Terms(per_second * n, per_joule * n) for phase, n in counted.items()}


def total(tables, terms, placements):
    """What the objective counts, summed from the parts that `price` gives."""
    prices = {p: tables[p].price(placements[p]) for p in PHASES}
    seconds = sum(terms[p].per_second * (c.ops_s + c.launch_s + c.copy_s) for p, c in prices.items())
    return seconds + sum(terms[p].per_joule * c.joules for p, c in prices.items())


def brute_force(graph, tables, allowed, terms):
    """The least cost over all pairs of placements that agree on the attention ops."""
    fixed = [i for i, op in enumerate(graph.ops) if isinstance(op, Attention)]
    best = {}
    for phase in PHASES:
        by_fixed = {}
        for placement in itertools.product(*allowed):
            cost = terms[phase].of(tables[phase].price(placement))
            key = tuple(placement[i] for i in fixed)
            by_fixed[key] = min(cost, by_fixed.get(key, float("inf")))
        best[phase] = by_fixed
    return min(sum(best[p][key] for p in PHASES) for key in best["prefill"])


@pytest.mark.parametrize("seed", range(60))
def test_equal_to_brute_force(seed):
    rng = np.random.default_rng(seed)
    n_devices = int(rng.integers(1, 4))
    graph = random_graph(rng, int(rng.integers(4, 8 if n_devices == 3 else 11)))
    tables = tables_of(graph, random_devices(rng, n_devices, graph))
    allowed = allowed_of(tables)
    terms = random_terms(rng)
    placements = cheapest(tables, allowed, terms)
    for i, op in enumerate(graph.ops):
        assert all(placements[p][i] in allowed[i] for p in PHASES)
        if isinstance(op, Attention):
            assert placements["prefill"][i] == placements["decode"][i]
    found = total(tables, terms, placements)
    assert found == pytest.approx(brute_force(graph, tables, allowed, terms), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_never_worse_than_one_device_on_a_whole_model(seed):
    rng = np.random.default_rng(seed)
    graph = llama_graph(n_layers=6)
    devices = random_devices(rng, 4, graph)
    tables = tables_of(graph, devices)
    allowed = allowed_of(tables)
    terms = {"prefill": Terms(1.0), "decode": Terms(64.0)}
    placements = cheapest(tables, allowed, terms)
    found = total(tables, terms, placements)
    for device in devices:
        if all(device.info.id in ids for ids in allowed):
            alone = [device.info.id] * len(graph.ops)
            assert found <= total(tables, terms, dict.fromkeys(PHASES, alone)) + 1e-9


def test_equal_layers_are_solved_once(monkeypatch):
    import hetrun.plan.solve as solve

    solved = []
    original = solve._Phase.solve_block
    monkeypatch.setattr(solve._Phase, "solve_block", lambda self, a, b: solved.append((a, b)) or original(self, a, b))
    graph = llama_graph(n_layers=12)
    devices = [fake("a"), fake("b", link=link(1e-3), seconds={"matmul": 1e-4})]
    tables = tables_of(graph, devices)
    cheapest(tables, allowed_of(tables), dict.fromkeys(PHASES, Terms()))
    assert len(solved) <= 16  # of both phases; twelve layers have twenty-four halves in each


def test_memory_that_is_shared_is_copied_to_once():
    """Two devices on host memory and a card: what one of the two brought over serves the other."""
    graph = llama_graph(n_layers=1)
    devices = [fake("a", default_s=0.0), fake("b", default_s=0.0), fake("card", link=link(1.0, 1e30), default_s=0.0)]
    tables = tables_of(graph, devices)
    placement = [{"blk.0.attn_norm": "card:0", "blk.0.attn_k": "b:0"}.get(op.name, "a:0") for op in graph.ops]
    # the embedding up, the norm down once for q and v on a and k on b
    assert tables["decode"].price(placement).copy_s == pytest.approx(2.0)
    allowed = [[d] for d in placement]
    assert list(cheapest(tables, allowed, dict.fromkeys(PHASES, Terms()))["decode"]) == placement
