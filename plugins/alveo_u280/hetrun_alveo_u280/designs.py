"""The engines that a sweep tries, and what each would be as a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from hetrun.device import Cost, DesignPoint, DeviceInfo, MemorySpace, Resource, Unavailable, check_parameters
from hetrun_alveo_u280.cost import launch_cost
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.fabric import CAPACITY, MOST_SHARE, parts, totals
from hetrun_alveo_u280.power import watts
from hetrun_alveo_u280.timing import header_design

DESIGN = "alveo-u280:design"
HOST_PROFILE = "model:x86-generic"
MHZ = 1_000_000

AXES: Mapping[str, Sequence[int]] = {
    "channels": (16, 24, 32),
    "lanes": (64, 128),
    "fifo_kb": (64, 128, 256),
    "pass_tokens": (4, 8),
    "vector_floats": (32, 64, 128),
    "clock_mhz": (225, 300),
}
# What each may be, and a reason.
_ALLOWED: Mapping[str, tuple[frozenset[int], str]] = {
    "channels": (frozenset(range(4, 33, 4)), "4 to 32 by fours: a lane kernel has four"),
    "lanes": (frozenset((32, 64, 128, 256)), "32, 64, 128 or 256"),
    "fifo_kb": (frozenset((4, 16, 32, 64, 128, 256, 512)), "4, 16, 32, 64, 128, 256 or 512"),
    "pass_tokens": (frozenset((1, 2, 4, 8, 16)), "1, 2, 4, 8 or 16"),
    "vector_floats": (frozenset((16, 32, 64, 128, 256)), "16, 32, 64, 128 or 256"),
    "clock_mhz": (frozenset(range(100, 401)), "100 to 400"),
}


def design_point(parameters: Mapping[str, int]) -> DesignPoint:
    """UsageError for a parameter that is missing, unknown or cannot be."""
    check_parameters("alveo-u280", parameters, _ALLOWED)
    design = replace(
        header_design(),
        channels=parameters["channels"],
        lanes=parameters["lanes"],
        fifo_beats=parameters["fifo_kb"] * 1024 // definition().numbers["BEAT_BYTES"],
        pass_tokens=parameters["pass_tokens"],
        vector_floats=parameters["vector_floats"],
        clock_hz=parameters["clock_mhz"] * MHZ,
    )
    known, launch, of_board = definition().numbers, launch_cost(), watts(design, "board")
    basis = f"analytic:sum of {len(parts(design))} parts counted by hand, nothing synthesised (docs/alveo-u280.md)"
    taken = {name: Resource(used, CAPACITY[name], basis) for name, used in totals(design).items()}
    info = DeviceInfo(
        id=DESIGN,
        description=f"A U280 engine of {design.channels} channels and {design.lanes} products each at "
        f"{parameters['clock_mhz']} MHz",
        backing="modelled",
        spaces=(
            MemorySpace(f"{DESIGN}/ddr", known["DDR_BYTES"]),
            MemorySpace(f"{DESIGN}/hbm", design.channels * known["CHANNEL_BYTES"]),
        ),
        launch=Cost(launch.seconds, launch.basis, joules=launch.seconds * of_board),
        model={**{name: float(value) for name, value in asdict(design).items()}, "watts": of_board},
        unavailable=Unavailable("a design that was never built", '"hetrun build alveo-u280" makes the one of engine.h'),
    )
    fits = all(resource.share <= MOST_SHARE for resource in taken.values())
    return DesignPoint(dict(parameters), info, taken, fits, design.pass_tokens)
