"""What the PYNQ-Z1 engine cannot take stays on the processor, the plan says why, and the tokens are the processor's."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import hetrun as command
from models import tiny_llama

import hetrun
from hetrun.errors import PlanError
from hetrun.plan.plan import Assignment

ENGINE, HOST = "pynq-z1:csim", "model:cortex-a9"  # beside a slow processor, plans choose the engine on their own
PROMPT = [5, 9, 13]
ROW = 8448  # 33 super-blocks: more than the engine's block RAM holds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its feed-forward has rows that are too long, its head a type that the engine lacks."""
    sizes = {"embedding_length": 256, "feed_forward_length": ROW}
    return tiny_llama(tmp_path_factory.mktemp("model") / "wide.gguf", metadata=sizes)


def assignments(loaded: hetrun.api.Model) -> dict[str, Assignment]:
    return {a.op: a for a in loaded.plan.assignments("decode")}


def load(model: Path, *devices: str, **options: object) -> hetrun.api.Model:
    return hetrun.load(model, devices=devices, n_ctx=64, max_tokens_per_step=8, **options)  # type: ignore[arg-type]


def tokens(loaded: hetrun.api.Model) -> list[int]:
    generation = loaded.generate(PROMPT, max_tokens=6)
    generation.finish()
    return list(generation.tokens)


def refusal(assignment: Assignment) -> str | None:
    return next(c.refusal for c in assignment.candidates if c.device == ENGINE)


def test_rows_and_types_that_it_lacks_are_planned_elsewhere_and_nothing_changes(model: Path) -> None:
    with load(model, "cpu") as alone:
        expected = tokens(alone)
    with load(model, HOST, ENGINE) as loaded:
        planned = assignments(loaded)
        assert {planned[f"blk.{i}.{name}"].device for i in range(2) for name in ("ffn_gate", "ffn_up")} == {ENGINE}
        assert refusal(planned["blk.0.ffn_gate"]) is None
        for i in range(2):
            down = planned[f"blk.{i}.ffn_down"]
            assert down.device == HOST
            assert refusal(down) == (
                f"blk.{i}.ffn_down.weight has rows of {ROW}; the engine's block RAM holds activations of 8192"
            )
        head = planned["output"]
        assert head.device == HOST
        assert str(refusal(head)).startswith("output.weight has type F16; the engine reads Q2_K, Q3_K")
        assert tokens(loaded) == expected


@pytest.mark.parametrize(("op", "reason"), [("blk.1.ffn_down", "block RAM holds"), ("output", "has type F16")])
def test_the_plan_on_the_screen_shows_the_reason(model: Path, tmp_path: Path, op: str, reason: str) -> None:
    devices = ["--device", HOST, "--device", ENGINE]
    done = command(tmp_path, "plan", "--model", model, *devices, "--explain", op, env={"COLUMNS": "300"})
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    assert "refuses" in shown and reason in shown


@pytest.mark.parametrize(("op", "reason"), [("blk.*.ffn_down", "block RAM"), ("output", "has type F16")])
def test_a_pin_to_the_engine_of_what_it_cannot_take_is_an_error(model: Path, op: str, reason: str) -> None:
    with pytest.raises(PlanError, match=f"is pinned to {ENGINE}, which refuses it: .*{reason}"):
        load(model, HOST, ENGINE, pins=[f"{op}={ENGINE}"])


def test_what_its_memory_does_not_hold_stays_on_the_processor(model: Path) -> None:
    """A layer's gate and up are 4.6 MB: there is room for one layer."""
    with load(model, "cpu") as alone:
        expected = tokens(alone)
    with load(model, HOST, ENGINE, driver_settings={"pynq-z1": {"memory_bytes": 7_000_000}}) as loaded:
        devices = [a.device for op, a in assignments(loaded).items() if op.endswith(("ffn_gate", "ffn_up"))]
        assert sorted(devices) == [HOST, HOST, ENGINE, ENGINE]
        assert tokens(loaded) == expected
