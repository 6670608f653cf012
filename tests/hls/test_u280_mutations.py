"""A whole generation through the U280's driver, and each of its rules broken once: the fake notices every time."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from models import tiny_llama

sys.path.insert(0, str(Path(__file__).parent))

from fake_u280 import BANKS, FakeCard, WaitsForEver, write_xclbin
from u280_machine import NOTHING, SMALL, Insert, insert, opened, pci, xclbin

import hetrun
from hetrun.errors import DeviceError, HetrunError
from hetrun_alveo_u280 import opened as opened_module
from hetrun_alveo_u280 import xrt

__all__ = ["insert", "pci", "xclbin"]  # fixtures

N_TOKENS = 12
PROMPT = "the king and the"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", quant="Q8_0", tied=True)


def load(model: Path, device: str, **settings: object) -> hetrun.Model:
    return hetrun.load(
        model,
        devices=[device],
        n_ctx=64,
        kv_format="kv4",
        max_tokens_per_step=16,
        driver_settings={"alveo-u280": {**SMALL, **settings}},
    )


def tokens(model: Path, device: str, **settings: object) -> list[int]:
    """Greedy ones, the whole model on the device."""
    with load(model, device, **settings) as loaded:
        assert {a.device for a in loaded.plan.assignments("decode")} == {device}
        made: list[int] = []
        fed = loaded.tokenize(PROMPT)
        for _ in range(N_TOKENS):
            logits = loaded.session.feed(fed)
            made.append(max(range(len(logits)), key=logits.__getitem__))
            fed = made[-1:]
        return made


@pytest.fixture(scope="module")
def csim_tokens(model: Path) -> list[int]:
    return tokens(model, "alveo-u280:csim")


@pytest.fixture
def card(insert: Insert) -> FakeCard:
    return insert()


def test_a_generation_through_pyxrt_has_the_tokens_of_csim(
    card: FakeCard, xclbin: Path, model: Path, csim_tokens: list[int]
) -> None:
    assert len(set(csim_tokens)) > 2
    assert tokens(model, "alveo-u280:0", xclbin=str(xclbin)) == csim_tokens
    gc.collect()
    assert not card.users and not card.live


def test_a_step_of_one_token_is_one_launch_and_brings_back_logits_and_report(
    card: FakeCard, xclbin: Path, model: Path
) -> None:
    tokens(model, "alveo-u280:0", xclbin=str(xclbin))
    steps = [i for i, t in enumerate(card.transfers) if t == ("from", 32, 64)][-3:]
    assert len(card.launches) == 2 + N_TOKENS  # the two that ask for the version
    between = [card.transfers[a + 1 : b] for a, b in pairwise(steps)]
    n_vocab = card.transfers[steps[-1] + 1][2] // 4
    assert between == [[("from", 32, 4 * n_vocab)]] * len(between)


def test_smollm2_through_pyxrt_has_the_tokens_of_csim(card: FakeCard, xclbin: Path, smollm2_path: Path) -> None:
    room = {"hbm_bytes": 256 << 20, "timeout_s": 60}
    assert tokens(smollm2_path, "alveo-u280:0", xclbin=str(xclbin), **room) == tokens(
        smollm2_path, "alveo-u280:csim", **room
    )


def test_a_step_that_hangs_ends_the_model_and_another_one_runs(
    card: FakeCard, xclbin: Path, model: Path, csim_tokens: list[int]
) -> None:
    with load(model, "alveo-u280:0", xclbin=str(xclbin)) as loaded:
        loaded.session.feed(loaded.tokenize(PROMPT))
        card.hangs_next = True
        for _ in range(2):  # never a token from a card that lost its memory
            with pytest.raises(DeviceError, match="weights and KV there are lost"):
                loaded.session.feed([csim_tokens[0]])
    gc.collect()
    assert not card.users and not card.live
    assert tokens(model, "alveo-u280:0", xclbin=str(xclbin)) == csim_tokens


# Rules, broken one at a time.


def generates(rig: Rig) -> None:
    assert tokens(rig.model, "alveo-u280:0", xclbin=str(rig.xclbin)) == rig.expected
    gc.collect()
    assert not rig.card.users and not rig.card.live, "something is held after close"


def refuses(words: str, **changes: Any) -> Callable[[Rig], None]:
    """An xclbin that is not right, with these words."""

    def scenario(rig: Rig) -> None:
        with pytest.raises(DeviceError, match=f"is not this engine's: {words}"):
            opened(write_xclbin(rig.xclbin.with_name("other.xclbin"), **changes))

    return scenario


def hangs(rig: Rig) -> None:
    driver = opened(rig.xclbin)
    rig.card.hangs_next = True
    with pytest.raises(DeviceError, match="not ended within"):
        driver.run(NOTHING)
    with pytest.raises(DeviceError, match="are lost"):
        driver.hbm_zero(0, 1)


def ends_as_error(rig: Rig) -> None:
    driver = opened(rig.xclbin)
    rig.card.state = "ERROR"
    with pytest.raises(DeviceError, match="ended as"):
        driver.run(NOTHING)


def is_interrupted(rig: Rig) -> None:
    driver = opened(rig.xclbin)
    rig.card.interrupts = 1
    with pytest.raises(KeyboardInterrupt):
        driver.run(NOTHING)
    driver.hbm_zero(0, 1)


def does_not_look(rig: Rig) -> None:
    rig.card.ignores_version = True
    with pytest.raises(DeviceError):
        opened(rig.xclbin)


@dataclass(frozen=True)
class Rig:
    card: FakeCard
    xclbin: Path
    model: Path
    expected: list[int]


SWAPPED = BANKS | {"3": 4, "4": 3}
TO_CARD, FROM_CARD = "buffers[buffer].sync(self._to_card,", "buffers[buffer].sync(self._from_card,"
ALLOCATED = "self._pyxrt.bo(self._device, nbytes, self._pyxrt.bo.normal, group)"
SET_SCALAR = "self._run.set_arg(numbers[name], value)"

# What is broken -> (the driver's text, what stands there instead, what shows it).
MUTATIONS: dict[str, tuple[str, str, Callable[[Rig], None]]] = {
    "written bytes are not synced": (TO_CARD, "(lambda *_: None)(0,", generates),
    "bytes are read without a sync": (FROM_CARD, "(lambda *_: None)(0,", generates),
    "written bytes are synced the other way": (TO_CARD, "buffers[buffer].sync(self._from_card,", generates),
    "read bytes are synced the other way": (FROM_CARD, "buffers[buffer].sync(self._to_card,", generates),
    "too few bytes are synced": (TO_CARD + " data.nbytes", TO_CARD + " data.nbytes - 1", generates),
    "bytes are synced elsewhere": (TO_CARD + " data.nbytes, offset", TO_CARD + " data.nbytes, 0", generates),
    "a buffer is in the next bank": (ALLOCATED, ALLOCATED.replace("group)", "group ^ 1)"), generates),
    "a buffer has no copy on the host": (ALLOCATED, ALLOCATED.replace("normal", "device_only"), generates),
    "an argument has the buffer of another": (
        "self._run.set_arg(number, buffer)", "self._run.set_arg(number, self._buffers[0])", generates,
    ),
    "a buffer is not set": (
        "zip(banks(), self._buffers, strict=True)", "zip(banks()[:-1], self._buffers)", generates,
    ),
    "the second port to the DDR has no buffer": (
        "in numbers:\n                    self", "in numbers[:1]:\n                    self", generates,
    ),
    "scalars are floats": (SET_SCALAR, SET_SCALAR.replace("value", "float(value)"), generates),
    "scalars go to the next number": (SET_SCALAR, SET_SCALAR.replace("[name]", "[name] + 1"), generates),
    "the last scalar is left out": ("in scalars.items()", "in list(scalars.items())[:-1]", generates),
    "the wait has no limit": ("self._run.wait(SLICE_MS)", "self._run.wait()", generates),
    "the wait is one long slice": ("self._run.wait(SLICE_MS)", "self._run.wait(5000)", generates),
    "the end is not waited for": ("while self._running:", "while False:", generates),
    "a slice that passed is taken for the end": (
        "if state == states.ERT_CMD_STATE_COMPLETED:", "if state in under_way:", generates,
    ),
    "contexts are used where there are none": ('hasattr(pyxrt, "hw_context")', "True", generates),
    "contexts are not used where they are": ('hasattr(pyxrt, "hw_context")', "False", generates),
    "buffers are kept after close": ("self._buffers.clear()", "KEPT.extend(self._buffers)", generates),
    "the kernel's name is not compared": (
        "if KERNEL not in kernels:", "if False:", refuses("expected a kernel", kernels={"vadd": 4}),
    ),
    "banks are not compared": ("bank.get_tag() != tag", "False", refuses("argument 3 is", banks=SWAPPED)),
    "the version is not compared": (
        "if report.version != version:", "if False:", refuses("the engine is of version 2", version=2),
    ),
    "the first version is the right one": ("((NO_VERSION, ", "((version, ", generates),
    "the answer to a wrong version is not read": ("if found != expected:", "if False:", does_not_look),
    "there is no time limit": ("time.monotonic() > self._deadline", "False", hangs),
    "other ends are taken for good ones": (
        "if state == states.ERT_CMD_STATE_COMPLETED:", "if state not in under_way:", ends_as_error,
    ),
    "memory is touched while an interrupted launch runs": (
        "self.settle()\n        with failing", "with failing", is_interrupted,
    ),
}  # fmt: skip
SCENARIOS = {generates, hangs, ends_as_error, is_interrupted, does_not_look}


def mutated(old: str, new: str) -> types.ModuleType:
    text = Path(opened_module.__file__).read_text()
    assert text.count(old) == 1, f"{old!r} stands there {text.count(old)} times"
    module = types.ModuleType(opened_module.__name__)
    module.__dict__["KEPT"] = []
    exec(compile(text.replace(old, new), opened_module.__file__, "exec"), module.__dict__)
    return module


@pytest.fixture
def rig(card: FakeCard, xclbin: Path, model: Path, csim_tokens: list[int]) -> Rig:
    return Rig(card, xclbin, model, csim_tokens)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS, key=lambda s: s.__name__), ids=lambda s: s.__name__)
def test_the_driver_as_it_is_passes(rig: Rig, scenario: Callable[[Rig], None]) -> None:
    scenario(rig)


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_is_noticed(rig: Rig, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, scenario = MUTATIONS[rule]
    broken = mutated(old, new)
    monkeypatch.setattr(xrt, "OpenedCard", broken.OpenedCard)
    monkeypatch.setattr(xrt, "LaunchFailure", broken.LaunchFailure)
    if "hw_context" in old and new == str(hasattr(sys.modules["pyxrt"], "hw_context")):  # what it finds by looking
        scenario(rig)
        return
    with pytest.raises((HetrunError, AssertionError, WaitsForEver, pytest.fail.Exception)):
        scenario(rig)
