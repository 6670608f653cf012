"""Objectives: each plan is the least in what it was made for; energy needs power; a rate is kept."""

from __future__ import annotations

import pytest

from hetrun.errors import PlanError, UsageError
from hetrun.plan.boards import NETWORK, boards_for
from hetrun.plan.place import Request, Task, make_plan
from hetrun.plan.plan import PHASES

from .fakes import fake, link
from .graphs import llama_graph


@pytest.fixture
def graph():
    return llama_graph(n_layers=4)


def both(**slow):
    """A fast device that takes much power, and a slow one that takes little."""
    return [fake("fast", default_s=1e-4, watts=100.0), fake("slow", default_s=1e-3, watts=1.0, **slow)]


def test_latency_takes_the_fast_energy_the_frugal(graph):
    assert make_plan(graph, both(), Request()).used_devices == ("fast:0",)
    plan = make_plan(graph, both(), Request(objective="energy"))
    assert plan.used_devices == ("slow:0",)
    decode = plan.predicted["decode"]
    assert decode.joules == pytest.approx(1.0 * decode.total_s)


def test_a_rate_is_kept_with_the_least_energy(graph):
    slow, fast = (make_plan(graph, [d], Request()).predicted["decode"].total_s for d in reversed(both()))
    target = 2 / (slow + fast)
    plan = make_plan(graph, both(), Request(objective="energy", target_tps=target))
    decode = plan.predicted["decode"]
    assert decode.total_s <= (slow + fast) / 2
    assert set(plan.used_devices) == {"fast:0", "slow:0"}
    frugal, hasty = (make_plan(graph, [d], Request()).predicted["decode"].joules for d in reversed(both()))
    assert frugal < decode.joules < hasty
    assert plan.gap < 0.1


def test_time_to_first_token_counts_the_prompt_alone(graph):
    """One device is fast at prompts, the other at single tokens; its KV cache binds attention alone."""

    class Prompts(type(fake("x").driver)):
        def estimate(self, info, op, workload):
            cost = super().estimate(info, op, workload)
            scale = 0.01 if workload.n_tokens > 1 else 100.0
            return type(cost)(cost.seconds * scale, cost.basis, None, cost.resident)

    a, b = fake("a"), fake("b")
    object.__setattr__(a, "driver", Prompts("a"))
    request = {"prompt_tokens": 8, "gen_tokens": 10_000}
    first = make_plan(graph, [a, b], Request(objective="ttft", **request))
    whole = make_plan(graph, [a, b], Request(**request))
    assert {x.device for x in first.prefill} == {"a:0"}
    assert {x.device for x in first.decode if not x.op.endswith("attn")} == {"b:0"}
    assert first.predicted["prefill"].total_s < whole.predicted["prefill"].total_s
    assert whole.predicted["decode"].total_s < first.predicted["decode"].total_s


def test_energy_without_power_is_an_error_that_names_the_device(graph):
    with pytest.raises(PlanError, match=r"b:0 tells no energy.*watts"):
        make_plan(graph, [fake("a", watts=1.0), fake("b")], Request(objective="energy"))
    assert (
        make_plan(graph, [fake("a", watts=1.0), fake("b", default_s=1e-6)], Request()).predicted["decode"].joules
        is None
    )


def test_copies_take_the_power_of_the_device_behind_the_link(graph):
    card = fake("card", watts=50.0, link=link(0.1, 1e30), default_s=0.0)
    task = Task.of(graph, [card], Request())
    cost = task.plan(dict.fromkeys(PHASES, ("card:0",) * len(graph.ops))).predicted["decode"]
    assert cost.joules == pytest.approx(50.0 * 0.1)  # the logits


@pytest.mark.parametrize("request_", [{"objective": "speed"}, {"target_tps": 0.0}, {"target_tps": float("nan")}])
def test_what_cannot_be_asked_for(request_):
    with pytest.raises(UsageError):
        Request(**request_)


def test_a_long_prompt_is_priced_by_its_mean_step():
    workload = Request(prompt_tokens=1100, max_tokens=512).workload("prefill")
    assert (workload.n_tokens, workload.n_past) == (367, 366)


def test_boards_hold_what_one_cannot(graph):
    whole = sum(w.nbytes for w in graph.weights.values()) + sum(kv.nbytes for kv in graph.kv_specs.values())
    one = Task.of(graph, [fake("a")], Request())
    boards = boards_for(Task.of(graph, [fake("a", capacity=whole // 2)], Request()))
    assert boards.n in (2, 3)  # the embedding's table is on the first board and on the last
    alone_s = one.solve().predicted["decode"].total_s
    assert boards.step_s["decode"] == pytest.approx(alone_s + (boards.n - 1) * NETWORK.seconds(4 * 64))
    assert boards_for(one).n == 1
    assert boards_for(Task.of(graph, [fake("a", capacity=1000)], Request())) is None
