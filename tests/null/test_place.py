"""Placement by cost over fake devices: pins, refusals, copies, memory, saved plans."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hetrun.errors import DeviceError, PlanError, PluginError, UsageError
from hetrun.ops import VALUE_BYTES, Workload
from hetrun.plan.cost import CostTable
from hetrun.plan.place import Pin, Request, check_plan, make_plan
from hetrun.plan.plan import Plan
from hetrun.plan.segment import cut, runs

from .fakes import fake, link
from .graphs import llama_graph


@pytest.fixture
def graph():
    return llama_graph(n_layers=3)


def devices_of(plan, phase="decode"):
    return {a.op: a.device for a in plan.assignments(phase)}


def test_all_ops_go_to_the_cheaper_device(graph):
    plan = make_plan(graph, [fake("slow", default_s=1.0), fake("fast", default_s=0.1)], Request())
    assert set(devices_of(plan).values()) == {"fast:0"}
    assert plan.used_devices == ("fast:0",)


def test_ops_that_the_main_device_refuses_go_to_the_cheapest_other(graph):
    main = fake("main", default_s=0.1, refuses={"rope": "no sines", "attention": "no cache"})
    plan = make_plan(graph, [main, fake("dear", default_s=5.0), fake("cheap", default_s=3.0)], Request())
    placed = devices_of(plan)
    assert {op: d for op, d in placed.items() if d != "main:0"} == {
        f"blk.{i}.{n}": "cheap:0" for i in range(3) for n in ("attn_q_rope", "attn_k_rope", "attn")
    }
    rope = next(a for a in plan.decode if a.op == "blk.0.attn_q_rope")
    assert {c.device: c.refusal for c in rope.candidates}["main:0"] == "no sines"


def test_copies_can_outweigh_a_faster_device(graph):
    accelerator = {"seconds": {"matmul": 1e-6}, "refuses": {k: "matmul only" for k in (
        "embedding", "rms_norm", "rope", "attention", "gated_activation", "add", "select_rows")}}  # fmt: skip
    host = fake("host", default_s=1e-4)
    near = make_plan(graph, [host, fake("near", link=link(1e-9), **accelerator)], Request())
    far = make_plan(graph, [host, fake("far", link=link(1.0), **accelerator)], Request())
    assert set(near.used_devices) == {"host:0", "near:0"}
    assert far.used_devices == ("host:0",)


def test_launches_count(graph):
    helper = {"seconds": {"rope": 0.0}, "default_s": 1e-3}
    host = fake("host", default_s=1e-3, refuses={"rope": "none"})
    plan = make_plan(graph, [host, fake("r", launch_s=0.5, **helper)], Request())
    assert plan.predicted["decode"].launch_s == pytest.approx(0.5)  # once, though six ropes call for that device


def test_price_is_ops_launches_and_each_copy_once(graph):
    host, card = fake("host", launch_s=0.25, default_s=0.0), fake("card", link=link(1.0, 1e30), default_s=0.0)
    table = CostTable.ask(graph, Workload(1, 0), [host, card])
    placement = ["card:0" if op.name in ("blk.1.attn_q", "blk.1.attn_k") else "host:0" for op in graph.ops]
    cost = table.price(placement)
    # The norm goes up once for both matmuls, q and k come down: three copies of latency 1.
    assert cost.copy_s == pytest.approx(3.0)
    assert cost.launch_s == pytest.approx(0.5)
    assert cost.n_segments == 3


def test_logits_made_on_a_card_come_down(graph):
    card = fake("card", link=link(0.0, 1e6), default_s=0.0)
    cost = CostTable.ask(graph, Workload(1, 0), [card]).price(["card:0"] * len(graph.ops))
    assert cost.copy_s == pytest.approx(VALUE_BYTES * graph.n_vocab / 1e6)


def test_pins_choose_the_device_and_the_later_one_wins(graph):
    pins = [Pin.parse("blk.*.ffn_*=b"), Pin.parse("blk.1.*=a")]
    plan = make_plan(graph, [fake("a", default_s=0.1), fake("b", default_s=9.0)], Request(), pins)
    placed = devices_of(plan)
    assert {op for op, d in placed.items() if d == "b:0"} == {
        a for a in placed if a.startswith(("blk.0.ffn", "blk.2.ffn"))
    }
    assert {a.reason for a in plan.decode if a.device == "b:0"} == {"pinned"}


@pytest.mark.parametrize(
    ("pin", "error", "message"),
    [
        ("blk.*.fnn_up=a", PlanError, "matches no op.*ffn_up"),
        ("blk.*.ffn_up=c", DeviceError, "no device 'c'"),
        ("blk.*.attn=a", PlanError, "pinned to a:0, which refuses it: no cache"),
    ],
)
def test_pins_that_cannot_be_met_are_named(graph, pin, error, message):
    with pytest.raises(error, match=message):
        make_plan(graph, [fake("a", refuses={"attention": "no cache"}), fake("b")], Request(), [Pin.parse(pin)])


@pytest.mark.parametrize("text", ["blk.*", "=a", "blk.*=", ""])
def test_a_pin_has_a_pattern_and_a_device(text):
    with pytest.raises(UsageError, match="PATTERN=DEVICE"):
        Pin.parse(text)


def test_an_op_that_nobody_runs_gives_every_reason(graph):
    both = [fake("a", refuses={"rope": "no sines"}), fake("b", refuses={"rope": "not today"})]
    with pytest.raises(PlanError, match=r"a:0: no sines; b:0: not today"):
        make_plan(graph, both, Request())


def test_memory_is_a_hard_limit_and_the_error_names_the_cache(graph):
    with pytest.raises(PlanError, match=r"host memory holds .* MB .*KV cache.*--ctx"):
        make_plan(graph, [fake("a", capacity=1000)], Request())


def test_weights_shared_by_two_ops_count_once(graph):
    plan = make_plan(graph, [fake("a")], Request())
    weights = sum(w.nbytes for w in graph.weights.values())
    assert plan.memory == {"host": weights + sum(kv.nbytes for kv in graph.kv_specs.values())}


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, float("inf")])
def test_a_cost_that_is_none_is_the_plugins_fault(graph, seconds):
    with pytest.raises(PluginError, match=r"a:0.*is no cost.*conformance"):
        make_plan(graph, [fake("a", default_s=seconds)], Request())


def test_an_estimate_that_raises_is_the_plugins_fault(graph):
    device = fake("a")
    device.driver.seconds = None
    with pytest.raises(PluginError, match="raised AttributeError"):
        make_plan(graph, [device], Request())


def test_a_plan_survives_saving(graph):
    plan = make_plan(graph, [fake("a"), fake("b", refuses={"rope": "no"})], Request())
    again = Plan.from_json(json.dumps(plan.to_json()))
    assert again == plan
    check_plan(again, graph, [fake("a"), fake("b")])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}', "null", '{"format": 1, "model": 3}']
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(PlanError, match="plan"):
        Plan.from_json(text, "file.json")


def test_a_plan_for_other_things_is_refused(graph):
    devices = [fake("a"), fake("b")]
    plan = make_plan(graph, devices, Request())
    with pytest.raises(PlanError, match="another model"):
        check_plan(plan, llama_graph(n_layers=2), devices)
    with pytest.raises(DeviceError, match="no device 'a:0'"):
        check_plan(plan, graph, devices[1:])
    with pytest.raises(PlanError, match="every op"):
        check_plan(replace(plan, decode=plan.decode[1:]), graph, devices)
    with pytest.raises(PlanError, match="refuses it: no sines"):
        check_plan(plan, graph, [fake("a", refuses={"rope": "no sines"})])
    moved = tuple(replace(a, device="b:0") if a.op == "blk.0.attn" else a for a in plan.decode)
    with pytest.raises(PlanError, match="both phases"):
        check_plan(replace(plan, decode=moved), graph, devices)


def test_runs_are_maximal():
    assert runs(["a", "a", "b", "a"]) == [("a", 0, 2), ("b", 2, 3), ("a", 3, 4)]


def test_segments_list_exactly_the_values_that_cross(graph):
    placement = ["b:0" if ".ffn_" in op.name else "a:0" for op in graph.ops]
    segments = cut(graph, placement, max_tokens=7, max_outputs=3)
    assert [op for _, s in segments for op in s.ops] == list(graph.ops)
    available = {}
    for device, segment in segments:
        made = {op.name for op in segment.ops}
        needed = {v.name for op in segment.ops for v in op.inputs} - made
        assert {v.name for v in segment.inputs} == needed
        assert needed <= set(available)
        available.update({v.name: device for v in segment.outputs})
    assert segments[-1][1].outputs == (graph.output,)
    assert segments[0][1].value_bytes(segments[0][1].outputs[0]) == 4 * 64 * 7


def test_a_graph_on_one_device_is_one_segment(graph):
    [(device, segment)] = cut(graph, ["a:0"] * len(graph.ops), 8, 1)
    assert (device, segment.inputs, segment.outputs) == ("a:0", (), (graph.output,))


def test_request_counts_prefill_chunks_and_tokens():
    request = Request(prompt_tokens=1000, gen_tokens=10, max_tokens=512)
    assert request.total_seconds(prefill_s=2.0, decode_s=0.5) == 2 * 2.0 + 10 * 0.5
    assert request.workload("decode") == Workload(1, 1005, 1, 1)


def test_every_candidate_keeps_its_cost(graph):
    plan = make_plan(graph, [fake("a", default_s=1.0), fake("b", default_s=2.0)], Request())
    first = plan.decode[0]
    assert first.chosen is not None and first.chosen.seconds == pytest.approx(1.0)
    assert first.runner_up is not None and first.runner_up.device == "b:0"
