"""The Vitis HLS and Vivado project of the engine: its sources, and scripts filled with the header's numbers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from hetrun.device import BuildStep, project_files
from hetrun_pynq_z1.definition import HEADER, definition

PART = "xc7z020clg400-1"
TOP = "hetrun_pynq_engine"
OVERLAY = "hetrun_pynq_z1"  # the .bit and .hwh, by which pynq knows an overlay
# Registers that are the protocol's own; the others are arguments of the top function.
_CONTROL = ("CTRL", "GIE", "IER", "ISR")

# Vitis 2024.2 has no vitis_hls any more.
_HLS = ("vitis_hls", "-f", "hls.tcl")
_NEWER_HLS = ("vitis-run", "--mode", "hls", "--tcl", "hls.tcl")


def steps() -> Sequence[BuildStep]:
    """Synthesis by the Vitis that is here, then the overlay."""
    newer = shutil.which(_HLS[0]) is None and shutil.which(_NEWER_HLS[0]) is not None
    return (
        BuildStep(_NEWER_HLS if newer else _HLS, "hls_project/solution/impl/ip/component.xml"),
        BuildStep(("vivado", "-mode", "batch", "-source", "vivado.tcl"), f"{OVERLAY}.bit"),
    )


def sources() -> Mapping[str, str]:
    """File -> text. HetrunError where hetrun was installed without them."""
    return project_files(HEADER, "tcl", values())


def values() -> Mapping[str, str]:
    """What the scripts' slots stand for."""
    known = definition()
    numbers = known.numbers
    own = {n: o for n, o in known.registers.items() if n not in _CONTROL}
    return {
        "PART": PART,
        "TOP": TOP,
        "OVERLAY": OVERLAY,
        "VERSION": str(numbers["VERSION"]),
        "CLOCK_MHZ": f"{numbers['CLOCK_HZ'] / 1e6:.3f}",
        "CLOCK_NS": f"{1e9 / numbers['CLOCK_HZ']:.3f}",
        "REGISTERS": " ".join(f"{name} {offset:#04x}" for name, offset in own.items()),
    }
