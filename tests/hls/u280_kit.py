"""A pytest plugin for the conformance kit: it puts a card, and the pyxrt of $FAKE_PYXRT, into the process.

$FAKE_FOLDER: for what Linux shows of the card; the xclbin stands there as engine.xclbin.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fake_pyxrt
from fake_u280 import FakeCard
from u280_machine import BDF, add_card

from hetrun_alveo_u280 import absence

folder = Path(os.environ["FAKE_FOLDER"])
add_card(folder / "pci", folder / "dri", BDF, "renderD128")
absence.PCI_DEVICES, absence.RENDER_NODES = folder / "pci", folder / "dri"
sys.modules["pyxrt"] = fake_pyxrt.module(os.environ["FAKE_PYXRT"], [FakeCard()])
