"""The U280's source run on this machine, through sessions: batches, rollback, prefixes, windows, mixed placement."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from models import tiny_llama

import hetrun
from hetrun.device import Batch
from hetrun.errors import AllocationError, HetrunError, PlanError
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.driver import AlveoU280Driver

CSIM = "alveo-u280:csim"
TOKENS = [5, 17, 3, 99, 250, 17, 64, 8, 1, 200, 42, 7, 7, 31]
SMALL = {"alveo-u280": {"hbm_bytes": 32 << 20, "ddr_bytes": 32 << 20}}

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("u280") / "tiny.gguf", n_layers=3, quant="Q4_0", n_ctx=256, tied=True)


def load(tiny: Path, *devices: str, **options: object) -> hetrun.api.Model:
    settings = {"n_ctx": 64, "n_slots": 3, "max_tokens_per_step": 20, "driver_settings": SMALL, **options}
    return hetrun.load(tiny, devices=devices or (CSIM,), **settings)  # type: ignore[arg-type]


def step(model: hetrun.api.Model, tokens: list[int], slot: int = 0) -> Floats:
    """Logits behind each token, fed at once to what the slot holds."""
    start, n = model.session.length(slot), len(tokens)
    batch = Batch.of(tokens, range(start, start + n), [slot] * n, range(n))
    return np.asarray(model.session.step(batch)).reshape(n, -1).copy()


def same(x: Floats, y: Floats) -> bool:
    return np.array_equal(x.view(np.uint32), y.view(np.uint32))


POLICIES: Mapping[str, dict[str, object]] = {
    "kv4h": {},
    "kv4": {"kv_format": "kv4"},
    "window": {"window": 6},
    "sinks": {"window": 6, "sink": 2},
}


@pytest.fixture(scope="module", params=POLICIES)
def model(request: pytest.FixtureRequest, tiny: Path) -> Iterator[hetrun.api.Model]:
    with load(tiny, **POLICIES[request.param]) as model:
        assert model.plan.used_devices == (CSIM,)
        yield model


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    if "model" in request.fixturenames:
        model = request.getfixturevalue("model")
        for slot in range(3):
            model.session.truncate(slot, 0)


def test_a_whole_model_is_one_launch(model: hetrun.api.Model) -> None:
    for steps in model.session.runtime.steps.values():
        assert len(steps) == 1 and not steps[0].copies


def test_a_token_s_logits_do_not_depend_on_what_runs_beside_it(model: hetrun.api.Model) -> None:
    """A prompt in passes of 8 rows, one row at a time, and in chunks: the same bits."""
    whole = step(model, TOKENS)
    single = np.concatenate([step(model, [token], slot=1) for token in TOKENS])
    chunks = np.concatenate([step(model, TOKENS[i : i + 3], slot=2) for i in range(0, len(TOKENS), 3)])
    assert same(whole, single) and same(whole, chunks)


def test_sequences_in_one_batch_are_apart(model: hetrun.api.Model) -> None:
    expected = [step(model, [*TOKENS[:4], 9 + slot], slot=0)[-1] for slot in (0,)]
    model.session.truncate(0, 0)
    for slot, n in ((0, 4), (1, 9), (2, 2)):
        step(model, TOKENS[:n], slot)
    batch = Batch.of([9, 10, 11], [4, 9, 2], [0, 1, 2], [0, 1, 2])
    together = np.asarray(model.session.step(batch)).reshape(3, -1).copy()
    assert same(together[0], expected[0])
    model.session.truncate(1, 0)
    assert same(together[1], step(model, [*TOKENS[:9], 10], slot=1)[-1])


def test_what_is_taken_back_leaves_no_trace(model: hetrun.api.Model) -> None:
    first = step(model, TOKENS)
    model.session.truncate(0, 10)
    step(model, [1, 2, 3])
    model.session.truncate(0, 10)
    assert same(step(model, TOKENS[10:]), first[10:])


def test_a_prefix_is_shared_without_running_it_again(model: hetrun.api.Model) -> None:
    step(model, TOKENS[:12])
    model.session.copy(0, 2, 12)
    there = step(model, [8, 9], slot=2)
    assert same(there, step(model, [8, 9], slot=0))


def test_a_ring_goes_round_many_times(tiny: Path) -> None:
    """200 tokens through 80 cells: the last logits are those of a sequence of as many, whatever the chunks."""
    options = {"window": 6, "sink": 2, "n_ctx": 256}
    tokens = [int(t) for t in np.random.default_rng(1).integers(4, 280, 200)]
    with load(tiny, **options) as model, load(tiny, **options) as other:
        for i in range(0, 200, 20):
            last = step(model, tokens[i : i + 20])[-1]
        for i in range(0, 200, 7):
            again = step(other, tokens[i : i + 7])[-1]
    assert same(last, again)


def nmse(x: Floats, y: Floats) -> float:
    return float(np.sum((x - y) ** 2) / np.sum(y**2))


@pytest.mark.parametrize(
    "pins",
    [
        ["*=alveo-u280:csim", "blk.*.ffn_*=cpu"],
        ["*=cpu", "blk.*.attn=alveo-u280:csim"],
        ["*=alveo-u280:csim", "blk.1.*=cpu"],
        ["*=cpu", "output=alveo-u280:csim"],
        ["*=alveo-u280:csim", "token_embd=cpu", "*_norm=cpu"],
    ],
)
def test_mixed_with_the_cpu_it_computes_the_same_model(tiny: Path, pins: list[str]) -> None:
    """Beside the cpu alone, both with 4-bit keys and values; as near as the whole model on csim is."""
    with load(tiny, "cpu", kv_format="kv4h") as cpu, load(tiny, CSIM) as csim:
        expected, alone = step(cpu, TOKENS), step(csim, TOKENS)
    with load(tiny, "cpu", CSIM, pins=pins) as mixed:
        assert set(mixed.plan.used_devices) == {"cpu:0", CSIM}
        result = step(mixed, TOKENS)
    assert nmse(alone, expected) < 0.03
    assert nmse(result, expected) < 0.03


def test_4_bits_are_taken_where_nobody_says_a_format(tiny: Path) -> None:
    for devices, expected in (((CSIM,), "kv4h"), (("cpu", CSIM), "kv4h"), (("cpu",), "f16")):
        with load(tiny, *devices) as model:
            assert {kv.format for kv in model.session.runtime.graph.kv_specs.values()} == {expected}


def test_16_bits_keep_attention_on_the_cpu(tiny: Path) -> None:
    with load(tiny, "cpu", CSIM, kv_format="f16", pins=["*.ffn_*=alveo-u280:csim"]) as model:
        placed = {a.op: a.device for a in model.plan.assignments("decode")}
        assert placed["blk.0.attn"] == "cpu:0" and placed["blk.0.ffn_up"] == CSIM
    with pytest.raises(PlanError, match="keeps keys and values in 4 bits, not as f16: --kv-type kv4h"):
        load(tiny, CSIM, kv_format="f16")


def test_values_that_wait_in_ddr_change_no_bit(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector memory for a tenth of the values that a step has."""
    with load(tiny) as model:
        expected = step(model, TOKENS)
    small = replace(definition(), numbers={**definition().numbers, "VECTOR_FLOATS": 384})
    monkeypatch.setattr("hetrun_alveo_u280.lower.definition", lambda: small)  # a gate and what it makes
    with load(tiny) as model:
        executable = model.session.runtime.steps["prefill"][0].executable
        assert len(executable._spilled) >= 3  # type: ignore[attr-defined]
        assert same(step(model, TOKENS), expected)


def test_two_cards_run_at_once(tiny: Path) -> None:
    results: dict[int, list[Floats]] = {}

    def run(number: int) -> None:
        with load(tiny, n_slots=1) as model:
            results[number] = []
            for _ in range(5):
                model.session.truncate(0, 0)
                results[number].append(step(model, TOKENS))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and all(len(r) == 5 and same(r[0], x) for r in results.values() for x in r)
    assert same(results[0][0], results[1][0])


def test_a_model_that_hbm_cannot_hold_is_not_placed(tiny: Path) -> None:
    settings = {"alveo-u280": {"hbm_bytes": 4 << 20}}
    with pytest.raises(PlanError, match="alveo-u280:csim/hbm") as caught:
        load(tiny, driver_settings=settings)
    assert "bytes" in str(caught.value) or "MB" in str(caught.value)


def test_a_plan_that_hbm_cannot_hold_any_more_is_an_error(tiny: Path) -> None:
    """The plan was made for a card with more of it."""
    with load(tiny) as model:
        plan = model.plan
    with pytest.raises(HetrunError, match=r"HBM|hbm"):
        load(tiny, plan=plan, driver_settings={"alveo-u280": {"hbm_bytes": 4 << 20}})


def test_a_context_that_no_cache_holds_is_refused_with_a_way_out(tiny: Path, tmp_path: Path) -> None:
    long = tiny_llama(tmp_path / "long.gguf", n_layers=1, quant="Q4_0", n_ctx=1 << 16, tied=True)
    with pytest.raises(PlanError, match="a cache of 65536 tokens; the engine keeps scores of 8192: --ctx 8192"):
        load(long, n_ctx=1 << 16, n_slots=1)
    with load(long, n_ctx=1 << 16, n_slots=1, window=100, sink=4) as model:
        assert model.session.n_ctx == 1 << 16


def test_steps_of_many_tokens_need_ddr(tiny: Path) -> None:
    settings = {"alveo-u280": {"ddr_bytes": 16 << 20}}
    with pytest.raises(AllocationError, match="bytes of DDR"):
        load(
            tiny,
            "cpu",
            CSIM,
            driver_settings=settings,
            max_tokens_per_step=32_768,
            pins=["*=alveo-u280:csim", "blk.*.ffn_*=cpu"],
        )


def test_a_broken_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetrun.errors import HetrunError
    from hetrun_alveo_u280 import driver, native

    monkeypatch.setattr(native, "library_problem", lambda: HetrunError("gone", remedy="reinstall"))
    infos = driver.AlveoU280Driver().probe({})
    assert [i.id for i in infos] == [CSIM, "alveo-u280:0"]
    assert all(i.unavailable and i.unavailable.reason == "gone" for i in infos)


def test_times_are_the_cycle_model_s_and_say_so(tiny: Path) -> None:
    with load(tiny) as model:
        device = model.session.runtime.devices[CSIM]
        device.synchronize()
        model.session.runtime.steps["decode"][0].executable.run(Batch.of([1], [0], [0], [0]))
        [event] = device.synchronize()
        device.profile(True)  # type: ignore[attr-defined]
        model.session.runtime.steps["decode"][0].executable.run(Batch.of([1], [0], [0], [0]))
        [profiled] = device.synchronize()
        names = {op.name for op in model.session.runtime.graph.ops}
    assert event.basis == profiled.basis == "simulated:alveo-u280 cycle model"
    assert event.seconds == pytest.approx(profiled.seconds, rel=0.1)
    assert event.counters["wall_s"] > 0 and event.counters["weight_beats"] > 0
    assert profiled.steps is not None and ("blk.1.attn",) in profiled.steps.ops
    assert {name for ops in profiled.steps.ops for name in ops} == names


def test_csim_is_found_and_the_card_is_missed() -> None:
    infos = {i.id: i for i in AlveoU280Driver().probe({"threads": 1})}
    assert infos[CSIM].unavailable is None and infos[CSIM].backing == "emulated"
    assert infos["alveo-u280:0"].backing == "hardware"
