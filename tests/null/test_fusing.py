"""Devices that join ops of a run: what plans with them cost, and which are found."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from null.fakes import FakeDriver, fake
from null.graphs import llama_graph

from hetrun.device import Cost, Workload
from hetrun.errors import PluginError
from hetrun.plan.cost import CostTable, Terms
from hetrun.plan.fit import Problem, fit
from hetrun.plan.place import Pin, Request, Task, make_plan
from hetrun.plan.plan import PHASES

WORKLOADS = {"prefill": Workload(6, 0), "decode": Workload(1, 6)}
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_act")


class Joins(FakeDriver):
    """Gate, up and activation of a layer, where a run has all three, take `joined` of what they take alone."""

    joined = 0.25

    def fuse(self, info, segment, workload):
        found = {}
        names = {op.name for op in segment.ops}
        for op in segment.ops:
            block = [op.name.replace("ffn_act", name) for name in FEED_FORWARD]
            if op.kind == "gated_activation" and names.issuperset(block):
                for part in (o for o in segment.ops if o.name in block):
                    cost = self.estimate(info, part, workload)
                    found[part.name] = dataclasses.replace(cost, seconds=self.joined * cost.seconds)
        return found


def joining(name, **options):
    device = fake(name, **options)
    seconds, default_s = device.driver.seconds, device.driver.default_s
    return dataclasses.replace(device, driver=Joins(name, seconds, default_s, device.driver.refuses))


def devices_of(plan, graph, phase="decode"):
    return {op.name: a.device for op, a in zip(graph.ops, plan.assignments(phase), strict=True)}


def test_what_is_cheap_only_together_is_found():
    """Each op alone costs twice what it does on the other device, all three half of it."""
    graph = llama_graph()
    slow = joining("joins", default_s=2e-3)
    plan = make_plan(graph, [fake("plain"), slow], Request())
    placed = devices_of(plan, graph)
    assert {d for name, d in placed.items() if name.endswith(FEED_FORWARD)} == {"joins:0"}
    assert {d for name, d in placed.items() if not name.endswith(FEED_FORWARD)} == {"plain:0"}
    others = len(graph.ops) - 2 * len(FEED_FORWARD)
    assert plan.predicted["decode"].ops_s == pytest.approx(others * 1e-3 + 2 * 3 * 0.5e-3)
    assert plan.gap == 0.0


@pytest.mark.parametrize("elsewhere", FEED_FORWARD)
def test_a_part_of_it_costs_what_its_ops_do_alone(elsewhere):
    graph = llama_graph()
    table = CostTable.ask(graph, Workload(1, 0), [fake("plain"), joining("joins")])
    whole = table.price(["joins:0"] * len(graph.ops)).ops_s
    parted = ["plain:0" if op.name.endswith(elsewhere) else "joins:0" for op in graph.ops]
    assert whole == pytest.approx((len(graph.ops) - 2 * 3 * 0.75) * 1e-3)
    assert table.price(parted).ops_s == pytest.approx(len(graph.ops) * 1e-3)


def test_a_rule_that_parts_it_is_known_before_placing():
    """Up is pinned away, so that gate and activation are no cheaper here than there."""
    graph = llama_graph()
    plan = make_plan(graph, [fake("plain"), joining("joins", default_s=2e-3)], Request(), [Pin("*ffn_up", "plain:0")])
    assert set(devices_of(plan, graph).values()) == {"plain:0"}
    gate = next(a for a in plan.decode if a.op.endswith("ffn_gate"))
    assert [c.seconds for c in gate.candidates] == [1e-3, 2e-3]


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_below_every_placement_and_met_where_nothing_is_parted(seed):
    """Brute force over the ops of a feed-forward block; the rest is on one device."""
    rng = np.random.default_rng(seed)
    graph = llama_graph(n_layers=1)
    kinds = {op.kind for op in graph.ops}
    devices = [
        make(name, launch_s=float(rng.exponential(1e-3)), seconds={k: float(rng.exponential(1e-3)) for k in kinds})
        for name, make in (("plain", fake), ("joins", joining))
    ]
    free = ("blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_act", "blk.0.ffn_down")
    allowed = [["plain:0", "joins:0"] if op.name in free else ["plain:0"] for op in graph.ops]
    tables = {phase: CostTable.ask(graph, WORKLOADS[phase], devices).fused(allowed) for phase in PHASES}
    problem = Problem(tables, allowed, dict.fromkeys(PHASES, Terms(1.0)), {"host": 1 << 50})
    found = fit(problem)
    costs = {phase: [tables[phase].price(p).total_s for p in itertools.product(*allowed)] for phase in PHASES}
    least = sum(min(costs[phase]) for phase in PHASES)
    assert found.bound <= least * (1 + 1e-9) and found.cost >= least * (1 - 1e-9)
    if found.gap == 0.0:
        assert found.cost == pytest.approx(least)
    parted = [len({p[i] for i, op in enumerate(graph.ops) if op.name in free[:3]}) for p in found.placements.values()]
    if parted == [1, 1]:
        assert found.gap == 0.0


def test_a_device_that_was_measured_is_not_fused():
    """What calibrating found of its ops holds."""

    class Measured:
        def cost(self, answer, *_):
            return answer

    graph = llama_graph()
    device = joining("joins")
    everywhere = ["joins:0"] * len(graph.ops)
    alone_s = len(graph.ops) * 1e-3
    assert CostTable.ask(graph, Workload(1, 0), [device]).price(everywhere).ops_s < alone_s
    measured = dataclasses.replace(device, calibration=Measured())
    assert CostTable.ask(graph, Workload(1, 0), [measured]).price(everywhere).ops_s == pytest.approx(alone_s)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"blk.0.ffn_act": Cost(1.0, "analytic:test")}, "blk.0.ffn_act takes 1.0 seconds, more than the 0.001"),
        ({"blk.0.ffn_act": Cost(-1.0, "analytic:test")}, "is no cost: -1.0 seconds"),
        ({"elsewhere": Cost(0.0, "analytic:test")}, "elsewhere is no op of the run"),
        (None, "fuse of .* raised AttributeError"),
    ],
)
def test_what_cannot_be_is_the_plugins_fault(wrong, words, monkeypatch):
    device = joining("joins")
    monkeypatch.setattr(Joins, "fuse", lambda *_: dict(wrong.items()))
    with pytest.raises(PluginError, match=words):
        Task.of(llama_graph(n_layers=1), [device], Request())
