"""Why a card cannot be opened here. It looks at files only: nothing is imported, nothing is changed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from hetrun.device import Unavailable
from hetrun_alveo_u280.settings import Settings

PCI_DEVICES = Path("/sys/bus/pci/devices")
VENDOR = "0x10ee"
# The user's function of a card, by its platform (XRT's driver, xocl): 0x500c, the first function, is for management.
USER_FUNCTIONS = ("0x5009", "0x500d")
XRT_FOLDER = Path("/opt/xilinx/xrt")
SETUP = XRT_FOLDER / "setup.sh"
RENDER_NODES = Path("/dev/dri")
XCLBIN_MAGIC = b"xclbin2\0"


def absence(settings: Settings) -> Unavailable | None:
    """What is missing first, or None."""
    return runtime_absence() or card_absence(settings.card) or xclbin_absence(settings.xclbin)


def cards() -> Sequence[Path]:
    """The cards' functions on the PCIe bus, by their addresses."""
    try:
        functions = sorted(PCI_DEVICES.iterdir())
    except OSError:
        return ()
    return [f for f in functions if _word(f / "vendor") == VENDOR and _word(f / "device") in USER_FUNCTIONS]


def xclbin_absence(xclbin: str | None) -> Unavailable | None:
    if xclbin is None:
        return Unavailable(
            "no xclbin is named",
            'set xclbin = "/path/hetrun_u280.xclbin" under [drivers.alveo-u280] in the system file',
        )
    try:
        with open(xclbin, "rb") as file:
            magic = file.read(len(XCLBIN_MAGIC))
    except IsADirectoryError:
        return Unavailable(f"xclbin {xclbin} is a folder", 'name the file that "hetrun build alveo-u280" makes')
    except FileNotFoundError:
        return Unavailable(f"xclbin {xclbin} not found", 'run "hetrun build alveo-u280", or correct its path')
    except OSError as error:
        return Unavailable(f"xclbin {xclbin} cannot be read: {error.strerror}", "give it back its permissions")
    if magic != XCLBIN_MAGIC:
        return Unavailable(f"{xclbin} is no xclbin", 'name the file that "hetrun build alveo-u280" makes')
    return None


def runtime_absence() -> Unavailable | None:
    if importlib.util.find_spec("pyxrt") is not None:
        return None
    if SETUP.exists():
        return Unavailable("XRT's Python module pyxrt is not on the path", f"source {SETUP} in this shell")
    return Unavailable(
        "XRT, which brings the Python module pyxrt, is not installed",
        f"install XRT and the card's platform from AMD, then source {SETUP}; or use alveo-u280:csim",
    )


def card_absence(card: int | str) -> Unavailable | None:
    found = cards()
    if isinstance(card, str):
        found = [f for f in found if f.name.lower().endswith(card.lower())]
    if not found:
        which = f" at {card}" if isinstance(card, str) else ""
        return Unavailable(
            f"no Alveo U280 on the PCIe bus{which}", "lspci -d 10ee: lists AMD's cards; or use alveo-u280:csim"
        )
    driven = [f for f in found if (f / "driver").exists()]
    if not driven:
        return Unavailable(f"the card at {found[0].name} has no driver", "load XRT's kernel module: sudo modprobe xocl")
    nodes = [RENDER_NODES / node.name for f in driven for node in sorted(f.glob("drm/renderD*"))]
    if not any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        shut = nodes[0] if nodes else f"the card at {driven[0].name}"
        return Unavailable(f"no permission for {shut}", "sudo usermod -aG render $USER, and log in again")
    return None


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
