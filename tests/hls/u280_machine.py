"""A machine that looks as if it had an Alveo U280, with the fake pyxrt: what tests of its driver have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_pyxrt
import pytest
from fake_u280 import FakeCard, write_xclbin

from hetrun_alveo_u280 import absence
from hetrun_alveo_u280.settings import Settings, settings_of
from hetrun_alveo_u280.xrt import XrtCard

BDF = "0000:3b:00.1"
SMALL = {"hbm_bytes": 32 << 20, "ddr_bytes": 16 << 20, "timeout_s": 0.3}
# An empty launch: a program that ends at once.
NOTHING = {
    "VERSION": 1, "PROGRAM": 1, "ROWS": 3, "REPORT": 4, "N_TOKENS": 1, "TOKEN": 0, "POSITION": 0, "SLOT": 0,
    "OUTPUT": -1,
}  # fmt: skip

Insert = Callable[..., FakeCard]


def add_card(pci: Path, dri: Path, bdf: str, node: str) -> None:
    """What Linux shows of a card whose kernel module is loaded."""
    function = pci / bdf
    (function / "drm" / node).mkdir(parents=True)
    (function / "vendor").write_text("0x10ee\n")
    (function / "device").write_text("0x500d\n")
    (function / "driver").mkdir()
    dri.mkdir(exist_ok=True)
    (dri / node).write_bytes(b"")


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PCIe bus with a card on it."""
    folder = tmp_path / "pci"
    add_card(folder, tmp_path / "dri", BDF, "renderD128")
    monkeypatch.setattr(absence, "PCI_DEVICES", folder)
    monkeypatch.setattr(absence, "RENDER_NODES", tmp_path / "dri")
    return folder


@pytest.fixture(params=fake_pyxrt.SHAPES)
def insert(request: pytest.FixtureRequest, pci: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Insert]:
    """Puts a card into the machine, once for each shape of pyxrt."""

    def make(**options: object) -> FakeCard:
        card = FakeCard(**options)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "pyxrt", fake_pyxrt.module(request.param, [card]))
        return card

    yield make


@pytest.fixture
def xclbin(tmp_path: Path) -> Path:
    return write_xclbin(tmp_path / "engine.xclbin")


def settings(xclbin: Path | None, **changes: object) -> Settings:
    named = {} if xclbin is None else {"xclbin": str(xclbin)}
    return settings_of("alveo-u280", {**SMALL, **named, **changes})


def opened(xclbin: Path, **changes: object) -> XrtCard:
    return XrtCard("alveo-u280:0", settings(xclbin, **changes))
