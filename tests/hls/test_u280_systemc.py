"""The U280's cycle model against a SystemC model of the same design: written apart, within 1% on cycles."""

from __future__ import annotations

from pathlib import Path

import pytest
from systemc_model import AGREEMENT, Counts, both, compiled
from u280_steps import Layer, decode, encoded, prefill, program

from hetrun_alveo_u280.instruction import Instruction
from hetrun_alveo_u280.timing import Row


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("systemc") / "alveo_u280_systemc"
    return compiled(target, "alveo_u280", ("timing/step.cpp", "timing/defaults.cpp"))


def run(model: Path, folder: Path, steps: list[Instruction], rows: list[Row], *settings: str) -> tuple[Counts, Counts]:
    """Of the SystemC model, and of the cycle model with the same constants."""
    files = [folder / "program", folder / "rows"]
    for path, data in zip(files, encoded(steps, rows), strict=True):
        path.write_bytes(data)
    return both(model, *settings, *files)


SMALL = Layer("S4", 576, 1536, 9, 3, 64, n_vocab=2048)
WIDE = Layer("W2S24", 2048, 5632, 32, 32, 128, n_cells=2048)
STEPS = {
    "small-1": (SMALL, decode(1, 100)),
    "small-8": (SMALL, decode(8, 300)),
    "small-prefill-19": (SMALL, prefill(19)),
    "wide-1": (WIDE, decode(1, 128)),
    "wide-1-full": (WIDE, decode(1, 2000)),
    "wide-4-full": (WIDE, decode(4, 1500)),
    "grouped": (Layer("U4", 1024, 2048, 16, 4, 64), decode(3, 511)),
    "windowed": (
        Layer("S8", 512, 1024, 8, 8, 64, n_cells=260, sink=4, window=248, sink_queries=True),
        decode(2, 5000),
    ),
    "w2": (Layer("W2", 1024, 1536, 8, 2, 128), decode(1, 40)),
    "s8h": (Layer("S8H", 512, 1280, 4, 1, 128, n_vocab=1000), decode(5, 7)),
    "ragged": (Layer("S4", 100, 36, 5, 5, 20, n_vocab=35), decode(1, 0)),
    "many-heads": (Layer("S8", 256, 512, 40, 40, 32), prefill(9, 60)),
    "large-heads": (Layer("W2S24", 512, 512, 4, 4, 256), decode(2, 200)),
}


@pytest.mark.parametrize("name", STEPS)
def test_cycles_are_those_of_the_systemc_model(model: Path, tmp_path: Path, name: str) -> None:
    layer, rows = STEPS[name]
    systemc, plain = run(model, tmp_path, program(layer, 2), rows)
    assert plain["beats"] == systemc["beats"]
    assert plain["cycles"] == pytest.approx(systemc["cycles"], rel=AGREEMENT)


SETTINGS = [
    ("channels=8",),
    ("channels=30",),
    ("lanes=64",),
    ("lanes=256",),
    ("outstanding=2",),
    ("outstanding=4", "fifo_beats=64"),
    ("fifo_beats=512",),
    ("burst_beats=4",),
    ("pass_tokens=2",),
    ("vector_floats=16",),
    ("stall_factor=3",),
    ("exchange_turns=32",),
    ("result_beats=1", "stream_floats=2"),
    ("clock_ps=3333",),
    ("hit_ps=300000",),
    ("refresh_ps=0",),
    ("byte_fs=10000",),
    ("crossing_cycles=100",),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(settings))
def test_they_agree_on_other_engines_and_memories(model: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    layer = Layer("W2S24", 1024, 2816, 16, 16, 64, n_vocab=512, n_cells=1024)
    for rows in (decode(1, 700), decode(4, 300)):
        systemc, plain = run(model, tmp_path, program(layer), rows, *settings)
        assert plain["cycles"] == pytest.approx(systemc["cycles"], rel=AGREEMENT), rows


ONE_SIDED_MEMORY = ["plain.byte_fs=72000", "systemc.burst_ps=1000", "systemc.refresh_ps=320000", "plain.clock_ps=5000"]


@pytest.mark.parametrize("setting", ONE_SIDED_MEMORY)
def test_a_constant_of_streams_that_one_of_them_has_wrong_is_seen(model: Path, tmp_path: Path, setting: str) -> None:
    layer = Layer("S8", 4096, 16384, 4, 4, 64)
    systemc, plain = run(model, tmp_path, program(layer), decode(1, 10), setting)
    assert plain["cycles"] != pytest.approx(systemc["cycles"], rel=AGREEMENT)


ONE_SIDED = [
    "plain.hit_ps=600000",
    "plain.row_cycle_ps=900000",
    "systemc.turn_ps=9000000",
    "systemc.lanes=64",
    "plain.outstanding=4",
    "systemc.fifo_beats=64",
    "systemc.vector_floats=32",
    "plain.gate_floats=4",
    "plain.stream_floats=2",
    "systemc.norm_cycles=900",
    "plain.quantize_cycles=600",
    "systemc.exchange_turns=64",
    "plain.softmax_cycles=2000",
    "systemc.element_cycles=300",
    "plain.crossing_cycles=100",
    "systemc.finish_cycles=300",
    "plain.fetch_cycles=400",
]


@pytest.mark.parametrize("setting", ONE_SIDED)
def test_a_constant_that_one_of_them_has_wrong_is_seen(model: Path, tmp_path: Path, setting: str) -> None:
    layer = Layer("W2S24", 1024, 2816, 16, 16, 64, n_vocab=512, n_cells=1024)
    differs = []
    for rows in (decode(1, 1000), decode(4, 300)):
        systemc, plain = run(model, tmp_path, program(layer), rows, setting)
        differs.append(plain["cycles"] != pytest.approx(systemc["cycles"], rel=AGREEMENT))
    assert any(differs)
