"""The cycle model that ships against a SystemC model of the same source: written apart, within 1% on cycles."""

from __future__ import annotations

from pathlib import Path

import pytest
from systemc_model import AGREEMENT, Counts, both, compiled

from hetrun_pynq_z1.definition import definition, super_blocks
from hetrun_pynq_z1.timing import matmul_cycles


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("systemc") / "pynq_z1_systemc"
    return compiled(target, "pynq_z1", ("timing/timing.cpp", "timing/matmul.cpp", "timing/secda.cpp"))


def ring_of(name: str, n_rows: int, n_columns: int, n_tokens: int, mode: str = "WRITE") -> list[str]:
    """The descriptors that a launch of this matmul has."""
    known = definition()
    chunk = 256 if super_blocks(name) else 64
    ring = []
    for first in range(0, n_rows, known.numbers["MAX_ROWS"]):
        rows = min(n_rows - first, known.numbers["MAX_ROWS"])
        for token in range(0, n_tokens, known.numbers["TOKENS"]):
            tokens = min(n_tokens - token, known.numbers["TOKENS"])
            shape = f"{known.formats[name]}:{-(-rows // 8) * 8}:{-(-n_columns // chunk)}:{tokens}"
            ring.append(f"{shape}:{known.numbers[f'MODE_{mode}']}")
    return ring


def run(model: Path, shape: tuple[str, int, int, int], *settings: str, mode: str = "WRITE") -> tuple[Counts, Counts]:
    """Of the SystemC model, and of the cycle model with the same constants."""
    return both(model, *settings, *ring_of(*shape, mode))


DECODE = ("Q3_K", 2048, 2048, 1)
SHAPES = [
    ("Q2_K", 5632, 2048, 1),
    DECODE,
    ("Q3_K", 2048, 5632, 2),
    ("Q4_K", 256, 2048, 8),
    ("Q5_K", 1024, 2048, 3),
    ("Q6_K", 1500, 2048, 1),
    ("Q2_K", 512, 1024, 19),
    ("Q4_0", 576, 576, 1),
    ("Q4_1", 1536, 576, 8),
    ("Q5_0", 192, 576, 2),
    ("Q5_1", 45, 96, 7),
    ("Q8_0", 576, 1536, 1),
    ("Q4_K", 8, 256, 1),
    ("Q8_0", 8, 64, 8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_cycles_are_those_of_the_systemc_model(model: Path, shape: tuple[str, int, int, int]) -> None:
    systemc, _ = run(model, shape)
    ours = matmul_cycles(definition().formats[shape[0]], *shape[1:])
    assert ours.busy_cycles == systemc["busy_cycles"]
    assert ours.cycles == pytest.approx(systemc["cycles"], rel=AGREEMENT)


MODES = [
    *((shape, mode) for shape in (("Q2_K", 2048, 2048, 1), ("Q4_K", 512, 1024, 8)) for mode in ("GATE", "CODES_256")),
    *((("Q8_0", 1536, 576, tokens), mode) for tokens in (1, 8) for mode in ("GATE", "ACTIVATE", "CODES_32")),
    (("Q4_1", 288, 96, 7), "CODES_32"),
]


@pytest.mark.parametrize(("shape", "mode"), MODES, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x)))
def test_cycles_agree_whatever_becomes_of_results(model: Path, shape: tuple[str, int, int, int], mode: str) -> None:
    systemc, _ = run(model, shape, mode=mode)
    ours = matmul_cycles(definition().formats[shape[0]], *shape[1:], None, mode)
    assert ours.cycles == pytest.approx(systemc["cycles"], rel=AGREEMENT)


BOARDS = [
    ("processor_bytes_per_s=0",),
    ("processor_bytes_per_s=200000000",),
    ("outstanding=1",),
    ("outstanding=4", "fifo_words=64"),
    ("fifo_words=32",),
    ("ports=1",),
    ("lanes=16",),
    ("clock_ps=6667",),
    ("read_latency_ps=800000",),
]


@pytest.mark.parametrize("settings", BOARDS, ids=lambda settings: ",".join(settings))
def test_they_agree_on_other_boards_and_engines(model: Path, settings: tuple[str, ...]) -> None:
    for shape in (DECODE, ("Q4_1", 576, 576, 8)):
        systemc, ours = run(model, shape, *settings)
        assert ours["cycles"] == pytest.approx(systemc["cycles"], rel=AGREEMENT), shape


@pytest.mark.parametrize(
    "settings",
    [("systemc.dram_burst_ps=10500",), ("plain.processor_bytes_per_s=75000000",), ("plain.refresh_ps=520000",)],
    ids=lambda settings: settings[0],
)
def test_a_constant_that_one_of_them_has_wrong_is_seen(model: Path, settings: tuple[str, ...]) -> None:
    systemc, ours = run(model, DECODE, *settings)
    assert ours["cycles"] != pytest.approx(systemc["cycles"], rel=AGREEMENT)


@pytest.mark.parametrize(
    ("setting", "columns"),
    [("systemc.slot_cycles=2", 576), ("plain.divide_cycles=120", 64), ("plain.activate_cycles=600", 64)],
)
def test_a_constant_of_the_tail_that_one_of_them_has_wrong_is_seen(model: Path, setting: str, columns: int) -> None:
    systemc, ours = run(model, ("Q4_0", 256, columns, 8), setting, mode="CODES_32")
    assert ours["cycles"] != pytest.approx(systemc["cycles"], rel=AGREEMENT)


def test_stalls_are_told_apart_alike(model: Path) -> None:
    """One token waits for memory, eight for the lanes."""
    for tokens, stall in ((1, "memory_stalls"), (8, "lane_stalls")):
        systemc, ours = run(model, ("Q2_K", 1024, 2048, tokens))
        assert ours[stall] == pytest.approx(systemc[stall], rel=0.02)
        assert ours[stall] > 0.2 * ours["busy_cycles"]


def test_four_bursts_outstanding_and_64_words_are_enough(model: Path) -> None:
    """Why eight and 128: the next smaller settings cost much, the next larger ones give nothing."""
    cycles = {
        setting: run(model, DECODE, *setting.split())[0]["cycles"]
        for setting in ("outstanding=8", "outstanding=4", "outstanding=2", "fifo_words=64", "fifo_words=32")
    }
    best = cycles["outstanding=8"]
    assert cycles["outstanding=4"] < 1.01 * best and cycles["fifo_words=64"] < 1.01 * best
    assert cycles["outstanding=2"] > 1.5 * best and cycles["fifo_words=32"] > 1.5 * best
