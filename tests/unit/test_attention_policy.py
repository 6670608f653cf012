"""Windows and 4-bit caches in whole models: what they forget, and what they cost, does not depend on the context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from models import tiny_llama

import hetrun
from hetrun.errors import ContextError
from hetrun.ops import KvSpec

CHUNK, SINK, WINDOW = 16, 2, 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=1 << 17)


def load(path: Path, device: str = "cpu", **options: object) -> hetrun.Model:
    options = {"n_ctx": 1024, "window": WINDOW, "sink": SINK, **options}
    return hetrun.load(path, devices=[device], max_tokens_per_step=CHUNK, threads=2, **options)  # type: ignore[arg-type]


def ids(n: int) -> Sequence[int]:
    return [3 + i * i % 200 for i in range(n)]


def kv_of(model: hetrun.Model) -> KvSpec:
    return next(iter(model.session.runtime.graph.kv_specs.values()))


# int8 activations in 2 layers; with kv4 they also move codes, each by a fifteenth of its head's range.
@pytest.mark.parametrize(("kv_format", "limit"), [("f16", 1e-3), ("kv4", 2e-2), ("kv4h", 2e-2)])
def test_a_window_gives_the_logits_of_the_reference_far_beyond_its_wrap(
    tiny: Path, kv_format: str, limit: float
) -> None:
    with load(tiny, kv_format=kv_format) as model, load(tiny, "reference", kv_format=kv_format) as reference:
        got, want = model.logits(ids(400)), reference.logits(ids(400))
    error = np.square(got - want).sum(1) / np.square(want - want.mean(1, keepdims=True)).sum(1)
    assert error.mean() < limit


def test_what_neither_window_nor_sink_holds_is_forgotten(tiny: Path) -> None:
    """Layers pass on what they saw: the last token reaches back n_layers * (window - 1), and to the sinks."""
    n, n_layers = 200, 2
    first = n - 1 - n_layers * (WINDOW - 1)
    changed = list(ids(n))
    changed[SINK:first] = [7] * (first - SINK)
    with load(tiny) as model:
        np.testing.assert_array_equal(model.logits(ids(n))[-1], model.logits(changed)[-1])
        changed[1] += 1
        assert (model.logits(ids(n))[-1] != model.logits(changed)[-1]).any()


def test_memory_grows_with_the_window_and_not_with_the_context(tiny: Path) -> None:
    with load(tiny, n_ctx=1024) as short, load(tiny, n_ctx=1 << 17) as long:
        assert kv_of(short).n_cells == kv_of(long).n_cells == SINK + WINDOW + 63  # slack: the rollback less one
        assert kv_of(short).nbytes == kv_of(long).nbytes
        assert short.plan.memory == long.plan.memory


def test_generation_goes_on_far_beyond_the_window(tiny: Path) -> None:
    """300 tokens, the same as from logits of the whole text, through a ring of 85 cells."""
    with load(tiny) as model:
        generation = model.generate(ids(40), max_tokens=300, temperature=0.0)
        text = "".join(generation)
        assert text and len(generation.tokens) == 300
        whole = model.logits([*ids(40), *generation.tokens[:-1]])[39:]
        assert whole.argmax(1).tolist() == list(generation.tokens)


def test_sinks_stay_just_before_the_window(tiny: Path) -> None:
    """A text that repeats itself is told apart by nothing but its distance from the sinks, which must not grow."""
    period = 10
    text = [5, 9, *(20 + i % period for i in range(300))]
    with load(tiny, "reference", kv_format="f32") as model:
        logits = model.logits(text)
    early, late = logits[99], logits[99 + 20 * period]
    np.testing.assert_allclose(late, early, atol=1e-3 * np.ptp(early))


def test_a_window_reaches_beyond_the_context_that_the_model_was_trained_for(tmp_path: Path) -> None:
    short = tiny_llama(tmp_path / "short.gguf", n_ctx=64)
    with load(short, n_ctx=500) as model:
        assert np.isfinite(model.logits(ids(500))).all()
    with pytest.raises(ContextError, match="a context of 500 tokens") as refused:
        load(short, n_ctx=500, window=70, sink=0)
    assert "--attention sink=4,window=60" in (refused.value.remedy or "")
