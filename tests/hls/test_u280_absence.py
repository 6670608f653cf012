"""Where there is no card to open, hetrun says why, and imports nothing to find out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from u280_machine import BDF, add_card, opened, pci, settings, xclbin

from hetrun.errors import DeviceError
from hetrun_alveo_u280 import absence
from hetrun_alveo_u280.driver import AlveoU280Driver

__all__ = ["pci", "xclbin"]  # fixtures


def reason(xclbin: Path | None, **changes: object) -> str:
    absent = absence.absence(settings(xclbin, **changes))
    assert absent is None or absent.remedy
    return absent.reason if absent else ""


def test_each_thing_that_is_missing_has_its_reason(
    pci: Path, tmp_path: Path, xclbin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absence.importlib.util, "find_spec", lambda name: object())
    assert reason(xclbin) == "" and reason(xclbin, card=BDF) == reason(xclbin, card="3b:00.1") == ""
    assert reason(None) == "no xclbin is named"
    assert reason(tmp_path / "none.xclbin") == f"xclbin {tmp_path / 'none.xclbin'} not found"
    folder = tmp_path / "folder.xclbin"
    folder.mkdir()
    assert reason(folder) == f"xclbin {folder} is a folder"
    other = tmp_path / "other.xclbin"
    other.write_text("")
    assert reason(other) == f"{other} is no xclbin"
    assert reason(xclbin, card="0000:5e:00.1") == "no Alveo U280 on the PCIe bus at 0000:5e:00.1"
    (pci / BDF / "driver").rmdir()
    assert reason(xclbin) == f"the card at {BDF} has no driver"
    (pci / BDF / "device").write_text("0x500c\n")  # the function for management
    assert reason(xclbin) == "no Alveo U280 on the PCIe bus"
    monkeypatch.setattr(absence, "PCI_DEVICES", tmp_path / "nowhere")
    assert reason(xclbin) == "no Alveo U280 on the PCIe bus"


def test_a_card_that_may_not_be_opened_is_no_card(
    pci: Path, xclbin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absence.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "access", lambda path, mode: "129" in str(path))  # root may do anything
    assert reason(xclbin) == f"no permission for {tmp_path / 'dri' / 'renderD128'}"
    add_card(pci, tmp_path / "dri", "0000:5e:00.1", "renderD129")
    assert reason(xclbin) == "" and reason(xclbin, card="0000:5e:00.1") == ""
    assert reason(xclbin, card=BDF).startswith("no permission")


def test_without_xrt_its_set_up_script_is_named(
    pci: Path, xclbin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absence.importlib.util, "find_spec", lambda name: None)
    absent = absence.absence(settings(xclbin))
    assert absent is not None and "is not installed" in absent.reason
    assert "/opt/xilinx/xrt/setup.sh" in absent.remedy and "alveo-u280:csim" in absent.remedy
    monkeypatch.setattr(absence, "SETUP", tmp_path)
    absent = absence.absence(settings(xclbin))
    assert absent is not None and absent.reason == "XRT's Python module pyxrt is not on the path"
    assert absent.remedy == f"source {tmp_path} in this shell"


def test_looking_for_a_card_imports_nothing(pci: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyxrt.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reason(None) == "no xclbin is named"
    assert "pyxrt" not in sys.modules


def test_a_pyxrt_that_does_not_import_is_said(xclbin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyxrt.py").write_text("raise ImportError('libxrt_coreutil.so.2: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DeviceError, match=r"does not import: libxrt_coreutil.so.2") as caught:
        opened(xclbin)
    assert "setup.sh" in str(caught.value.remedy)


def test_the_driver_lists_the_card_with_its_reason_behind_csim(pci: Path) -> None:
    csim, card = AlveoU280Driver().probe({})
    assert (csim.id, card.id) == ("alveo-u280:csim", "alveo-u280:0")
    assert card.unavailable is not None and "pyxrt" in card.unavailable.reason
    with pytest.raises(DeviceError, match="alveo-u280:0: XRT, which brings"):
        AlveoU280Driver().open(card)


def test_a_card_that_can_be_opened_comes_first(pci: Path, xclbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence.importlib.util, "find_spec", lambda name: object())
    card, csim = AlveoU280Driver().probe({"xclbin": str(xclbin)})
    assert (card.id, card.backing, card.unavailable) == ("alveo-u280:0", "hardware", None)
    assert csim.id == "alveo-u280:csim" and str(xclbin) in card.description
