"""What drivers of engines share: files of a project, parameters of a design, settings of a probe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hetrun.device import Driver, check_parameters, check_settings, host_threads, project_files
from hetrun.device import hardware as project
from hetrun.errors import ConfigError, UsageError
from hetrun_alveo_u280.driver import AlveoU280Driver
from hetrun_pynq_z1.driver import PynqZ1Driver

ALLOWED = {"lanes": (frozenset((16, 32)), "16 or 32"), "clock_mhz": (range(100, 201), "100 to 200")}


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, text in (
        ("hls/engine.h", "// header"),
        ("hls/engine.cpp", "// source"),
        ("hls/notes.md", "no source"),
        ("fabric/types.h", "// types"),
        ("tcl/run.tcl", "set_part @PART@; top @TOP@"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(project, "resource_path", lambda relative: tmp_path / relative)
    return "hls/engine.h"


def test_a_project_has_its_sources_and_filled_scripts(header: str) -> None:
    files = project_files(header, "tcl", {"PART": "xc7z020", "TOP": "engine"})
    assert files == {
        "hls/engine.h": "// header",
        "hls/engine.cpp": "// source",
        "fabric/types.h": "// types",
        "run.tcl": "set_part xc7z020; top engine",
    }


def test_a_slot_without_a_value_is_an_error(header: str) -> None:
    with pytest.raises(KeyError, match="TOP"):
        project_files(header, "tcl", {"PART": "xc7z020"})


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"lanes": 16}, "parameter 'clock_mhz'"),
        ({"lanes": 16, "clock_mhz": 100, "ports": 1}, "parameter 'ports'"),
        ({"lanes": 17, "clock_mhz": 100}, "lanes of 17"),
    ],
)
def test_a_design_that_cannot_be_is_named(parameters: dict[str, int], said: str) -> None:
    check_parameters("mine", {"lanes": 32, "clock_mhz": 200}, ALLOWED)
    with pytest.raises(UsageError, match=f"mine: {said}"):
        check_parameters("mine", parameters, ALLOWED)


def test_settings_are_a_drivers_own_or_common() -> None:
    check_settings("mine", {"overlay": "a.bit", "threads": 3, "modelled": False}, ("overlay", "wait"))
    with pytest.raises(ConfigError, match="driver mine: unknown setting 'overlays'") as caught:
        check_settings("mine", {"overlays": "a.bit"}, ("overlay", "wait"))
    assert caught.value.remedy == "it takes overlay, wait"


@pytest.mark.parametrize(("given", "found"), [({"threads": 3}, 3), ({"threads": 64}, 16), ({}, 2)])
def test_an_emulation_has_the_threads_given_or_a_core_each(
    given: dict[str, object], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5})
    assert host_threads(given, 16) == found


@pytest.mark.parametrize("driver", [AlveoU280Driver(), PynqZ1Driver()], ids=["alveo-u280", "pynq-z1"])
@pytest.mark.parametrize("threads", [0, -1, "two", 1.5, True])
def test_impossible_threads_make_an_emulation_unavailable(driver: Driver, threads: object) -> None:
    """As they do the cpu; the board has no use for them."""
    found = {i.id.partition(":")[2]: i.unavailable for i in driver.probe({"threads": threads})}
    assert found["csim"] is not None and found["csim"].reason == f"{threads!r} threads"
    assert found["0"] is None or "threads" not in found["0"].reason
