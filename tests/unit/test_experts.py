"""Feed-forward blocks that choose among experts: what they cost, where they may run, and what a malformed one is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from families import goldens, tokens, written

import hetrun_pynq_z1.driver
from hetrun.api import graph_of
from hetrun.device import Batch, Unsupported
from hetrun.errors import GraphError
from hetrun.model.architectures import GraphOptions
from hetrun.model.gguf_file import ModelFile
from hetrun.ops import Route, Value, Workload
from hetrun.plan.place import Pin, Request, make_plan
from hetrun.plugins import FoundDevice, Registry
from hetrun.reference.driver import ReferenceDriver
from hetrun.reference.ops import route
from hetrun.run.build import build
from hetrun.run.session import Session
from hetrun.testing.cases import experts_op, weight
from hetrun_cpu.driver import CpuDriver

N_EXPERTS, N_USED, N_IN, N_FF = 8, 2, 64, 96
OP = experts_op("Q8_0", N_EXPERTS, N_USED, N_IN, N_FF, N_IN, "silu")
ONE = 3 * N_IN * N_FF  # weights of one expert


def test_only_the_experts_of_a_token_count_as_arithmetic():
    for n_tokens in (1, 10):
        matmuls = n_tokens * N_USED * 2 * ONE
        assert matmuls < OP.flops(Workload(n_tokens, 0)) <= 1.05 * matmuls


def test_only_the_experts_that_a_step_reads_count_as_bytes():
    whole = sum(w.nbytes for w in OP.weights)
    assert OP.weight_bytes(Workload(1, 0)) == whole * N_USED // N_EXPERTS
    assert whole * N_USED // N_EXPERTS < OP.weight_bytes(Workload(2, 0)) < 2 * whole * N_USED // N_EXPERTS
    assert 0.99 * whole < OP.weight_bytes(Workload(64, 0)) <= whole


def test_all_experts_stay_in_memory():
    driver = CpuDriver()
    cost = driver.estimate(driver.probe({})[0], OP, Workload(1, 0))
    assert sum(cost.resident.values()) == sum(w.nbytes for w in OP.weights)


def test_a_device_without_experts_refuses_them_by_name():
    driver = hetrun_pynq_z1.driver.PynqZ1Driver()
    info = driver.probe({})[0]
    refusal = driver.estimate(info, OP, Workload(1, 0))
    assert isinstance(refusal, Unsupported) and "experts" in refusal.reason


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_used": 0},
        {"n_used": 9},
        {"function": "relu"},
        {"x": Value("x", 32)},
        {"routes": Value("routes", 7)},
        {"routes": Value("routes", 8, "outputs")},
        {"up": weight("up", "Q8_0", N_EXPERTS, N_FF + 1, N_IN)},
        {"down": weight("down", "Q8_0", N_EXPERTS, N_IN, N_FF + 32)},
        {"gate": weight("gate", "Q8_0", N_FF, N_IN)},
    ],
)
def test_a_malformed_op_cannot_be(wrong):
    with pytest.raises(GraphError, match=r"blk\.0\.ffn_exps"):
        replace(OP, **wrong)


def test_routes_take_one_expert_at_least():
    with pytest.raises(GraphError, match="0 of 8 experts"):
        Route("r", Value("scores", 8), 0)


def test_of_equal_scores_the_first_are_chosen():
    assert np.flatnonzero(route(np.zeros((1, 6), np.float32), 2)[0]).tolist() == [0, 1]


@pytest.mark.parametrize("elsewhere", ["blk.*.ffn_exps", "blk.*.ffn_route", "blk.0.*"])
def test_a_plan_may_send_experts_to_another_device(elsewhere: str, tmp_path: Path) -> None:
    found = [FoundDevice(d, d.probe({})[0], "test") for d in (CpuDriver(), ReferenceDriver())]
    ids = tokens("qwen3moe")[:16]
    with ModelFile.open(written("qwen3moe", tmp_path)) as file:
        graph = graph_of(file, GraphOptions(kv_format="f32"), Registry())
        plan = make_plan(graph, found, Request(), [Pin.parse("*=cpu"), Pin.parse(f"{elsewhere}=reference")])
        assert {"cpu:0", "reference:0"} == set(plan.used_devices)
        with Session(build(graph, plan, found, file.blocks, 16, 16)) as session:
            logits = np.array(session.step(Batch.of(ids, range(16), [0] * 16, range(16)))).reshape(16, -1)
    assert np.abs(logits - goldens()["qwen3moe"][:16]).max() <= 1e-4
