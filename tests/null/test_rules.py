"""Pins, forbids, and why there is no placement: which op, which device, and the least that would make one."""

from __future__ import annotations

import pytest

from hetrun.errors import DeviceError, PlacementError, PlanError, UsageError
from hetrun.plan.place import Forbid, Pin, Request, make_plan

from .fakes import fake, link
from .graphs import llama_graph


@pytest.fixture
def graph():
    return llama_graph(n_layers=2)


def weight_bytes(graph, part):
    return sum(w.nbytes for n, w in graph.weights.items() if part in n)


def test_forbidden_ops_run_elsewhere(graph):
    both = [fake("a", default_s=1e-6), fake("b")]
    plan = make_plan(graph, both, Request(), [Forbid.parse("blk.*.ffn_*=a")])
    assert {a.op for a in plan.decode if a.device == "b:0"} == {op.name for op in graph.ops if ".ffn_" in op.name}


def test_the_one_that_is_left_must_take_the_op(graph):
    both = [fake("a"), fake("b", refuses={"rope": "no sines"})]
    with pytest.raises(PlanError) as raised:
        make_plan(graph, both, Request(), [Forbid.parse("*rope=a")])
    said = "no device runs blk.0.attn_q_rope (rope): b:0: no sines; a:0: forbidden by --forbid '*rope=a'"
    assert raised.value.message == said
    assert "drop --forbid '*rope=a'" in raised.value.remedy


def test_a_pin_and_a_forbid_that_contradict_each_other(graph):
    rules = [Pin.parse("*ffn_up=a"), Forbid.parse("blk.1.*=a")]
    with pytest.raises(PlanError, match=r"blk.1.ffn_up is pinned to a:0 by --pin .*and --forbid 'blk.1.\*=a' forbids"):
        make_plan(graph, [fake("a"), fake("b")], Request(), rules)


def test_a_pin_to_a_device_that_refuses_names_op_device_and_pin(graph):
    with pytest.raises(PlanError) as raised:
        make_plan(graph, [fake("a"), fake("b", refuses={"rope": "no sines"})], Request(), [Pin.parse("blk.0.*=b")])
    assert raised.value.message == "blk.0.attn_q_rope is pinned to b:0, which refuses it: no sines"
    assert "--pin 'blk.0.*=b'" in raised.value.remedy


@pytest.mark.parametrize("rule", [Pin, Forbid])
def test_rules_that_name_nothing(graph, rule):
    with pytest.raises(PlanError, match=r"'blk.9.\*' matches no op"):
        make_plan(graph, [fake("a")], Request(), [rule.parse("blk.9.*=a")])
    with pytest.raises(DeviceError, match="no device 'x'"):
        make_plan(graph, [fake("a")], Request(), [rule.parse("*=x")])
    with pytest.raises(UsageError, match=f"{rule.option[2:]} 'a' is not PATTERN=DEVICE"):
        rule.parse("a")


def test_a_pin_beyond_the_memory_is_named_with_what_is_missing(graph):
    needed = weight_bytes(graph, "ffn_") - weight_bytes(graph, "ffn_norm")
    card = fake("card", capacity=needed - 1000, link=link())
    pins = [Pin.parse("blk.*.attn_norm=host"), Pin.parse("blk.*.ffn_[gud]*=card")]
    with pytest.raises(PlacementError) as raised:
        make_plan(graph, [fake("host"), card], Request(), pins)
    assert "card:0/ram memory holds" in raised.value.message
    assert "blk.0.ffn_gate and 5 more are pinned to card" in raised.value.message
    assert "drop --pin 'blk.*.ffn_[gud]*=card', or 1000 bytes more of card:0/ram would do" in raised.value.remedy


def test_a_forbid_that_leaves_too_little_memory_is_named(graph):
    devices = [fake("host"), fake("card", capacity=1000, link=link())]
    with pytest.raises(PlacementError) as raised:
        make_plan(graph, devices, Request(), [Forbid.parse("output=host")])
    assert "output is kept off host" in raised.value.message
    assert raised.value.remedy.startswith("drop --forbid 'output=host', or ")


def test_the_bytes_that_are_missing_are_the_fewest(graph):
    """With them there is a plan, with one fewer there is none."""
    total = sum(w.nbytes for w in graph.weights.values()) + sum(kv.nbytes for kv in graph.kv_specs.values())
    with pytest.raises(PlacementError, match="500 bytes more of card:0/ram would do"):
        make_plan(graph, [fake("card", capacity=total - 500, link=link())], Request())
    make_plan(graph, [fake("card", capacity=total, link=link())], Request())


def test_a_rate_beyond_the_devices_tells_the_fastest(graph):
    device = fake("a", default_s=1e-3)
    fastest = 1 / (1e-3 * len(graph.ops))
    with pytest.raises(PlacementError) as raised:
        make_plan(graph, [device], Request(target_tps=2 * fastest))
    assert f"decodes {2 * fastest:.4g} tokens/s: the fastest plan is predicted {fastest:.4g}" in raised.value.message
    make_plan(graph, [device], Request(target_tps=fastest))


def test_the_rule_that_keeps_a_rate_out_of_reach_is_named(graph):
    devices = [fake("slow", default_s=1e-2), fake("fast", default_s=1e-4)]
    with pytest.raises(PlacementError, match=r"output is pinned to slow.*drop --pin 'output=slow'"):
        make_plan(graph, devices, Request(target_tps=150), [Pin.parse("output=slow")])
