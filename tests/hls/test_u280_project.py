"""The project of `hetrun build alveo-u280`: what v++ is told, held against the sources' top functions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hetrun.cli.main import run
from hetrun.config import load_system
from hetrun_alveo_u280 import project
from hetrun_alveo_u280.definition import definition, parse
from hetrun_alveo_u280.opened import KERNEL, banks

Entry = tuple[str, str, str]  # section, key, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    for name, text in project.sources().items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(text)
    return made


def entries(path: Path) -> list[Entry]:
    """Of a configuration as v++ reads it: keys may repeat, those before the first section are its general options."""
    section, found = "", []
    for line in path.read_text().splitlines():
        if not line or line[0] == "#":
            continue
        head = re.fullmatch(r"\[(\w+)\]", line)
        pair = re.fullmatch(r"([\w-]+)=(\S.*)", line)
        assert head or pair, f"{path.name}: {line}"
        if head:
            section = head[1]
        elif pair:
            found.append((section, pair[1], pair[2]))
    return found


def of(folder: Path, key: str, file: str = "link.cfg") -> list[str]:
    return [value for section, name, value in entries(folder / file) if (section, name) == ("connectivity", key)]


@dataclass(frozen=True)
class Top:
    """A top function.   arguments: in order.   ports: of each kind, as its pragmas name them."""

    arguments: list[str]
    ports: dict[str, list[str]]


def top(folder: Path, file: str, function: str) -> Top:
    text = (folder / "hls" / file).read_text()
    found = re.search(rf'extern "C" void {function}\((.*?)\)\s*\{{', text, re.DOTALL)
    assert found, f"{file} has no {function}"
    arguments = re.findall(r"(\w+)(?=\s*(?:\[\w*\])?\s*(?:,|$))", re.sub(r"<[^<>]*>", "", found[1]))
    pragmas = re.findall(r"#pragma HLS INTERFACE (\w+) port ?= ?(\w+)", text, re.IGNORECASE)
    return Top(arguments, {kind: [port for k, port in pragmas if k == kind] for kind, _ in pragmas})


@pytest.fixture(scope="module")
def controller(folder: Path) -> Top:
    return top(folder, "controller.cpp", KERNEL)


@pytest.fixture(scope="module")
def lanes(folder: Path) -> Top:
    return top(folder, "lanes.cpp", project.LANES)


def units(folder: Path) -> Iterator[tuple[str, str]]:
    """(unit, kernel) of each compute unit."""
    for value in of(folder, "nk"):
        kernel, count, names = value.split(":")
        assert len(names.split(",")) == int(count)
        yield from ((unit, kernel) for unit in names.split(","))


def test_arguments_have_the_numbers_of_the_header(controller: Top) -> None:
    n = definition()
    for name, number in n.under("ARG_").items():
        assert controller.arguments[number].upper() == name, f"argument {number}"
    for _, numbers in banks():
        for number in numbers:
            assert controller.arguments[number] == project.buffer_argument(number)
    streams = controller.arguments[n.numbers["ARGS"] :]
    assert sorted(streams) == sorted(controller.ports["axis"]), "streams come last: they would move the numbers"


def test_every_master_is_on_its_own_bank(folder: Path, controller: Top) -> None:
    links = dict(value.split(":", 1) for value in of(folder, "sp"))
    assert len(links) == len(of(folder, "sp"))
    assert {f"controller.{port}" for port in controller.ports["m_axi"]} == set(links)
    expected = {f"controller.w{i}": f"HBM[{i}]" for i in range(32)}
    expected |= {"controller.ddr": "DDR[0]", "controller.ddr_vector": "DDR[0]"}
    assert links == expected


def test_every_stream_is_connected_once_and_from_a_writer_to_a_reader(
    folder: Path, controller: Top, lanes: Top
) -> None:
    kernels = dict(units(folder))
    ports = {KERNEL: controller.ports["axis"], project.LANES: lanes.ports["axis"]}
    wanted = {f"{unit}.{port}" for unit, kernel in kernels.items() for port in ports[kernel]}
    ends = [end for value in of(folder, "stream_connect") for end in value.split(":")[:2]]
    assert Counter(ends) == Counter(wanted)
    for value in of(folder, "stream_connect"):
        (source, out), (sink, into) = (end.split(".") for end in value.split(":"))
        name = into if kernels[sink] == project.LANES else out
        assert name in (project.TO_LANES if kernels[sink] == project.LANES else project.FROM_LANES)
        assert {kernels[source], kernels[sink]} == {KERNEL, project.LANES}
        unit, port = (sink, out) if kernels[sink] == project.LANES else (source, into)
        assert port == f"{name}_{unit.rpartition('_')[2]}", "channels 4k to 4k + 3 belong to unit k"


def test_the_lanes_have_no_port_but_streams_and_no_control(folder: Path, lanes: Top) -> None:
    text = (folder / "hls" / "lanes.cpp").read_text()
    assert set(lanes.ports) <= {"axis", "ap_ctrl_none"} and lanes.ports["ap_ctrl_none"] == ["return"]
    assert not re.search(r"#pragma HLS INTERFACE (m_axi|s_axilite)", text, re.IGNORECASE)
    assert sorted(lanes.arguments) == sorted(lanes.ports["axis"])


def test_units_and_their_regions(folder: Path) -> None:
    kernels = dict(units(folder))
    assert Counter(kernels.values()) == {KERNEL: 1, project.LANES: definition().numbers["LANE_KERNELS"]}
    regions = dict(value.split(":") for value in of(folder, "slr"))
    assert set(regions) == set(kernels) and len(of(folder, "slr")) == len(kernels)
    assert regions["controller"] == "SLR0"  # where the ports of HBM and DDR[0] are
    assert Counter(r for unit, r in regions.items() if unit != "controller") == {"SLR1": 4, "SLR2": 4}


@pytest.mark.parametrize("file", ["controller.cfg", "lanes.cfg", "link.cfg"])
def test_the_clock_is_the_headers(folder: Path, file: str) -> None:
    clock_hz = definition().numbers["CLOCK_HZ"]
    found = entries(folder / file)
    assert [float(value) * 1e6 for section, key, value in found if key == "kernel_frequency"] == [clock_hz]
    compiled = [value for section, key, value in found if (section, key) == ("hls", "clock")]
    kernel = {"controller.cfg": KERNEL, "lanes.cfg": project.LANES}.get(file)
    assert compiled == ([f"{clock_hz}:{kernel}"] if kernel else [])


def test_no_slot_is_left(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            assert not re.search(r"@\w+@", path.read_text()), path.name


def test_each_step_takes_what_is_there_or_was_made(folder: Path) -> None:
    there = set(project.sources())
    for step in project.steps():
        files = {w for w in step.command if w.endswith((".cpp", ".cfg", ".xo", ".xclbin"))} - {step.makes}
        assert files <= there, f"{step.command}"
        assert step.command[step.command.index("-o") + 1] == step.makes
        assert step.command[step.command.index("--platform") + 1] == project.PLATFORM
        there.add(step.makes)
    assert project.steps()[-1].makes == project.XCLBIN


def test_every_include_of_the_sources_is_in_the_project(folder: Path) -> None:
    vendors = {"ap_int.h", "ap_axi_sdata.h", "hls_stream.h", "hls_burst_maxi.h"}
    checked = 0
    for path in (*(folder / "hls").iterdir(), *(folder / "fabric").iterdir()):
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            assert name in vendors or (path.parent / name).exists() or (folder / name).exists(), f"{path.name}: {name}"
            checked += 1
    assert checked > 5


def test_header_and_driver_are_of_one_definition(folder: Path) -> None:
    written, known = parse((folder / "hls/engine.h").read_text()), definition()
    assert written.numbers == known.numbers
    layouts = [{name: (r.fields, r.layout.format) for name, r in d.records.items()} for d in (written, known)]
    assert layouts[0] == layouts[1]


def test_the_system_file_names_the_xclbin_and_loads(folder: Path) -> None:
    system = load_system(folder / "system.toml")
    assert system.drivers["alveo-u280"] == {"xclbin": project.XCLBIN}
    assert [device.id for device in system.devices] == ["cpu:0", "alveo-u280:0"]


# A tool that makes what it is told to, and says how it was called.
TOOL = """#!/bin/sh
echo "$@" >> calls
while [ $# -gt 1 ]; do [ "$1" = -o ] && touch "$2"; shift; done
"""


def test_without_the_tool_the_commands_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(["build", "alveo-u280", "--out", str(tmp_path / "u280")]) == 0
    said = capsys.readouterr().out
    assert "not here: v++. Build it with:" in said
    assert [line.split()[:2] for line in said.splitlines() if " v++ " in line] == [
        ["v++", "--compile"], ["v++", "--compile"], ["v++", "--link"], ["v++", "--package"],
    ]  # fmt: skip
    assert (tmp_path / "u280/link.cfg").exists() and (tmp_path / "u280/hls/engine.h").exists()


def test_the_tool_is_run_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/v++").write_text(TOOL)
    (tmp_path / "bin/v++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert run(["build", "alveo-u280", "--out", str(tmp_path / "u280"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["built"] and record["makes"] == project.XCLBIN
    calls = (tmp_path / "u280/calls").read_text().splitlines()
    assert calls == [" ".join(step.command[1:]) for step in project.steps()]
    (tmp_path / "bin/v++").write_text("#!/bin/sh\nexit 1\n")
    assert run(["build", "alveo-u280", "--out", str(tmp_path / "u280")]) == 7
    assert "v++ failed: exit code 1" in capsys.readouterr().err


def test_a_slot_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="NO_SUCH"):
        project.filled("@LANES@ @NO_SUCH@", project.values())
