"""`hetrun explore`: fronts, and the verb."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrun.api import graph_of
from hetrun.cli.main import run
from hetrun.device import Cost, DeviceInfo, Segment, Unsupported, Workload
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import load_shape
from hetrun.ops import Op
from hetrun.plan.explore import combinations, explore, pareto
from hetrun.plugins import FoundDevice, Registry
from hetrun_modelled.driver import ModelledDriver
from hetrun_pynq_z1 import designs
from hetrun_pynq_z1.driver import PynqZ1Driver

SMALLEST = {name: min(values) for name, values in designs.AXES.items()}
FEW = ["--set", "lanes=16,64", "--set", "clock_mhz=100,150", "--set", "fifo_words=128", "--set", "rows=8"]


def test_combinations_are_every_choice_once() -> None:
    assert combinations({"a": (1, 2), "b": (3,)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


@given(st.lists(st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_the_front_is_what_nothing_beats(goals: list[tuple[int, int, int] | None]) -> None:
    front = set(pareto(goals))
    for i, own in enumerate(goals):
        better = [g for g in goals if g and own and g != own and all(a <= b for a, b in zip(g, own, strict=True))]
        assert (i in front) == (own is not None and not better)


def test_the_host_is_asked_once_for_all_designs() -> None:
    asked: list[tuple[str, Workload]] = []
    fused: list[str] = []

    class Counting(ModelledDriver):
        def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
            asked.append((op.name, workload))
            return super().estimate(info, op, workload)

        def fuse(self, info: DeviceInfo, segment: Segment, workload: Workload) -> Mapping[str, Cost]:
            fused.append(segment.name)
            return {}

    driver, host = PynqZ1Driver(), Counting()
    info = next(i for i in host.probe({}) if i.id == driver.host_profile)
    graph = graph_of(load_shape("smollm2-135m"), GraphOptions(n_ctx=64, max_tokens=16), Registry.load())
    points = [driver.design({**SMALLEST, "lanes": lanes}) for lanes in (16, 32, 64)]
    assert len(explore(graph, driver, FoundDevice(host, info, "modelled"), points, 16)) == 3
    assert len(asked) == len(set(asked)) == 2 * len(graph.ops)
    assert fused  # what a driver may offer beside is not lost


def explored(capsys: pytest.CaptureFixture[str], *args: str) -> Mapping[str, object]:
    code = run(["explore", "pynq-z1", "--shape", "tinyllama-382mb", *args, "--json"])
    out = capsys.readouterr()
    assert code == 0, out.err
    found = json.loads(out.out)
    assert isinstance(found, dict)
    return found


def test_designs_come_fastest_first_with_time_energy_and_resources(capsys: pytest.CaptureFixture[str]) -> None:
    record = explored(capsys, *FEW)
    rows = record["designs"]
    assert isinstance(rows, list) and len(rows) == 2 * 2 * 2 * 2
    times = [r["decode_s_per_token"] for r in rows]
    assert times == sorted(times)
    best = next(r for r in rows if r["parameters"] == {
        "lanes": 64, "ports": 2, "fifo_words": 128, "tokens": 8, "rows": 8, "clock_mhz": 150,
    })  # fmt: skip
    assert 0.24 < best["decode_s_per_token"] < 0.27  # DDR limit 0.243 s, and the processors' share
    assert 3.0 < best["joules_per_token"] / best["decode_s_per_token"] < 3.9  # a board's power
    assert set(best["resources"]) == {"LUT", "FF", "DSP", "BRAM36"}
    for r in rows:
        assert r["fits"] == all(x["share"] <= 0.8 for x in r["resources"].values())
    assert any(r["front"] for r in rows) and not all(r["front"] for r in rows)


def test_what_does_not_fit_is_never_on_the_front(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(designs, "MOST_SHARE", 0.7)
    rows = explored(capsys, *FEW)["designs"]
    assert isinstance(rows, list)
    assert {r["fits"] for r in rows} == {True, False}
    assert not rows[0]["fits"]  # the fastest, which would be on the front
    assert {r["fits"] for r in rows if r["front"]} == {True}


def test_a_longer_context_costs_the_host_more(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--set", "lanes=64", "--set", "ports=2", "--set", "tokens=8", "--set", "clock_mhz=125", *FEW[4:]]
    times = []
    for ctx in ("16", "512"):
        rows = explored(capsys, *one, "--ctx", ctx)["designs"]
        assert isinstance(rows, list)
        times.append(rows[0]["decode_s_per_token"])
    assert times[1] > times[0] + 0.02


def test_the_table_marks_the_front_and_the_plot_has_both_axes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explore", "pynq-z1", "--shape", "tinyllama-382mb", *FEW]) == 0
    out = capsys.readouterr().out
    assert "s/token" in out and "J/token" in out and "BRAM36" in out
    assert "fullest resource (* front, o fits, x does not)" in out
    assert "basis: simulated:pynq-z1 cycle model" in out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["pynq-z2", "--shape", "tinyllama"], 7, "no driver 'pynq-z2'"),
        (["reference", "--shape", "tinyllama"], 7, "no designs to explore"),
        (["pynq-z1"], 2, "--model or --shape"),
        (["pynq-z1", "--shape", "tinyllama", "--set", "colour=1"], 2, "no parameter 'colour'"),
        (["pynq-z1", "--shape", "tinyllama", "--set", "lanes=many"], 2, "no whole numbers"),
        (["pynq-z1", "--shape", "tinyllama", "--set", "lanes=48"], 2, "lanes of 48"),
    ],
)
def test_what_cannot_be_explored_is_one_clear_error(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explore", *args]) == code
    out = capsys.readouterr()
    assert out.out == "" and words in out.err
    assert [line.split(":")[0] for line in out.err.splitlines()] == ["error", "hint"]
