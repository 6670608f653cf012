"""SmolLM2 as a whole on the U280 engine's source: the bits of the engine's order, and tokens beside the cpu's."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import hetrun

sys.path.insert(0, str(Path(__file__).parents[1] / "hls"))
import u280_order_device

CSIM = "alveo-u280:csim"
PROMPT = "The three laws of thermodynamics are"
N_TOKENS = 24


@dataclass(frozen=True)
class Run:
    """tokens: chosen one by one, greedily, or as forced.   logits: [steps, n_vocab], the first behind the prompt."""

    tokens: list[int]
    logits: npt.NDArray[np.float32]


def run_on(path: Path, device: str, n_tokens: int = N_TOKENS, forced: Sequence[int] = (), **options: object) -> Run:
    """All ops on `device`.   forced: tokens to feed in place of those chosen."""
    registry = u280_order_device.registry()
    settings = {"n_ctx": 64, "max_tokens_per_step": 16, "kv_format": "kv4h", **options}
    with hetrun.load(path, devices=[device], registry=registry, **settings) as model:  # type: ignore[arg-type]
        assert len(model.session.runtime.steps["decode"]) == 1
        run = Run([], np.empty((n_tokens, model.n_vocab), np.float32))
        fed = model.tokenize(PROMPT)
        for step in range(n_tokens):
            run.logits[step] = np.asarray(model.session.feed(fed))
            chosen = int(run.logits[step].argmax())
            run.tokens.append(forced[step] if forced else chosen)
            fed = run.tokens[-1:]
        return run


@pytest.fixture(scope="module")
def csim(smollm2_path: Path) -> Iterator[Run]:
    yield run_on(smollm2_path, CSIM)


def assert_same_bits(run: Run, expected: Run) -> None:
    assert run.tokens == expected.tokens
    assert np.array_equal(run.logits.view(np.uint32), expected.logits.view(np.uint32))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_format": "kv4", "sink": 2, "window": 5, "max_tokens_per_step": 3},
    ],
    ids=["kv4h", "kv4-ring"],
)
def test_logits_are_bit_for_bit_those_of_the_engine_s_order(smollm2_path: Path, options: dict[str, object]) -> None:
    assert_same_bits(
        run_on(smollm2_path, CSIM, 6, **options), run_on(smollm2_path, u280_order_device.DEVICE, 6, **options)
    )


def test_logits_are_as_near_the_reference_s_as_the_cpu_s_are(smollm2_path: Path, csim: Run) -> None:
    """4-bit keys and values round near ties one way or the other, and what follows differs: on the cpu as much."""
    reference, cpu = (run_on(smollm2_path, device, forced=csim.tokens) for device in ("reference", "cpu"))
    own, of_cpu = (float(np.sqrt(np.mean((run.logits - reference.logits) ** 2))) for run in (csim, cpu))
    assert own < 2 * of_cpu


def test_tokens_are_the_reference_s_but_for_near_ties(smollm2_path: Path, csim: Run) -> None:
    """Where the reference, fed the same, chooses another, it holds the engine's choice nearly as likely."""
    reference = run_on(smollm2_path, "reference", forced=csim.tokens)
    chosen = np.take_along_axis(reference.logits, np.array(csim.tokens)[:, None], axis=1)[:, 0]
    gaps = reference.logits.max(axis=1) - chosen
    assert np.count_nonzero(gaps) <= N_TOKENS // 4
    assert gaps.max() < 1.5  # logits spread by 8.4


def test_sixteen_tokens_take_less_than_eight_seconds(smollm2_path: Path) -> None:
    """2 tokens/s and more, on two cores."""
    with hetrun.load(smollm2_path, devices=[CSIM], n_ctx=128) as model:
        model.session.feed(model.tokenize(PROMPT))
        begin = time.perf_counter()
        for token in range(100, 116):
            model.session.feed([token])
        assert time.perf_counter() - begin < 8.0
