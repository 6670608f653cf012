"""Explanations against the price of the whole placement with that one op moved."""

from __future__ import annotations

import numpy as np
import pytest

from hetrun.plan.explain import Explanation
from hetrun.plan.place import Forbid, Pin, Request, Task
from hetrun.plan.plan import PHASES

from .fakes import fake, link
from .graphs import llama_graph
from .test_solve import random_devices, random_graph


@pytest.mark.parametrize("seed", range(10))
def test_a_move_costs_what_the_price_of_the_whole_says(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, 9)
    devices = random_devices(rng, 3, graph)
    task = Task.of(graph, devices, Request())
    placements = {p: tuple(str(rng.choice(ids)) for ids in task.problem.allowed) for p in PHASES}
    explanation = Explanation(task, placements)
    for phase, table in task.problem.tables.items():
        before = table.price(placements[phase])
        for i, ids in enumerate(task.problem.allowed):
            for device in ids:
                changed = list(placements[phase])
                changed[i] = device
                after, moved = table.price(changed), explanation.moved(phase, i, device)
                assert moved.total_s == pytest.approx(after.total_s - before.total_s, abs=1e-9)
                assert moved.copy_s == pytest.approx(after.copy_s - before.copy_s, abs=1e-9)
                assert moved.joules == pytest.approx(after.joules - before.joules, abs=1e-9)


def reasons(devices, op, rules=(), **request):
    task = Task.of(llama_graph(n_layers=1), devices, Request(**request), rules)
    found = task.fit()
    number = [o.name for o in task.problem.tables["decode"].graph.ops].index(op)
    return Explanation(task, found.placements).reasons("decode", number)


def test_each_other_device_has_its_reason():
    lines = reasons([fake("a", default_s=1e-4), fake("b"), fake("c", refuses={"matmul": "no"})], "blk.0.attn_q")
    assert lines == ["b:0 is dearer: 1 ms there, 100 us here", "c:0 refuses it: no"]


def test_copies_and_launches_are_named_where_they_decide():
    far = fake("far", default_s=1e-6, refuses={"add": "no"}, link=link(0.5))
    [line] = reasons([fake("near", default_s=1e-3, launch_s=1e-3), far], "blk.0.attn_q")
    assert line.startswith("far:0 is dearer: 1 us there, 1 ms here, and launches and copies add ")


def test_rules_are_reasons():
    pin, forbid = Pin.parse("*attn_q=b"), Forbid.parse("*attn_k=b")
    both = [fake("a"), fake("b", default_s=1e-6)]
    assert reasons(both, "blk.0.attn_q", [pin]) == ["pinned by --pin '*attn_q=b'"]
    assert reasons(both, "blk.0.attn_k", [forbid]) == ["b:0: --forbid '*attn_k=b'"]


def test_a_full_memory_is_a_reason():
    card = fake("card", default_s=1e-9, capacity=6000, link=link(1e-9, 1e12))
    lines = reasons([fake("host"), card], "output")
    assert lines[0].startswith("card:0 has no room left in card:0/ram")


def test_one_device_needs_no_reason():
    assert reasons([fake("a")], "blk.0.attn_q") == ["there is no other device"]
