"""Calibration of a device whose true times are known."""

from __future__ import annotations

import dataclasses

import pytest
from simulated_device import CACHE_BYTES, TRUE_LINK, Law, SimulatedDriver

from hetrun.api import choose_devices
from hetrun.calibration import store
from hetrun.calibration.table import Calibration
from hetrun.calibration.terms import with_again
from hetrun.device import Cost, Link, Workload
from hetrun.errors import DeviceError
from hetrun.measure.whole import Sizes
from hetrun.ops import OP_TYPES, Attention, KvSpec, MatMul, Value
from hetrun.plan.cost import CostTable
from hetrun.plugins import FoundDevice, Plugin, Registry
from hetrun.tensor import TENSOR_TYPES

from .conftest import Measure, found

SMALL = Sizes(n_layers=30, n_embd=576, n_ff=1536, n_heads=9, n_heads_kv=3, n_vocab=49152)
LARGE = Sizes(n_layers=22, n_embd=2048, n_ff=5632, n_heads=32, n_heads_kv=4, n_vocab=32000)
WORKLOADS = {
    "prefill 256": Workload(256, 0),
    "prefill 100 behind 50": Workload(100, 50),
    "prefill 512": Workload(512, 0),
    "decode at 33": Workload(1, 33),
    "decode at 700": Workload(1, 700),
    "8 sequences": Workload(8, 40, 8, 8),
}


def step_s(graph, workload, device: FoundDevice) -> float:
    return CostTable.ask(graph, workload, [device]).price([device.info.id] * len(graph.ops)).total_s


@pytest.fixture(scope="module")
def driver() -> SimulatedDriver:
    return SimulatedDriver(Law(noise=0.03))


@pytest.fixture(scope="module")
def calibration(driver: SimulatedDriver, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    from hetrun.measure.calibrate import Wanted, calibrate
    from hetrun.measure.timing import LEVELS, Effort

    patch = pytest.MonkeyPatch()
    patch.setattr("hetrun.measure.timing.wait_for_quiet", lambda: None)
    patch.setattr("hetrun.measure.timing.time.sleep", lambda seconds: None)
    wanted, effort = Wanted(("Q8_0", "Q4_0")), Effort(rounds=3, tries=1, levels=LEVELS[:2])
    result = calibrate(found(driver), wanted, effort, None, lambda c: None, lambda *_: None, driver.clock)
    patch.undo()
    return result


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(("sizes", "kind"), [(SMALL, "Q8_0"), (LARGE, "Q4_0")], ids=["small", "large"])
def test_whole_steps_are_predicted(
    name: str, sizes: Sizes, kind: str, driver: SimulatedDriver, calibration: Calibration
) -> None:
    graph, workload = sizes.graph(kind, 1024), WORKLOADS[name]
    truth = driver.law.step_seconds(graph.ops, workload)
    assert step_s(graph, workload, found(driver).calibrated(calibration)) == pytest.approx(truth, rel=0.1)
    # What was planted is off by far more, so the test shows something.
    assert abs(step_s(graph, workload, found(driver)) / truth - 1) > 0.3


def test_matmuls_are_predicted_one_by_one(driver: SimulatedDriver, calibration: Calibration) -> None:
    graph = LARGE.graph("Q4_0", 1024)
    workload = Workload(256, 0)
    answers = CostTable.ask(graph, workload, [found(driver).calibrated(calibration)]).answers
    for (op, again), answer in zip(with_again(graph.ops), answers, strict=True):
        if isinstance(op, MatMul) and op.output.rows == "tokens":
            truth = driver.law.op_seconds(op, workload, 10**9, again)
            assert answer["sim:0"].seconds == pytest.approx(truth, rel=0.15), op.name


def test_planted_estimate_is_shown_as_wrong(calibration: Calibration) -> None:
    from hetrun.calibration.summary import summary

    groups = {g["group"]: g for g in summary(calibration)["groups"]}
    assert groups["matmul Q4_0"]["error_before"] > 0.5 > 0.1 > groups["matmul Q4_0"]["error_after"]
    assert all(abs(c["error_after"]) < 0.1 < 0.3 < abs(c["error_before"]) for c in summary(calibration)["checks"])
    assert len(calibration.checks) == 2


def test_right_estimate_stays_right(measure: Measure) -> None:
    """A driver that knows its device is not made worse."""
    law = Law(launch_s=1e-6)
    driver = SimulatedDriver(law)
    driver.estimate = lambda info, op, workload: Cost(  # type: ignore[method-assign]
        law.op_seconds(op, workload, 10**9, False), "analytic:the law"
    )
    calibration = measure(driver)
    graph = LARGE.graph("Q4_0", 512)
    for workload in (Workload(256, 0), Workload(1, 33)):
        truth = law.step_seconds(graph.ops, workload)
        after = step_s(graph, workload, found(driver).calibrated(calibration))
        assert abs(after / truth - 1) < 0.08


def test_launch_is_found(driver: SimulatedDriver, calibration: Calibration) -> None:
    """The law's launch, and of the small op that it was timed with."""
    assert calibration.launch_s == pytest.approx(driver.law.launch_s, rel=0.1)
    info = found(driver).calibrated(calibration).info
    assert info.launch.seconds == calibration.launch_s and info.launch.basis.startswith("measured:calibration of ")


def test_weights_beyond_the_caches_cost_more(driver: SimulatedDriver, calibration: Calibration) -> None:
    op = next(op for op in LARGE.graph("Q4_0", 512).ops if op.name == "blk.0.ffn_up")
    near, far = (calibration.seconds(op, Workload(1, 0), n, True) for n in (4_000_000, 600_000_000))
    for seconds, footprint in ((near, 4_000_000), (far, 600_000_000)):
        assert seconds == pytest.approx(driver.law.op_seconds(op, Workload(1, 0), footprint, True), rel=0.1)


def test_type_that_was_not_measured_is_scaled(driver: SimulatedDriver, calibration: Calibration) -> None:
    op = next(op for op in LARGE.graph("Q6_K", 512).ops if op.name == "blk.0.ffn_up")
    estimate = dataclasses.replace(driver.estimate(found(driver).info, op, Workload(256, 0)), joules=3.0)
    cost = calibration.cost(estimate, op, Workload(256, 0), 10**9, False)
    assert cost.basis.startswith("analytic:planted, scaled by the calibration of ")
    assert cost.seconds == pytest.approx(estimate.seconds * calibration.ratios["matmul"])
    assert cost.joules == pytest.approx(3.0 * calibration.ratios["matmul"])


def test_measured_cost_says_so_and_keeps_the_rest(driver: SimulatedDriver, calibration: Calibration) -> None:
    op = next(op for op in LARGE.graph("Q4_0", 512).ops if op.name == "blk.0.ffn_up")
    estimate = driver.estimate(found(driver).info, op, Workload(1, 0))
    cost = calibration.cost(estimate, op, Workload(1, 0), 10**9, False)
    assert cost.basis == f"measured:calibration of {calibration.date[:10]}, interpolated"
    assert cost.resident == estimate.resident and cost.joules is None


def test_no_rows_cost_nothing(calibration: Calibration) -> None:
    op = next(op for op in LARGE.graph("Q4_0", 512).ops if op.name == "output")
    assert calibration.seconds(op, Workload(16, 0, 1, 0), 10**9, False) == 0.0


def test_slow_device_is_measured_in_bounded_time(measure: Measure) -> None:
    """A hundredth of the speed: fewer tokens, fewer keys, shorter programs, and still prices for everything."""
    slow = Law(
        rates={"Q4_0": (6e8, 3e8, 5e9)}, other_rates=(5e8, 2.5e8, 4e9), attention_flops_per_s=6e8, launch_s=1e-3,
        prepare_s=1e-4, prepare_element_s=3e-8, op_s=4e-5, element_s=2e-8, attention_s=3e-4,
    )  # fmt: skip
    driver = SimulatedDriver(slow)
    calibration = measure(driver, ("Q4_0",))
    assert driver.clock.now_s < 160
    behind = {int(o.program.rsplit(" ", 1)[1]) for o in calibration.observations if "attention" in o.group}
    assert {0, 32} <= behind and 1024 not in behind
    graph = LARGE.graph("Q4_0", 512)
    for workload in (Workload(16, 0), Workload(1, 33)):
        truth = slow.step_seconds(graph.ops, workload)
        assert step_s(graph, workload, found(driver).calibrated(calibration)) == pytest.approx(truth, rel=0.15)


def test_keys_beyond_the_caches_cost_more(measure: Measure) -> None:
    class WithKeys(Law):
        def op_seconds(self, op, workload, footprint, again):
            seconds = super().op_seconds(op, workload, footprint, again)
            if isinstance(op, Attention) and workload.n_tokens == 1:
                seconds += op.kv_bytes(workload) / (20e9 if footprint > CACHE_BYTES else 200e9)
            return seconds

    law = WithKeys()
    calibration = measure(SimulatedDriver(law), ("Q4_0",))
    op = Attention("attn", Value("q", 2048), Value("k", 2048), Value("v", 2048), KvSpec("kv", 1, 2048, 16, 128), 1.0)
    for footprint in (4_000_000, 600_000_000):
        truth = law.op_seconds(op, Workload(1, 1000), footprint, False)
        assert calibration.seconds(op, Workload(1, 1000), footprint, False) == pytest.approx(truth, rel=0.1)


def test_types_that_the_device_keeps_in_one_form_are_timed_once(measure: Measure) -> None:
    class Widening(SimulatedDriver):
        """Keeps every matrix in float32."""

        def estimate(self, info, op, workload):
            return super().estimate(info, as_f32(op), workload)

    def as_f32(op):
        if not isinstance(op, MatMul):
            return op
        return dataclasses.replace(op, weight=dataclasses.replace(op.weight, type=TENSOR_TYPES["F32"]))

    driver = Widening(Law())
    calibration = measure(driver, ("Q8_0", "Q6_K"))
    assert [g for g in dict.fromkeys(o.group for o in calibration.observations) if "matmul" in g] == ["matmul Q4_0"]
    assert {calibration.alike[t] for t in ("Q8_0", "Q6_K", "IQ3_S")} == {"Q4_0"}
    assert not {"Q4_0", "F32", "F16"} & set(calibration.alike)  # rows of F16 need be no whole blocks of Q4_0
    ops = [next(op for op in LARGE.graph(t, 512).ops if op.name == "blk.0.ffn_up") for t in ("Q4_0", "Q8_0", "Q6_K")]
    for workload in (Workload(1, 0), Workload(64, 0)):
        answers = [driver.estimate(found(driver).info, op, workload) for op in ops]
        costs = [calibration.cost(a, op, workload, 10**9, True) for a, op in zip(answers, ops, strict=True)]
        assert len({(c.seconds, c.basis) for c in costs}) == 1 and costs[0].basis == calibration.basis


def test_links_are_found(measure: Measure) -> None:
    driver = SimulatedDriver(Law(), link=Link(1e-3, 1e6, "analytic:planted"))
    calibration = measure(driver, ("Q8_0",))
    upload = found(driver).calibrated(calibration).info.spaces[0].upload
    assert (upload.latency_s, upload.bytes_per_s) == pytest.approx(
        (TRUE_LINK.latency_s, TRUE_LINK.bytes_per_s), rel=0.05
    )


def test_device_of_matmuls_alone_is_measured(measure: Measure) -> None:
    """Neither norm nor attention: matmuls are timed one after the other, and nothing is held against whole steps."""
    refused = frozenset(("rms_norm", "add", "attention", "rope", "gated_activation", "bias", "embedding", "scale"))
    driver = SimulatedDriver(Law(), refuses=refused | {"select_rows", "soft_cap", "Q4_0"})
    calibration = measure(driver)
    assert [o.group for o in calibration.observations if "matmul" not in o.group] == []
    op = next(op for op in LARGE.graph("Q8_0", 512).ops if op.name == "blk.0.ffn_up")
    truth = driver.law.op_seconds(op, Workload(64, 0), 10**9, False)
    assert calibration.seconds(op, Workload(64, 0), 10**9, False) == pytest.approx(truth, rel=0.1)
    assert calibration.checks == ()


def test_device_without_matmuls_is_measured(measure: Measure) -> None:
    driver = SimulatedDriver(Law(), refuses=frozenset(("matmul",)))
    calibration = measure(driver)
    norm = next(op for op in LARGE.graph("Q8_0", 512).ops if op.kind == "rms_norm")
    truth = driver.law.op_seconds(norm, Workload(64, 0), 0, False)
    assert calibration.seconds(norm, Workload(64, 0), 0, False) == pytest.approx(truth, rel=0.1)


def test_device_that_takes_nothing_is_an_error(measure: Measure) -> None:
    with pytest.raises(DeviceError, match="sim:0 takes no op that can be timed"):
        measure(SimulatedDriver(Law(), refuses=frozenset(OP_TYPES)))


@pytest.mark.parametrize("backing", ["emulated", "modelled"])
def test_what_is_no_hardware_is_not_measured(backing: str) -> None:
    from hetrun.measure.calibrate import check_measurable

    device = found(SimulatedDriver())
    with pytest.raises(DeviceError, match=f"sim:0 is {backing}: there is no hardware to measure"):
        check_measurable(dataclasses.replace(device, info=dataclasses.replace(device.info, backing=backing)))


def test_interruption_keeps_what_was_measured(measure: Measure) -> None:
    driver = SimulatedDriver(Law())
    whole = measure(driver)
    n_runs = driver.runs
    driver = SimulatedDriver(Law(), fails_after=int(n_runs * 0.8))
    kept: list[Calibration] = []
    with pytest.raises(KeyboardInterrupt):
        measure(driver, keep=kept.append)
    groups = list(dict.fromkeys(o.group for o in kept[-1].observations))
    assert groups == list(dict.fromkeys(o.group for o in whole.observations))[: len(groups)]
    assert groups[0] == "other ops" and kept[-1].prices


def test_what_is_not_measured_again_stays(measure: Measure) -> None:
    first = measure(SimulatedDriver(Law()), ("Q8_0",))
    slower = Law(rates={"Q4_0": (6e9, 3e9, 50e9), "Q8_0": (80e9, 40e9, 600e9)})
    second = measure(SimulatedDriver(slower), ("Q4_0",), before=first)
    groups = [o.group for o in second.observations]
    assert "matmul Q8_0" in groups and groups.count("matmul Q4_0") == len(
        [o for o in first.observations if o.group == "matmul Q4_0"]
    )
    op = next(op for op in LARGE.graph("Q4_0", 512).ops if op.name == "blk.0.ffn_up")
    truth = slower.op_seconds(op, Workload(256, 0), 10**9, True)
    assert second.seconds(op, Workload(256, 0), 10**9, True) == pytest.approx(truth, rel=0.15)


def test_stored_calibration_is_used_by_plans(measure: Measure) -> None:
    driver = SimulatedDriver(Law())
    device = found(driver)
    store.write(measure(driver), store.path_of(driver, device.info))
    registry = Registry()
    registry.add(Plugin("sim", "sim"), lambda: _Module(driver))
    (chosen,) = choose_devices(registry, ["sim"])
    graph = LARGE.graph("Q4_0", 512)
    truth = driver.law.step_seconds(graph.ops, Workload(256, 0))
    assert step_s(graph, Workload(256, 0), chosen) == pytest.approx(truth, rel=0.1)
    (plain,) = choose_devices(registry, ["sim"], calibrated=False)
    assert plain.calibration is None and step_s(graph, Workload(256, 0), plain) < truth / 2
    # Another number of threads is another device to measure.
    assert choose_devices(registry, ["sim"], threads=7)[0].calibration is None


class _Module:
    def __init__(self, driver: SimulatedDriver) -> None:
        from hetrun.hookspecs import hookimpl

        self.hetrun_drivers = hookimpl(lambda: [driver], specname="hetrun_drivers")


def test_every_op_of_a_llama_is_measured(driver: SimulatedDriver, calibration: Calibration) -> None:
    graph = LARGE.graph("Q4_0", 512)
    for workload in (Workload(256, 0), Workload(1, 33)):
        answers = CostTable.ask(graph, workload, [found(driver).calibrated(calibration)]).answers
        assert {a["sim:0"].basis for a in answers} == {calibration.basis}
