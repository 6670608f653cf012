"""What `hetrun devices` tells of the card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_pyxrt
from fake_u280 import CONTROLLER, LANES, PLATFORM, write_xclbin
from u280_machine import BDF, Insert, insert, opened, pci, settings, xclbin

from hetrun.device import Detail
from hetrun_alveo_u280 import absence
from hetrun_alveo_u280.details import details

__all__ = ["insert", "pci", "xclbin"]  # fixtures

# As XRT 2.13 writes them: every value is a text.
THERMAL = {
    "thermals": [
        {"location_id": "pcb_top_front", "description": "PCB Top Front", "temp_C": "0", "is_present": "false"},
        {"location_id": "fpga0", "description": "FPGA", "temp_C": "41", "is_present": "true"},
        {"location_id": "fpga_hbm", "description": "FPGA HBM", "temp_C": "39", "is_present": "true"},
    ]
}
ELECTRICAL = {"power_rails": [], "power_consumption_max_watts": "225", "power_consumption_watts": "27.5"}


def bank(tag: str, nbytes: int, taken: int) -> dict[str, object]:
    usage = {"allocated_bytes": str(taken), "buffer_objects_count": "1"}
    return {"type": "", "tag": tag, "enabled": "true", "range_bytes": hex(nbytes), "extended_info": {"usage": usage}}


MEMORY = [bank(f"HBM[{i}]", 256 << 20, i) for i in range(32)] + [bank("DDR[0]", 16 << 30, 4096)]


def shown(xclbin: Path | None, **changes: object) -> dict[str, Detail]:
    return {detail.name: detail for detail in details("alveo-u280:0", settings(xclbin, **changes))}


def test_details_follow_the_card(insert: Insert, xclbin: Path) -> None:
    card = insert()
    card.info = {
        "thermal": json.dumps(THERMAL),
        "electrical": json.dumps(ELECTRICAL),
        "memory": json.dumps({"board": {"memory": {"memories": MEMORY}}}),
    }
    rows = shown(xclbin)
    assert [detail.missing for detail in rows.values()] == [None] * len(rows)
    assert rows["runtime"].value in ("pyxrt, load_xclbin", "pyxrt, hardware contexts")
    assert {name: rows[name].value for name in rows if name != "runtime"} == {
        "card": BDF,
        "platform": PLATFORM,
        "xclbin": str(xclbin),
        "made for": PLATFORM,
        "uuid": "5d7e3f61-0000-4000-8000-0123456789ab",
        "kernel": f"{CONTROLLER}, {LANES}",
        "banks": "32 of HBM, DDR[0]",
        "HBM": f"{8 << 30} bytes, {(8 << 30) - 496} free; hetrun takes {32 << 20}",
        "DDR": f"{16 << 30} bytes, {(16 << 30) - 4096} free; hetrun takes {16 << 20}",
        "temperature": "FPGA 41 C, FPGA HBM 39 C",
        "power": "27.5 W of at most 225 W",
        "time limit of a launch": "0.3 s",
    }


def test_details_load_nothing_and_leave_an_open_card_alone(insert: Insert, xclbin: Path) -> None:
    card = insert()
    shown(xclbin)
    assert card.loaded is None
    driver = opened(xclbin)
    n_launches = len(card.launches)
    shown(xclbin)
    assert len(card.launches) == n_launches and card.users == 1
    driver.close()


def test_what_xrt_does_not_tell_is_unknown(insert: Insert, xclbin: Path) -> None:
    card = insert()
    card.info = {"memory": "{}", "electrical": "no JSON", "thermal": json.dumps({"thermals": []})}
    rows = shown(xclbin)
    assert rows["HBM"].value == f"unknown; hetrun takes {32 << 20}" and "KeyError" in str(rows["HBM"].missing)
    assert rows["power"].value == "unknown" and "XRT does not tell it" in str(rows["power"].missing)
    assert rows["temperature"].value == "no sensor"
    card.info["memory"] = json.dumps({"board": {"memory": {"memories": []}}})
    assert shown(xclbin)["HBM"].value.startswith("unknown: nothing is loaded")


def test_each_row_says_what_is_wrong_with_it(insert: Insert, tmp_path: Path) -> None:
    insert()
    absent = tmp_path / "none.xclbin"
    assert f"{absent} not found" in str(shown(absent)["xclbin"].missing)
    assert shown(None)["xclbin"].value == "none named"
    broken = tmp_path / "broken.xclbin"
    broken.write_bytes(absence.XCLBIN_MAGIC + b"{")
    assert "it cannot be read" in str(shown(broken)["xclbin"].missing)
    other = write_xclbin(tmp_path / "other.xclbin", kernels={"vadd": 4}, mems=[("HBM[0]", 0, 1, True)])
    rows = shown(other)
    assert f"expected a kernel {CONTROLLER}, found vadd" in str(rows["kernel"].missing)
    assert rows["banks"] == Detail("banks", "1 of HBM", "it uses no HBM[1]: hetrun build alveo-u280")
    assert "card 1 does not open" in str(shown(other, card=1)["card"].missing)


def test_without_xrt_or_card_the_rest_is_still_told(
    pci: Path, xclbin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = shown(xclbin)
    assert rows["runtime"].value == "no pyxrt" and "setup.sh" in str(rows["runtime"].missing)
    assert rows["card"] == Detail("card", BDF) and rows["power"] == Detail("power", "unknown")
    assert rows["xclbin"] == Detail("xclbin", str(xclbin)) and "kernel" not in rows
    monkeypatch.setitem(sys.modules, "pyxrt", fake_pyxrt.module("2.13", []))
    monkeypatch.setattr(absence, "PCI_DEVICES", tmp_path / "nowhere")
    rows = shown(xclbin)
    assert rows["card"].value == "none" and "no Alveo U280 on the PCIe bus" in str(rows["card"].missing)
    assert rows["kernel"].missing is None


def test_a_pyxrt_that_does_not_import_is_a_row(
    pci: Path, xclbin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyxrt.py").write_text("raise ImportError('of another Python')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = shown(xclbin)
    assert rows["runtime"].value == "pyxrt does not import" and "of another Python" in str(rows["runtime"].missing)
