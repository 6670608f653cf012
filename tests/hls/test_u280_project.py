"""The project of `hetrun build alveo-u280`: what v++ is told, held against the sources' top functions."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from require import require_tool

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
    """A top function.   arguments: (type, name, ports of an array or 0), in order.   pragmas: (kind, port)."""

    arguments: list[tuple[str, str, int]]
    pragmas: list[tuple[str, str]]

    def ports(self, kind: str) -> list[str]:
        """Those of an array have their number behind its name."""
        sizes = {name: size for _, name, size in self.arguments}
        named = [port for k, port in self.pragmas if k == kind]
        return [p for port in named for p in ([f"{port}_{i}" for i in range(sizes[port])] if sizes[port] else [port])]


def top(folder: Path, file: str, function: str) -> Top:
    """As the preprocessor leaves it: ports come from macros."""
    gxx = require_tool("g++", "sudo apt-get install -y g++")
    command = [gxx, "-E", "-P", "-std=c++17", "-I", str(folder), str(folder / "hls" / file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    constants: dict[str, int] = {}
    for name, value in re.findall(r"\b(k[A-Z]\w*) = ([\w /*+-]+)[,;]", text):
        words = re.sub(r"[a-zA-Z]\w*", lambda word: str(constants.get(word[0], "?")), value)
        if re.fullmatch(r"[\d /*+-]+", words):
            constants[name] = eval(words.replace("/", "//"))
    found = re.search(rf'extern "C" void {function}\((.*?)\)\s*\{{', text, re.DOTALL)
    assert found, f"{file} has no {function}"
    arguments = []
    for argument in found[1].split(","):
        parts = re.fullmatch(r"\s*(.*?)(\w+)(?:\[([\w:]+)\])?\s*", argument, re.DOTALL)
        assert parts, argument
        size = (parts[3] or "").rpartition("::")[2]
        arguments.append((parts[1].strip(), parts[2], constants[size] if size else 0))
    pragmas = re.findall(r"#pragma HLS INTERFACE (\w+) port ?= ?(\w+)", text, re.IGNORECASE)
    return Top(arguments, pragmas)


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
    names = [name for _, name, _ in controller.arguments]
    for name, number in n.under("ARG_").items():
        assert names[number].upper() == name, f"argument {number}"
    buffers = {number for _, numbers in banks() for number in numbers}
    for number, (kind, name, _) in enumerate(controller.arguments[: n.numbers["ARGS"]]):
        assert kind.endswith("*") == (number in buffers), f"{kind} {name}"
        assert number in buffers or kind == "int32_t"  # what pyxrt can set
    streams = names[n.numbers["ARGS"] :]
    assert set(streams) == {port for kind, port in controller.pragmas if kind == "axis"}, "they would move the numbers"


def test_every_master_is_on_its_own_bank(folder: Path, controller: Top) -> None:
    links = dict(value.split(":", 1) for value in of(folder, "sp"))
    assert len(links) == len(of(folder, "sp"))
    assert {f"controller.{port}" for port in controller.ports("m_axi")} == set(links)
    expected = {f"controller.channel{i}": f"HBM[{i}]" for i in range(32)}
    expected |= {"controller.ddr": "DDR[0]", "controller.ddr_vector": "DDR[0]"}
    assert links == expected
    assert [controller.arguments[i][1] for _, numbers in banks() for i in numbers] == [
        link.partition(".")[2] for link in links
    ]


def test_every_stream_is_connected_once(folder: Path, controller: Top, lanes: Top) -> None:
    ports = {KERNEL: controller.ports("axis"), project.LANES: lanes.ports("axis")}
    wanted = [f"{unit}.{port}" for unit, kernel in units(folder) for port in ports[kernel]]
    ends = [end for value in of(folder, "stream_connect") for end in value.split(":")[:2]]
    assert Counter(ends) == Counter(wanted) and len(wanted) == 96


def test_streams_lead_from_writers_to_readers_of_the_same_channels(folder: Path, controller: Top, lanes: Top) -> None:
    inner, outer = ({name: kind.rstrip("&") for kind, name, _ in top.arguments} for top in (lanes, controller))
    for value in of(folder, "stream_connect"):
        source, sink = value.split(":")
        unit, port = sink.split(".") if source.startswith("controller.") else source.split(".")
        other = (source if source.startswith("controller.") else sink).partition(".")[2]
        name, _, lane = port.partition("_")
        stream, _, number = other.partition("_")
        assert name == stream and inner[name] == outer[name]
        k = int(unit.partition("_")[2])
        assert int(number) == (4 * k + int(lane) if name == "beats" else k)
        assert source.startswith("controller.") == (name != "results")


def test_the_lanes_have_no_port_but_streams_and_no_control(lanes: Top) -> None:
    assert {kind for kind, _ in lanes.pragmas} == {"axis", "ap_ctrl_none"}
    assert {port for kind, port in lanes.pragmas if kind == "axis"} == {name for _, name, _ in lanes.arguments}


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
