"""SmolLM2 with every matmul on the PYNQ-Z1 engine's source: the tokens of the cpu."""

from __future__ import annotations

from pathlib import Path

import hetrun

MATMULS = ["blk.*.attn_q", "blk.*.attn_k", "blk.*.attn_v", "blk.*.attn_output", "blk.*.ffn_gate", "blk.*.ffn_up"]
PINS = [f"{pattern}=pynq-z1:csim" for pattern in (*MATMULS, "blk.*.ffn_down", "output")]
PROMPT = "The three laws of thermodynamics are"


def test_greedy_tokens_equal_those_of_the_cpu_with_all_matmuls_offloaded(smollm2_path: Path) -> None:
    with hetrun.load(smollm2_path, devices=["cpu"], n_ctx=64) as model:
        generation = model.generate(PROMPT, max_tokens=12)
        generation.finish()
        expected = generation.tokens
    with hetrun.load(
        smollm2_path, devices=["cpu", "pynq-z1:csim"], pins=PINS, n_ctx=64, max_tokens_per_step=16
    ) as model:
        device_of = {a.op: a.device for a in model.plan.assignments("decode")}
        matmuls = [op.name for op in model.session.runtime.graph.ops if op.kind == "matmul"]
        assert len(matmuls) == 30 * 7 + 1
        assert {device_of[name] for name in matmuls} == {"pynq-z1:csim"}
        generation = model.generate(PROMPT, max_tokens=12)
        generation.finish()
        assert generation.tokens == expected
