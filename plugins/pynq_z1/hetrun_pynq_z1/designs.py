"""The engines that a sweep tries, and what each would be as a device of a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from hetrun.device import Cost, DesignPoint, DeviceInfo, MemorySpace, Resource, Unavailable, check_parameters
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.fabric import CAPACITY, MOST_SHARE, parts, totals
from hetrun_pynq_z1.program import SPACE
from hetrun_pynq_z1.timing import Design

DESIGN = "pynq-z1:design"
HOST_PROFILE = "model:cortex-a9"
MHZ = 1_000_000

AXES: Mapping[str, Sequence[int]] = {
    "lanes": (16, 32, 64),
    "ports": (1, 2),
    "fifo_words": (64, 128),
    "tokens": (4, 8),
    "rows": (4, 8),
    "clock_mhz": (100, 125, 142, 150),
}
# What each may be: whole numbers between, and a reason.
_ALLOWED: Mapping[str, tuple[frozenset[int], str]] = {
    "lanes": (frozenset((16, 32, 64)), "16, 32 or 64"),
    "ports": (frozenset((1, 2)), "1 or 2: HP0 and HP2, the others carry activations and results"),
    "fifo_words": (frozenset((16, 32, 64, 128, 256, 512, 1024)), "a power of two from a burst's 16 to 1,024"),
    "tokens": (frozenset((2, 4, 8, 16)), "2, 4, 8 or 16"),
    "rows": (frozenset((4, 8, 16)), "4, 8 or 16: a tile's header has whole words"),
    "clock_mhz": (frozenset(range(50, 201)), "50 to 200"),
}

# A board with the same part took 2.73 W with an overlay idle, 3.12 W at work at 100 MHz and 3.85 W at 175 MHz
# (github.com/LukiBa/zybo_yolo); lines between. How full the fabric is has no part in it: nothing published says.
IDLE_W = 2.73
_WATTS_AT_MHZ = ((100, 3.12), (175, 3.85))


def system_watts(clock_mhz: int) -> float:
    """Power of the board while the engine works and the processors wait."""
    (low, low_w), (high, high_w) = _WATTS_AT_MHZ
    return low_w + (clock_mhz - low) * (high_w - low_w) / (high - low)


def design_point(parameters: Mapping[str, int], memory_bytes: int, launch: Cost) -> DesignPoint:
    """UsageError for a parameter that is missing, unknown or cannot be."""
    check_parameters("pynq-z1", parameters, _ALLOWED)
    numbers = {n: v for n, v in parameters.items() if n != "clock_mhz"}
    design = Design.of({**numbers, "clock_hz": parameters["clock_mhz"] * MHZ})
    watts = system_watts(parameters["clock_mhz"])
    max_columns = definition().numbers["MAX_COLUMNS"]
    basis = f"analytic:sum of {len(parts(design, max_columns))} parts, partly synthesised by Yosys (docs/pynq-z1.md)"
    taken = {n: Resource(used, CAPACITY[n], basis) for n, used in totals(design, max_columns).items()}
    info = DeviceInfo(
        id=DESIGN,
        description=f"A PYNQ-Z1 engine of {design.lanes} lanes at {parameters['clock_mhz']} MHz",
        backing="modelled",
        spaces=(MemorySpace(f"{DESIGN}/{SPACE}", memory_bytes),),
        launch=Cost(launch.seconds, launch.basis, joules=launch.seconds * watts),
        model={**{n: float(v) for n, v in asdict(design).items()}, "watts": watts},
        unavailable=Unavailable("a design that was never built", '"hetrun build pynq-z1" makes the one of engine.h'),
    )
    fits = all(r.share <= MOST_SHARE for r in taken.values())
    return DesignPoint(dict(parameters), info, taken, fits, design.tokens)
