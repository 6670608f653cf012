"""Modelled devices that another device stands in for: its tokens, the model's times.

Oracles: the acting device alone for results, and the modelled driver's own estimates, op by op, for times.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.stand_ins import found
from models import tiny_llama

import hetrun
from hetrun.api import choose_devices
from hetrun.config import load_system
from hetrun.device import Batch, Cost, Unsupported, Workload
from hetrun.errors import AllocationError, DeviceError
from hetrun.graph.graph import Graph
from hetrun.ops import KvSpec, Scale, Value
from hetrun.plugins import Registry
from hetrun.reference.driver import ReferenceDriver
from hetrun.run.stand_in import COPY_S, HOST_S, Actor, stand_in, workload_of
from hetrun_modelled.driver import ModelledDriver

PROMPT = [5, 17, 3, 99, 250]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", quant="Q4_0")


def generated(model: Path, **options: object) -> list[int]:
    with hetrun.load(model, n_ctx=64, **options) as loaded:
        generation = loaded.generate(PROMPT, max_tokens=12, temperature=0.0)
        generation.finish()
        return list(generation.tokens)


CARD = ["model:x86-generic", "model:alveo-u280"]


@pytest.mark.parametrize("system", ["pynq-z1", "rpi5", "laptop", "kv260"])
def test_tokens_are_those_of_the_acting_device(system: str, model: Path) -> None:
    """Shared memory, one device alone. The cpu's results do not depend on the segments."""
    actor = acting_id(model)
    assert generated(model, system=load_system(system)) == generated(model, devices=[actor])


def test_tokens_behind_links_are_those_of_the_acting_device(model: Path) -> None:
    actor = acting_id(model)
    assert generated(model, devices=CARD) == generated(model, devices=[actor])


def acting_id(model: Path) -> str:
    with hetrun.load(model, n_ctx=64, devices=["model:cortex-a76"]) as loaded:
        return loaded.stand_ins[0].acting_id


def test_a_device_that_is_here_runs_beside_a_stand_in(model: Path) -> None:
    """Matrix products on the modelled overlay, the rest on the reference."""
    actor = acting_id(model)
    devices = ["reference", "model:pynq-z1"]
    with hetrun.load(model, n_ctx=64, devices=devices, pins=["blk.*.ffn_*=reference"]) as loaded:
        assert set(loaded.plan.used_devices) == {"reference:0", "model:pynq-z1"}
        assert [d.acting_id for d in loaded.stand_ins] == [actor]
        generation = loaded.generate(PROMPT, max_tokens=4, temperature=0.0)
        generation.finish()
    assert list(generation.tokens) == generated(model, devices=["reference"])[:4]


def priced(graph: Graph, device_id: str, workload: Workload) -> float:
    """Seconds of a step on one modelled device, as its driver says op by op."""
    driver = ModelledDriver()
    info = next(i for i in driver.probe({}) if i.id == device_id)
    answers = [driver.estimate(info, op, workload) for op in graph.ops]
    return info.launch.seconds + sum(a.seconds for a in answers if isinstance(a, Cost))


def test_times_are_those_of_the_model(model: Path) -> None:
    """A prompt of five behind nothing, then a token behind five, then one behind six."""
    with hetrun.load(model, n_ctx=64, devices=["model:cortex-a9"]) as loaded:
        graph, (device,) = loaded.session.runtime.graph, loaded.stand_ins
        loaded.session.feed(PROMPT)
        assert device.time.decode_s == 0
        loaded.session.feed([7])
        loaded.session.feed([8])
        time = device.time
        assert time.prefill_s == pytest.approx(priced(graph, "model:cortex-a9", Workload(5, 0)))
        assert time.decode_s == pytest.approx(
            priced(graph, "model:cortex-a9", Workload(1, 5)) + priced(graph, "model:cortex-a9", Workload(1, 6))
        )
        assert time.basis == "analytic:profile cortex-a9"
        assert time.host_s > 0


def test_events_carry_both_clocks(model: Path) -> None:
    with hetrun.load(model, n_ctx=64, devices=["model:cortex-a76"]) as loaded:
        runtime = loaded.session.runtime
        (step,) = runtime.steps["prefill"]
        step.executable.run(Batch.of(PROMPT, range(5), [0] * 5, [4]))
        (event,) = runtime.devices["model:cortex-a76"].synchronize()
        assert event.segment == step.segment.name
        assert event.basis == "analytic:profile cortex-a76"
        assert event.seconds == pytest.approx(priced(runtime.graph, "model:cortex-a76", Workload(5, 0)))
        assert event.counters[HOST_S] > 0 and event.counters[HOST_S] != event.seconds
        assert event.counters[COPY_S] == 0


def test_profiles_get_the_seconds_of_each_op(model: Path) -> None:
    """With the launch they sum to the run."""
    with hetrun.load(model, n_ctx=64, devices=["model:cortex-a76"]) as loaded:
        loaded.session.record()
        loaded.session.feed(PROMPT)
        (run,) = loaded.trace.steps[0].runs
        assert run.event is not None and run.event.steps is not None
        names = [op.name for op in loaded.session.runtime.graph.ops]
        assert list(run.event.steps.ops) == [(name,) for name in names]
        launch_s = loaded.stand_ins[0].info.launch.seconds
        assert sum(run.event.steps.seconds) + launch_s == pytest.approx(run.event.seconds)


def test_copies_over_a_link_take_its_time(model: Path) -> None:
    """The embeddings of 5 tokens go up before the card's run; what comes down after it counts with the next."""
    pins = ["blk.*=model:alveo-u280"]
    with hetrun.load(model, n_ctx=64, devices=CARD, pins=pins) as loaded:
        card = next(d for d in loaded.stand_ins if d.info.id == "model:alveo-u280")
        runtime = loaded.session.runtime
        ups = [c for step in runtime.steps["prefill"] if step.device == card.info.id for c in step.copies]
        loaded.session.feed(PROMPT)
        link = card.info.spaces[0].upload
        assert link is not None and ups
        expected = sum(link.seconds(4 * c.value.width * len(PROMPT)) for c in ups)
        own = sum(
            a.seconds
            for op, assigned in zip(runtime.graph.ops, loaded.plan.prefill, strict=True)
            if assigned.device == card.info.id
            and isinstance(a := ModelledDriver().estimate(card.info, op, Workload(5, 0)), Cost)
        )
        runs = sum(step.device == card.info.id for step in runtime.steps["prefill"])
        assert card.time.prefill_s == pytest.approx(own + runs * card.info.launch.seconds + expected)


def test_one_actor_serves_all(model: Path) -> None:
    """Two pools of threads that wait for each other would be many times slower."""
    chosen = choose_devices(Registry.load(), ["model:cortex-a9", "model:pynq-z1"])
    actors = {id(device.driver.actor) for device in chosen}
    assert len(actors) == 1
    first, second = (device.driver.open(device.info) for device in chosen)
    first.close()
    buffer = second.alloc(64)
    buffer.write(memoryview(bytes(64)))
    second.close()
    with pytest.raises(DeviceError, match="model:cortex-a9 is closed"):
        first.alloc(64)


def test_it_is_shown_as_no_hardware() -> None:
    (device,) = choose_devices(Registry.load(), ["model:pynq-z1"])
    assert device.info.backing == "emulated" and device.info.unavailable is None
    assert "stands in for it, its times are modelled" in device.info.description


def test_planning_alone_takes_the_model_as_it_is() -> None:
    (device,) = choose_devices(Registry.load(), ["model:pynq-z1"], to_run=False)
    assert device.info.backing == "modelled"


def stand_in_of(device_id: str) -> tuple[object, object]:
    device = stand_in(found(ModelledDriver(), device_id), Actor(found(ReferenceDriver(), "reference:0")))
    return device.driver, device.info


def test_refusals_of_both_are_told() -> None:
    driver, info = stand_in_of("model:pynq-z1")
    answer = driver.estimate(info, Scale("s", Value("x", 8), 2.0), Workload(1, 0))
    assert isinstance(answer, Unsupported) and answer.reason.startswith("pynq-z1 has no scale")
    driver, info = stand_in_of("model:null")
    other = type("Other", (Scale,), {"kind": "scale"})("s", Value("x", 8), 2.0)
    answer = driver.estimate(info, other, Workload(1, 0))
    assert (
        isinstance(answer, Unsupported) and "reference:0, which stands in for model:null, refuses it" in answer.reason
    )


def test_memory_runs_out_as_on_the_modelled_device() -> None:
    """The PYNQ-Z1 has 433 MB, whatever this machine has; what is closed is there again."""
    driver, info = stand_in_of("model:cortex-a9")
    device = driver.open(info)
    first = device.alloc(400_000_000)
    with pytest.raises(AllocationError, match="model:cortex-a9: 40000000 bytes asked for, 33061888 free in host"):
        device.alloc(40_000_000)
    with pytest.raises(AllocationError):
        device.state(KvSpec("kv", 1, 4096, 32, 128))
    first.close()
    first.close()
    device.alloc(400_000_000).close()
    device.close()


def test_workload_of_a_batch() -> None:
    assert workload_of(Batch.of([1, 2, 3], [4, 5, 6], [0, 0, 0], [2])) == Workload(3, 4, 1, 1)
    assert workload_of(Batch.of([1, 2], [10, 20], [0, 1], [0, 1])) == Workload(2, 15, 2, 2)
    assert workload_of(Batch.of([], [], [], [])) == Workload(0, 0, 1, 0)


def test_without_anything_that_could_act_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetrun.api._ACTORS", ())
    with pytest.raises(DeviceError, match="it can be planned for, not run"):
        choose_devices(Registry.load(), ["model:pynq-z1"])


def test_options_are_kept(model: Path) -> None:
    """Windows and KV formats go to the acting device as they are."""
    options = {"window": 8, "sink": 2, "kv_format": "kv4"}
    actor = acting_id(model)
    acted = generated(model, devices=["model:cortex-a76"], **options)
    assert acted == generated(model, devices=[actor], **options)
    assert acted != generated(model, devices=[actor])
