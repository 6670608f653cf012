"""Watts of an engine, on two bases that must never be compared with each other.

Both are anchored at a published figure and go with the clock and with what the engine has of LUTs and DSPs beside
AccLLM's (420K and 4,497 at 225 MHz, arXiv 2505.03745); what does not go with them is an assumption.
"""

from __future__ import annotations

from typing import Literal

from hetrun_alveo_u280.fabric import totals
from hetrun_alveo_u280.timing import Design

PowerBasis = Literal["tool", "board"]

BASES: dict[PowerBasis, str] = {
    "tool": "analytic:AccLLM's 33 W at 225 MHz, a tool's estimate of its FPGA; 15 W of them leakage and HBM, assumed",
    "board": "analytic:FlightLLM's 45 W at 225 MHz, of a board; 25 W of them idle and HBM, its size AccLLM's, assumed",
}
_FIXED_W: dict[PowerBasis, float] = {"tool": 15.0, "board": 25.0}
_ANCHOR_W: dict[PowerBasis, float] = {"tool": 33.0, "board": 45.0}
_ANCHOR_HZ, _ANCHOR_LUT, _ANCHOR_DSP = 225e6, 420_000, 4_497


def watts(design: Design, basis: PowerBasis) -> float:
    """While the engine works."""
    taken = totals(design)
    size = (taken["LUT"] / _ANCHOR_LUT + taken["DSP"] / _ANCHOR_DSP) / 2
    return _FIXED_W[basis] + (_ANCHOR_W[basis] - _FIXED_W[basis]) * design.clock_hz / _ANCHOR_HZ * size
