"""Modelled devices: planned for by their profiles, never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetrun.device import Cost, DeviceInfo, Segment, Unsupported, Workload
from hetrun.errors import ConfigError, DeviceError
from hetrun.ops import Attention, KvSpec, MatMul, Op, RmsNorm, Value
from hetrun.resources import resource_path
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun.toml_table import shipped
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
    assert cost("pynq-z1", matmul(), Workload(512, 0)).seconds == pytest.approx(flops / 16e9 + 2e-6)


def test_cost_names_its_profile() -> None:
    assert cost("pynq-z1", matmul()).basis == "analytic:profile pynq-z1"
    assert cost("x86-generic", matmul()).basis == "measured:profile x86-generic"


def test_joules_where_power_is_known() -> None:
    known = cost("alveo-u280", matmul("Q4_0"))
    assert known.joules == pytest.approx(33.0 * known.seconds)
    assert cost("pynq-z1", matmul()).joules is None


def test_null_device_costs_nothing() -> None:
    assert cost("null", matmul()).seconds == 0.0


def test_weights_are_resident_in_the_cards_memory() -> None:
    assert cost("alveo-u280", matmul("Q8_0")).resident == {
        ("model:alveo-u280/hbm", "blk.0.ffn_up.weight"): 2048 * 64 * 34
    }


def test_op_outside_the_profile_is_refused() -> None:
    norm = RmsNorm("blk.0.attn_norm", Value("x", 64), Weight("w", TENSOR_TYPES["F32"], (64,)), 1e-5)
    assert refusal("pynq-z1", norm) == "pynq-z1 has no rms_norm (it has matmul)"


def test_type_outside_the_profile_is_refused() -> None:
    assert refusal("alveo-u280", matmul("Q4_K")) == "alveo-u280 reads no Q4_K weights (it reads F32, Q4_0, Q8_0)"


def test_kv_format_outside_the_profile_is_refused() -> None:
    kv = KvSpec("kv", 1, 64, 2, 32, "f32")
    attention = Attention("blk.0.attn", Value("q", 64), Value("k", 64), Value("v", 64), kv, 0.1)
    assert "no KV cache in f32" in refusal("alveo-u280", attention)


def test_paging_from_the_card_explains_the_published_baseline() -> None:
    """Paging 459.5 MB a token at 25 MB/s is 18.7 s (arXiv 2408.00462); resident, 1,034 MMAC at 0.8 GMAC/s are 1.3 s."""
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


@pytest.mark.parametrize("settings", [{"profile": ["x.toml"]}, {"profiles": "x.toml"}])
def test_wrong_setting_is_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="driver modelled"):
        DRIVER.probe(settings)
