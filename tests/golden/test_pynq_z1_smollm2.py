"""SmolLM2 with every matmul on the PYNQ-Z1 engine's source: the bits of the engine's order, and the cpu's tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import hetrun

sys.path.insert(0, str(Path(__file__).parents[1] / "hls"))
import engine_order_device

MATMULS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
PATTERNS = (*(f"blk.*.{name}" for name in MATMULS), "output")
ACTIVATION = "blk.*.ffn_act"  # between gate, up and down it stays in the engine
PROMPT = "The three laws of thermodynamics are"
N_TOKENS = 20


@dataclass(frozen=True)
class Run:
    """tokens: chosen one by one, greedily.   logits: [steps, n_vocab], those of the prompt first."""

    tokens: list[int]
    logits: npt.NDArray[np.float32]


def run_on(path: Path, device: str | None, n_tokens: int = N_TOKENS, patterns: tuple[str, ...] = PATTERNS) -> Run:
    """On the cpu, with every matmul (or what matches `patterns`) on `device`."""
    pins = ["*=cpu", *(f"{pattern}={device}" for pattern in patterns if device)]
    with hetrun.load(
        path,
        devices=["cpu", *([device] if device else [])],
        pins=pins,
        n_ctx=64,
        max_tokens_per_step=16,
        registry=engine_order_device.registry(),
    ) as model:
        placed = {a.op: a.device for a in model.plan.assignments("decode")}
        matmuls = [op.name for op in model.session.runtime.graph.ops if op.kind == "matmul"]
        assert len(matmuls) == 30 * 7 + 1
        assert {placed[name] for name in matmuls} == {device or "cpu:0"}
        own = [name for name in placed if name in matmuls or (ACTIVATION in patterns and name.endswith("ffn_act"))]
        assert all(d == "cpu:0" for name, d in placed.items() if name not in own)
        run = Run([], np.empty((n_tokens, model.n_vocab), np.float32))
        fed = model.tokenize(PROMPT)
        for step in range(n_tokens):
            run.logits[step] = np.asarray(model.session.feed(fed))
            run.tokens.append(int(run.logits[step].argmax()))
            fed = run.tokens[-1:]
        return run


@pytest.fixture(scope="module")
def csim(smollm2_path: Path) -> Iterator[Run]:
    yield run_on(smollm2_path, "pynq-z1:csim")


def assert_same_bits(run: Run, expected: Run) -> None:
    assert run.tokens == expected.tokens
    assert np.array_equal(run.logits.view(np.uint32), expected.logits.view(np.uint32))


def test_tokens_and_logits_are_bit_for_bit_those_of_the_engine_s_order(smollm2_path: Path, csim: Run) -> None:
    assert_same_bits(csim, run_on(smollm2_path, engine_order_device.DEVICE))


def test_so_are_those_of_a_feed_forward_that_stays_in_the_engine(smollm2_path: Path) -> None:
    runs = [run_on(smollm2_path, d, 4, (*PATTERNS, ACTIVATION)) for d in ("pynq-z1:csim", engine_order_device.DEVICE)]
    assert_same_bits(*runs)


def test_greedy_tokens_equal_those_of_the_cpu(smollm2_path: Path, csim: Run) -> None:
    assert csim.tokens == run_on(smollm2_path, None).tokens
