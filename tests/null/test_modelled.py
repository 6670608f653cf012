"""Modelled devices: planned for by their profiles, never run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from hetrun.api import choose_devices
from hetrun.config import load_profile, load_system
from hetrun.device import Cost, DeviceInfo, Segment, Unsupported, Workload
from hetrun.errors import ConfigError, DeviceError
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.model.shape import load_shape
from hetrun.ops import Attention, GatedActivation, KvSpec, MatMul, Op, RmsNorm, Value
from hetrun.plan.place import Request, make_plan
from hetrun.plugins import FoundDevice, Registry
from hetrun.resources import resource_path
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun.toml_table import shipped
from hetrun_cpu.driver import CpuDriver
from hetrun_modelled.driver import ModelledDriver

DRIVER = ModelledDriver()
DECODE = Workload(1, 0)


def device(name: str) -> DeviceInfo:
    return next(info for info in DRIVER.probe({}) if info.id == f"model:{name}")


def matmul(type_name: str = "Q4_K", n_out: int = 2048, n_in: int = 2048) -> MatMul:
    return MatMul(
        "blk.0.ffn_up", Value("x", n_in), Weight("blk.0.ffn_up.weight", TENSOR_TYPES[type_name], (n_out, n_in))
    )


def cost(name: str, op: Op, workload: Workload = DECODE) -> Cost:
    answer = DRIVER.estimate(device(name), op, workload)
    assert isinstance(answer, Cost)
    return answer


def refusal(name: str, op: Op) -> str:
    answer = DRIVER.estimate(device(name), op, DECODE)
    assert isinstance(answer, Unsupported)
    return answer.reason


def test_there_is_one_device_a_profile() -> None:
    assert [info.id for info in DRIVER.probe({})] == [f"model:{name}" for name in shipped("devices")]


def test_all_are_modelled_and_say_so() -> None:
    for info in DRIVER.probe({}):
        assert info.backing == "modelled"
        assert info.unavailable is not None


def test_memory_of_a_card_is_its_own() -> None:
    (space,) = device("alveo-u280").spaces
    assert (space.name, space.capacity_bytes) == ("model:alveo-u280/hbm", 8 << 30)
    assert space.upload is not None


def test_decode_is_bound_by_memory() -> None:
    """Weights, x and y over the profile's bandwidth, and the fixed cost of an op."""
    nbytes = 2048 * 2048 // 256 * 144 + 4 * (2048 + 2048)
    assert cost("pynq-z1", matmul()).seconds == pytest.approx(nbytes / 1.575e9 + 2e-6)


def test_prefill_is_bound_by_arithmetic() -> None:
    flops = 2 * 512 * 2048 * 2048
    assert cost("pynq-z1", matmul(), Workload(512, 0)).seconds == pytest.approx(flops / 32e9 + 2e-6)


def test_what_is_fused_costs_no_memory() -> None:
    """The PYNQ-Z1's engine activates results on their way; processors read gate and up, and write."""
    op = GatedActivation("blk.0.ffn_act", Value("gate", 5632), Value("up", 5632))
    assert cost("pynq-z1", op).seconds == pytest.approx(2e-6)
    assert cost("pynq-z1", op).joules == pytest.approx(2e-6 * device("pynq-z1").model["watts"])
    assert cost("cortex-a9", op).seconds > 10e-6
    assert refusal("kv260", op) == "kv260 has no gated_activation (it has matmul)"


def test_functions_of_activations_are_the_profiles() -> None:
    op = GatedActivation("blk.0.ffn_act", Value("gate", 64), Value("up", 64), "gelu")
    assert refusal("pynq-z1", op) == "pynq-z1 has no gelu (it has silu)"
    assert cost("cortex-a9", op).seconds > 0


def test_the_shipped_board_makes_one_launch_of_a_feed_forward_block() -> None:
    """As the engine does: 67 launches a token of TinyLlama, where matmuls alone would be 89."""
    graph = graph_of("tinyllama-382mb")
    devices = [FoundDevice(DRIVER, device(name), "modelled") for name in ("cortex-a9", "pynq-z1")]
    plan = make_plan(graph, devices, Request(gen_tokens=1, max_tokens=16))
    placed = [(a.op.partition(".ffn_")[2], a.device) for a in plan.decode]
    assert {d for name, d in placed if name in ("gate", "up", "act", "down")} == {"model:pynq-z1"}
    engine_runs = sum(d == "model:pynq-z1" for d, _ in itertools.groupby(d for _, d in placed))
    assert engine_runs == 3 * 22 + 1


def test_cost_names_its_profile() -> None:
    assert cost("pynq-z1", matmul()).basis == "analytic:profile pynq-z1"
    assert cost("x86-generic", matmul()).basis == "measured:profile x86-generic"
    assert device("pynq-z1").launch.basis == "analytic:profile pynq-z1"


def test_joules_where_power_is_known() -> None:
    known = cost("alveo-u280", matmul("Q4_0"))
    assert known.joules == pytest.approx(45.0 * known.seconds)


@pytest.mark.parametrize("name", shipped("devices"))
def test_power_of_every_shipped_device_is_known(name: str) -> None:
    """So that plans by energy work on each shipped system."""
    assert cost(name, matmul("Q4_0")).joules is not None
    assert device(name).launch.joules is not None
    assert 0 <= device(name).model["idle_watts"] <= device(name).model["watts"]


@pytest.mark.parametrize(
    ("system", "watts"),
    [
        ("pynq-z1", {"model:cortex-a9": 3.2, "model:pynq-z1": 3.4}),
        ("kv260", {"model:cortex-a53": 10.0, "model:kv260": 10.13}),
        ("rpi5", {"model:cortex-a76": 13.9}),
    ],
)
def test_a_system_draws_what_its_boards_do(system: str, watts: dict[str, float]) -> None:
    """Whichever device works: a board is counted once, and one that waits is counted, too."""
    devices = choose_devices(Registry.load(), None, system=load_system(system), to_run=False)
    assert {d.info.id: d.info.model["watts"] for d in devices} == pytest.approx(watts, abs=0.005)


def test_null_device_costs_nothing() -> None:
    assert cost("null", matmul()).seconds == 0.0


def test_weights_are_resident_in_the_cards_memory() -> None:
    assert cost("alveo-u280", matmul("Q8_0")).resident == {
        ("model:alveo-u280/hbm", "blk.0.ffn_up.weight"): 2048 * 64 * 34
    }


def test_op_outside_the_profile_is_refused() -> None:
    norm = RmsNorm("blk.0.attn_norm", Value("x", 64), Weight("w", TENSOR_TYPES["F32"], (64,)), 1e-5)
    assert refusal("pynq-z1", norm) == "pynq-z1 has no rms_norm (it has gated_activation, matmul)"


def test_type_outside_the_profile_is_refused() -> None:
    assert refusal("alveo-u280", matmul("Q4_K")) == "alveo-u280 reads no Q4_K weights (it reads F32, Q4_0, Q8_0)"


def test_kv_format_outside_the_profile_is_refused() -> None:
    kv = KvSpec("kv", 1, 64, 2, 32, "f32")
    attention = Attention("blk.0.attn", Value("q", 64), Value("k", 64), Value("v", 64), kv, 0.1)
    assert "no KV cache in f32" in refusal("alveo-u280", attention)


def test_paging_from_the_card_explains_the_published_baseline() -> None:
    """459.5 MB a token from an SD card are 18.7 s (arXiv 2408.00462); resident, 1,034 MMAC at 0.8 GMAC/s are 1.3 s."""
    big = matmul("Q3_K", 32000)
    ratio = cost("cortex-a9-paging", big).seconds / cost("cortex-a9", big).seconds
    assert ratio == pytest.approx(18.7 / 1.3, rel=0.1)


def test_program_tells_its_memory() -> None:
    op = matmul()
    segment = Segment("s", (op,), op.inputs, (op.output,), 1, 1)
    program = DRIVER.compile(device("pynq-z1"), segment)
    assert program.segment == segment
    assert program.resident == {("host", "blk.0.ffn_up.weight"): op.weight.nbytes}


def test_open_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="modelled from a profile: it can be planned for, not run") as raised:
        DRIVER.open(device("pynq-z1"))
    assert "hetrun plan" in (raised.value.remedy or "")


def test_settings_may_name_more_profiles(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text(resource_path("hetrun/configs/devices/pynq-z1.toml").read_text().replace("125 MHz", "150 MHz"))
    info = DRIVER.probe({"profiles": [str(path)]})[-1]
    assert info.id == "model:my-board"
    assert isinstance(DRIVER.estimate(info, matmul(), DECODE), Cost)


@pytest.mark.parametrize(
    "settings",
    [
        {"profile": ["x.toml"]},
        {"profiles": "x.toml"},
        {"profiles": [3]},
        {"profiles": ["pynq-z1.toml"]},
        {"profiles": ["a/x.toml", "b/x.toml"]},
    ],
)
def test_wrong_setting_is_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="driver modelled"):
        DRIVER.probe(settings)


# A dry run of this overlay: its cycle model's engine seconds a token (DDR at 75.3%), and those of the whole token, with
# launches from C and one and two cores of the A9 beside it. The profiles must lie within what these span.
ENGINE = {"tinyllama-q2_k": 0.2923, "tinyllama-382mb": 0.244}
WHOLE = {  # (shape, tokens before) -> (least, most)
    ("tinyllama-q2_k", 16): (0.308, 0.324),
    ("tinyllama-q2_k", 512): (0.345, 0.398),
    ("tinyllama-382mb", 16): (0.260, 0.276),
    ("tinyllama-382mb", 512): (0.296, 0.349),
}


def graph_of(shape: str) -> Graph:
    found = load_shape(shape)
    options = GraphOptions(n_ctx=1024)
    return build_graph(found.architecture, found.metadata, found.tensors, options, architectures())


def seconds(name: str, ops: Iterable[Op], workload: Workload) -> float:
    return sum(cost(name, op, workload).seconds for op in ops)


@pytest.mark.parametrize("shape", ENGINE)
def test_overlay_takes_what_its_cycle_model_says(shape: str) -> None:
    matmuls = [op for op in graph_of(shape).ops if op.kind == "matmul"]
    assert seconds("pynq-z1", matmuls, DECODE) == pytest.approx(ENGINE[shape], rel=0.02)


def test_overlay_multiplies_as_fast_as_its_cycle_model_says() -> None:
    """Prefill at 63 ms a token for 1,034 MMAC."""
    matmuls = [op for op in graph_of("tinyllama-q2_k").ops if op.kind == "matmul"]
    prompt = Workload(128, 0)
    macs = sum(op.flops(prompt) for op in matmuls) / 2
    assert macs / seconds("pynq-z1", matmuls, prompt) == pytest.approx(1034e6 / 0.063, rel=0.05)


@pytest.mark.parametrize(("shape", "n_past"), WHOLE)
def test_board_takes_what_the_dry_run_says(shape: str, n_past: int) -> None:
    """Within a tenth of the range between one core and two."""
    graph, workload = graph_of(shape), Workload(1, n_past)
    matmuls = [op for op in graph.ops if op.kind == "matmul"]
    rest = [op for op in graph.ops if op.kind != "matmul"]
    launches = 89 * device("pynq-z1").launch.seconds  # q, k, v | o | gate, up | down, 22 times, and the head
    whole = seconds("pynq-z1", matmuls, workload) + seconds("cortex-a9", rest, workload) + launches
    least, most = WHOLE[shape, n_past]
    assert 0.9 * least <= whole <= 1.1 * most


def test_resident_cores_take_what_was_computed_for_them() -> None:
    """About 1.3 s a token, 1.2 to 2, for two cores with NEON; the paging baseline of the paper is 18.7 s."""
    ops = graph_of("tinyllama-q2_k").ops
    assert 1.2 <= seconds("cortex-a9", ops, Workload(1, 16)) <= 2.0
    assert seconds("cortex-a9-paging", ops, Workload(1, 16)) == pytest.approx(18.7, rel=0.05)


def test_pi_5_decodes_as_measured() -> None:
    """9 tokens/s of TinyLlama Q8_0 by llama.cpp and llamafile (justine.lol/matmul): the profile is made from others."""
    shape = load_shape("tinyllama").quantised("Q8_0")
    graph = build_graph(shape.architecture, shape.metadata, shape.tensors, GraphOptions(n_ctx=512), architectures())
    assert 1 / seconds("cortex-a76", graph.ops, Workload(1, 64)) == pytest.approx(9, rel=0.15)


@pytest.mark.parametrize("name", ["cortex-a9", "cortex-a9-paging", "cortex-a53", "cortex-a76", "x86-generic"])
def test_processors_read_what_the_cpu_device_reads(name: str) -> None:
    """Their profiles are of that device on other hardware: what they accept can run there, and by a stand-in."""
    profile, info = load_profile(name), CpuDriver().probe({})[0]
    refused = [t for t in profile.types if isinstance(CpuDriver().estimate(info, matmul(t), DECODE), Unsupported)]
    assert refused == []
    for kv_format in profile.kv_formats:
        kv = KvSpec("kv", 1, 64, 2, 32, kv_format)
        attention = Attention("blk.0.attn", Value("q", 64), Value("k", 64), Value("v", 64), kv, 0.1)
        assert isinstance(CpuDriver().estimate(info, attention, DECODE), Cost)
