"""What `hetrun devices` tells of the board."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from pynq_rig import RANGE, Make, board, opened, overlay
from simulated_pynq import BASE, write_overlay

from hetrun.device import Detail
from hetrun_pynq_z1 import details
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.driver import PynqZ1Driver

__all__ = ["board", "overlay"]  # fixtures


def shown(overlay: Path, **settings: object) -> dict[str, Detail]:
    driver = PynqZ1Driver()
    info = next(i for i in driver.probe({"overlay": str(overlay), **settings}) if i.id == "pynq-z1:0")
    return {detail.name: detail for detail in driver.details(info)}


def test_details_follow_the_board(board: Make, overlay: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    simulated = board()
    (tmp_path / "state").write_text("operating\n")
    record = tmp_path / "pynq" / "pl_server" / "global_pl_state.json"
    record.parent.mkdir(parents=True)
    monkeypatch.setattr(details, "FPGA_STATE", tmp_path / "state")
    origin = types.SimpleNamespace(origin=str(tmp_path / "pynq" / "__init__.py"))
    monkeypatch.setattr(details.importlib.util, "find_spec", lambda name: origin)

    before = shown(overlay, reserved=RANGE, wait="interrupt", staging_bytes=1 << 20)
    assert before["overlay"] == Detail("overlay", str(overlay))
    assert before["loaded"].value == "unknown" and "no record" in str(before["loaded"].missing)
    assert before["engine"].value.startswith("unknown; this hetrun expects VERSION")
    assert before["register map"].value == "as this hetrun's, 8 registers at 0x43c00000"
    assert before["contiguous memory (CMA)"].value == "134217728 bytes, 102400000 free; at most 134217728 are taken"
    assert before["reserved memory"] == Detail("reserved memory", "4194304 bytes, 0x10000000 to 0x10400000")
    assert before["staging area"].value.startswith("1048576 bytes")
    assert before["wait"] == Detail("wait", "interrupt, /dev/uio0")
    assert before["clock"].value == "125 MHz"
    assert before["permissions"].missing is None

    record.write_text(json.dumps({"bitfile_name": str(overlay)}))
    assert shown(overlay)["loaded"] == Detail("loaded", "yes")
    assert shown(overlay)["engine"].value.startswith("not started since it was loaded")
    opened(overlay).close()
    known = definition()
    for name, value in (("VERSION", known.numbers["VERSION"]), ("CONFIG", known.config_word)):
        simulated.poke(BASE + known.registers[name], value)
    engine = shown(overlay)["engine"]
    assert engine == Detail("engine", f"VERSION {known.numbers['VERSION']:#x}, CONFIG {known.config_word:#x}")
    simulated.poke(BASE + known.registers["VERSION"], 99)
    assert "0x63" in shown(overlay)["engine"].value and "expects" in str(shown(overlay)["engine"].missing)
    record.write_text(json.dumps({"bitfile_name": "base.bit"}))
    assert shown(overlay)["loaded"].value == "another overlay, base.bit"


def test_details_name_what_is_missing(board: Make, overlay: Path, tmp_path: Path) -> None:
    board()
    absent = tmp_path / "none.bit"
    rows = shown(absent)
    assert rows["overlay"].missing == f"{absent} and {absent.with_suffix('.hwh')} not found"
    assert rows["register map"].value == rows["loaded"].value == "unknown"
    wrong = write_overlay(tmp_path / "wrong", registers={**definition().registers, "RING": 0x14})
    assert "expected register RING at 0x10, found 0x14" in str(shown(wrong)["register map"].missing)
    overlay.with_suffix(".hwh").write_text("<nothing")
    assert "cannot be read" in str(shown(overlay)["overlay"].missing)
    rows = shown(overlay, reserved={"base": 0, "bytes": 4096}, cma_bytes=256 << 20, wait="interrupt")
    assert "Linux uses" in str(rows["reserved memory"].missing)
    assert "boot with cma=" in str(rows["contiguous memory (CMA)"].missing)
