"""The project of `hetrun build pynq-z1`: its scripts run in tclsh, where a stub has the vendor's commands."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import require

from hetrun_pynq_z1 import project
from hetrun_pynq_z1.definition import definition, parse

STUB = Path(__file__).with_name("vendor_stub.tcl")
REGISTERS = {
    "RING": 0x10, "COUNT": 0x18, "VERSION": 0x20, "CONFIG": 0x30, "STATUS": 0x40, "DONE": 0x50,
    "BUSY_CYCLES": 0x60, "STALL_CYCLES": 0x70,
}  # fmt: skip  # what Vitis HLS gives the arguments of the top function: 64-bit steps, 16 bytes with a valid bit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in project.sources().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(script: Path, registers: Mapping[str, int] = REGISTERS, **variables: str) -> subprocess.CompletedProcess[str]:
    tclsh = require.require_tool("tclsh", "sudo apt-get install -y tcl")
    made = " ".join(f"{n} {o:#04x}" for n, o in registers.items())
    return subprocess.run(
        [tclsh, str(STUB), str(script)],
        env={**os.environ, "REGISTERS": made, "SLACK": "0.2", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [line.split("\x1f")[1:] for line in done.stdout.splitlines() if line.startswith("call\x1f")]


def named(found: list[list[str]], name: str) -> list[list[str]]:
    return [words for command, *words in found if command == name]


def test_the_synthesis_script_has_part_clock_sources_and_top(folder: Path) -> None:
    found = calls(run(folder / "hls.tcl"))
    assert named(found, "set_part") == [["xc7z020clg400-1"]]
    period_ns = float(named(found, "create_clock")[0][1])
    assert period_ns == pytest.approx(1e9 / definition().numbers["CLOCK_HZ"], abs=1e-3)
    source = Path(named(found, "add_files")[0][0])
    assert source == folder / "hls/engine.cpp" and source.exists()
    top = named(found, "set_top")[0][0]
    assert re.search(rf'extern "C" void {top}\(', source.read_text())
    assert ["-m_axi_addr64=false"] in named(found, "config_interface")
    assert [c[0] for c in found if c[0] != "exit"][-2:] == ["csynth_design", "export_design"]


def test_every_include_of_the_sources_is_in_the_project(folder: Path) -> None:
    for path in (*(folder / "hls").iterdir(), *(folder / "fabric").iterdir()):
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            assert (path.parent / name).exists() or (folder / name).exists(), f"{path.name} includes {name}"


@pytest.mark.parametrize("register", REGISTERS)
def test_an_engine_with_another_register_map_is_refused(folder: Path, register: str) -> None:
    done = run(folder / "hls.tcl", {**REGISTERS, register: 0x88})
    assert done.returncode != 0
    assert f"register {register} is at 0x88" in done.stderr


def test_an_engine_without_a_register_is_refused(folder: Path) -> None:
    done = run(folder / "hls.tcl", {n: o for n, o in REGISTERS.items() if n != "COUNT"})
    assert done.returncode != 0 and "register COUNT is not in the engine" in done.stderr


def test_header_and_scripts_are_of_one_definition(folder: Path) -> None:
    written = parse((folder / "hls/engine.h").read_text())
    assert written == definition()
    assert {n: o for n, o in written.registers.items() if n in REGISTERS} == REGISTERS


def overlay(folder: Path, **variables: str) -> list[list[str]]:
    calls(run(folder / "hls.tcl"))
    return calls(run(folder / "vivado.tcl", **variables))


def ports_of(folder: Path) -> Iterator[str]:
    """Masters of the engine, as its pragmas name them."""
    for bundle in re.findall(r"m_axi port = \w+ bundle = (\w+)", (folder / "hls/engine.cpp").read_text()):
        yield f"m_axi_{bundle}"


def test_every_pin_of_the_block_design_is_connected_once(folder: Path) -> None:
    found = overlay(folder)
    cells = {words[-1]: words[words.index("-vlnv") + 1] for words in named(found, "create_bd_cell")}
    masters = sorted(ports_of(folder))
    assert masters == [f"m_axi_hp{i}" for i in range(4)]
    pins = {
        "xilinx.com:ip:smartconnect": {"aclk", "aresetn"},
        "hetrun:hls:hetrun_pynq_engine": {"ap_clk", "ap_rst_n", "interrupt"},
        "xilinx.com:ip:proc_sys_reset": {"slowest_sync_clk", "ext_reset_in", "peripheral_aresetn"},
        "xilinx.com:ip:processing_system7": {"FCLK_CLK0", "FCLK_RESET0_N", "IRQ_F2P", "M_AXI_GP0_ACLK"}
        | {f"S_AXI_HP{i}_ACLK" for i in range(4)},
    }
    interfaces = {
        "xilinx.com:ip:smartconnect": {"S00_AXI", "M00_AXI"},
        "hetrun:hls:hetrun_pynq_engine": {"s_axi_control", *masters},
        "xilinx.com:ip:proc_sys_reset": set[str](),
        "xilinx.com:ip:processing_system7": {"M_AXI_GP0"} | {f"S_AXI_HP{i}" for i in range(4)},
    }
    for command, known in (("connect_bd_net", pins), ("connect_bd_intf_net", interfaces)):
        wanted = {f"{cell}/{pin}" for cell, kind in cells.items() for pin in known[kind]}
        connected = [pin for words in named(found, command) for pin in words]
        assert set(connected) == wanted
        sources = {"ps/FCLK_CLK0", "reset/peripheral_aresetn"}  # drive many
        assert [p for p, n in Counter(connected).items() if n > 1 and p not in sources] == []


def test_every_master_reaches_its_port_and_all_of_the_memory(folder: Path) -> None:
    found = overlay(folder)
    links = [tuple(words) for words in named(found, "connect_bd_intf_net")]
    for i in range(4):
        assert (f"engine/m_axi_hp{i}", f"join{i}/S00_AXI") in links
        assert (f"join{i}/M00_AXI", f"ps/S_AXI_HP{i}") in links
    mapped = {words[5]: (int(words[1], 16), words[3], words[6]) for words in named(found, "assign_bd_address")}
    for i in range(4):
        assert mapped[f"engine/Data_m_axi_hp{i}"] == (0, "512M", f"ps/S_AXI_HP{i}/HP{i}_DDR_LOWOCM")
    assert mapped["ps/Data"][1:] == ("64K", "engine/s_axi_control/Reg")


def test_the_processing_system_has_64_bit_ports_clock_and_interrupt(folder: Path) -> None:
    settings = " ".join(word for words in named(overlay(folder), "set_property") for word in words)
    for i in range(4):
        assert f"CONFIG.PCW_USE_S_AXI_HP{i} 1" in settings and f"CONFIG.PCW_S_AXI_HP{i}_DATA_WIDTH 64" in settings
    assert "CONFIG.PCW_IRQ_F2P_INTR 1" in settings
    mhz = float(re.search(r"CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ ([\d.]+)", settings)[1])  # type: ignore[index]
    assert mhz * 1e6 == definition().numbers["CLOCK_HZ"]


@pytest.mark.parametrize("board", ["", "www.digilentinc.com:pynq-z1:part0:1.0"])
def test_boards_files_are_used_where_they_are_installed(folder: Path, board: str) -> None:
    found = overlay(folder, BOARD=board)
    chosen = [words for words in named(found, "set_property") if words[0] == "board_part"]
    assert chosen == ([["board_part", board, "project"]] if board else [])
    assert ("apply_board_preset" in str(named(found, "apply_bd_automation"))) == bool(board)


def test_bitstream_and_handoff_have_the_overlays_name(folder: Path) -> None:
    overlay(folder)
    assert (folder / "hetrun_pynq_z1.bit").read_text() == "bits"
    assert (folder / "hetrun_pynq_z1.hwh").read_text() == "handoff"


def test_a_clock_that_is_not_met_gives_no_overlay(folder: Path) -> None:
    calls(run(folder / "hls.tcl"))
    done = run(folder / "vivado.tcl", SLACK="-0.4")
    assert done.returncode != 0 and "timing is not met at 125.000 MHz: -0.4 ns" in done.stderr
    assert not (folder / "hetrun_pynq_z1.bit").exists()


def test_without_the_engine_the_overlay_says_what_is_first(folder: Path) -> None:
    done = run(folder / "vivado.tcl")
    assert done.returncode != 0 and "run hls.tcl first" in done.stderr


@pytest.mark.parametrize("script", ["hls.tcl", "vivado.tcl"])
@pytest.mark.parametrize("broken", ["puts $no_such_variable", "no_such_command", "if {1} {"])
def test_the_stand_in_finds_what_is_wrong_with_a_script(folder: Path, script: str, broken: str) -> None:
    calls(run(folder / "hls.tcl"))
    path = folder / script
    path.write_text(path.read_text().replace("\nexit\n", f"\n{broken}\nexit\n"))
    assert run(path).returncode != 0
