"""`hetrun build`: a project written, tools run where they are there; any driver with sources will do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hetrun.cli.main import run
from hetrun.device import BuildStep
from hetrun.plugins import Plugin, Registry
from hetrun.reference.driver import ReferenceDriver

TOOLS = {
    "vitis_hls": "mkdir -p hls_project/solution/impl/ip && touch hls_project/solution/impl/ip/component.xml && pwd",
    "vivado": "touch hetrun_pynq_z1.bit hetrun_pynq_z1.hwh",
}


def tools(folder: Path, **scripts: str) -> str:
    """A PATH with these programs first."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.fixture(autouse=True)
def no_vendor_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_without_tools_the_project_is_written_and_the_commands_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a project"
    assert run(["build", "pynq-z1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not here: vitis_hls, vivado" in said
    assert f"cd '{out}'" in said
    assert "vitis_hls -f hls.tcl" in said and "vivado -mode batch -source vivado.tcl" in said
    assert {"hls/engine.h", "hls/engine.cpp", "hls.tcl", "vivado.tcl", "overlay.xdc"} <= {
        str(p.relative_to(out)) for p in out.rglob("*")
    }


def test_tools_on_the_path_are_run_in_the_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **TOOLS))
    out = tmp_path / "project"
    assert run(["build", "pynq-z1", "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["built"] and record["missing_tools"] == []
    assert (out / record["makes"]).exists()


def test_a_vitis_without_vitis_hls_is_run_by_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {"vitis-run": TOOLS["vitis_hls"], "vivado": TOOLS["vivado"]}
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **newer))
    assert run(["build", "pynq-z1", "--out", str(tmp_path / "project"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["built"] and record["commands"][0] == ["vitis-run", "--mode", "hls", "--tcl", "hls.tcl"]


def test_no_run_writes_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **TOOLS))
    assert run(["build", "pynq-z1", "--out", str(tmp_path / "project"), "--no-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["built"] is False
    assert not (tmp_path / "project/hetrun_pynq_z1.bit").exists()


@pytest.mark.parametrize(("script", "words"), [("exit 3", "exit code 3"), ("true", "it made no hls_project")])
def test_a_tool_that_fails_stops_the_build(
    script: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **{**TOOLS, "vitis_hls": script}))
    assert run(["build", "pynq-z1", "--out", str(tmp_path / "project")]) == 7
    assert f"vitis_hls failed: {words}" in capsys.readouterr().err
    assert not (tmp_path / "project/hetrun_pynq_z1.bit").exists()


def test_a_result_of_an_earlier_run_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **TOOLS))
    assert run(["build", "pynq-z1", "--out", str(tmp_path / "project")]) == 0
    monkeypatch.setenv("PATH", tools(tmp_path / "bin2", vitis_hls="true", vivado="true"))
    assert run(["build", "pynq-z1", "--out", str(tmp_path / "project")]) == 7


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hls.tcl").write_text("mine")
    assert run(["build", "pynq-z1", "--out", str(tmp_path)]) == 2
    assert "is there, and no project of hetrun build" in capsys.readouterr().err
    assert (tmp_path / "hls.tcl").read_text() == "mine"


def test_a_driver_without_sources_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "reference"]) == 7
    assert "driver reference has no hardware to build" in capsys.readouterr().err


class Theirs(ReferenceDriver):
    """A third party's driver with a project of its own."""

    name = "theirs"
    file = "rtl/top.v"

    def sources(self) -> Mapping[str, str]:
        return {self.file: "module top; endmodule\n"}

    def steps(self) -> Sequence[BuildStep]:
        return [BuildStep(("cp", "rtl/top.v", "top.bit"), "top.bit")]


class Stray(Theirs):
    file = "../outside.v"


@pytest.mark.parametrize("driver", [Theirs(), Stray()])
def test_a_third_partys_driver_is_built_the_same_way(
    driver: Theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    registry.add(Plugin("theirs", "theirs"), lambda: _module(driver))
    monkeypatch.setattr(Registry, "load", lambda: registry)
    code = run(["build", "theirs", "--out", str(tmp_path / "out")])
    if driver.file.startswith(".."):
        assert code == 7 and "lies outside of the project" in capsys.readouterr().err
        assert not (tmp_path / "outside.v").exists()
    else:
        assert code == 0 and (tmp_path / "out/top.bit").read_text() == "module top; endmodule\n"


def _module(driver: Theirs) -> object:
    from hetrun.hookspecs import hookimpl

    class Module:
        @hookimpl
        def hetrun_drivers(self) -> Sequence[Theirs]:
            return [driver]

    return Module()
