"""The Vitis project of the engine: its sources, and configurations of v++ filled with the header's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hetrun.device import BuildStep, project_files
from hetrun_alveo_u280.definition import HEADER, definition
from hetrun_alveo_u280.opened import KERNEL, banks

PLATFORM = "xilinx_u280_gen3x16_xdma_1_202211_1"
LANES = "hetrun_u280_lanes"  # without control: they run from the start on
XCLBIN = "hetrun_u280.xclbin"
CONTROLLER_UNIT = "controller"


def steps() -> Sequence[BuildStep]:
    """Each kernel compiled, both linked, the result packaged."""
    return (
        _compiled("controller", KERNEL),
        _compiled("lanes", LANES),
        BuildStep(
            (*_tool("--link"), "--config", "link.cfg", "-o", "link.xclbin", "controller.xo", "lanes.xo"), "link.xclbin"
        ),
        BuildStep((*_tool("--package"), "link.xclbin", "--package.out_dir", "package", "-o", XCLBIN), XCLBIN),
    )


def sources() -> Mapping[str, str]:
    """File -> text. HetrunError where hetrun was installed without them."""
    return project_files(HEADER, "vitis", values())


def values() -> Mapping[str, str]:
    """What the configurations' slots stand for."""
    n = definition().numbers
    units = [_lane_unit(i) for i in range(n["LANE_KERNELS"])]
    return {
        "CLOCK_HZ": str(n["CLOCK_HZ"]),
        "CLOCK_MHZ": f"{n['CLOCK_HZ'] / 1e6:g}",
        "CONTROLLER": KERNEL,
        "LANES": LANES,
        "LANE_KERNELS": str(len(units)),
        "LANE_UNITS": ",".join(units),
        "LANE_SLRS": "\n".join(f"slr={unit}:SLR{1 + 2 * i // len(units)}" for i, unit in enumerate(units)),
        "BANKS": "\n".join(
            f"sp={CONTROLLER_UNIT}.{buffer_argument(number)}:{tag}" for tag, numbers in banks() for number in numbers
        ),
        "STREAMS": "\n".join(f"stream_connect={':'.join(stream)}" for stream in streams()),
        "XCLBIN": XCLBIN,
    }


def buffer_argument(number: int) -> str:
    """The name, in the controller's top function, of a buffer by its number."""
    names = {n: name.lower() for name, n in definition().under("ARG_").items()}
    return names.get(number, f"channel{number}")


def streams() -> Iterator[tuple[str, str]]:
    """(unit.port that writes, unit.port that reads) of each stream.

    Ports of an array have their number behind its name. Channels are dealt to kernels of lanes in order.
    """
    n = definition().numbers
    n_channels = n["CHANNELS"] // n["LANE_KERNELS"]
    for k in range(n["LANE_KERNELS"]):
        unit = _lane_unit(k)
        yield f"{CONTROLLER_UNIT}.commands_{k}", f"{unit}.commands"
        for i in range(n_channels):
            yield f"{CONTROLLER_UNIT}.beats_{k * n_channels + i}", f"{unit}.beats_{i}"
        yield f"{unit}.results", f"{CONTROLLER_UNIT}.results_{k}"


def _lane_unit(i: int) -> str:
    return f"lanes_{i}"


def _tool(action: str) -> tuple[str, ...]:
    return ("v++", action, "--target", "hw", "--platform", PLATFORM)


def _compiled(name: str, kernel: str) -> BuildStep:
    made = f"{name}.xo"
    source = f"hls/{name}.cpp"
    return BuildStep(
        (*_tool("--compile"), "--config", f"{name}.cfg", "--kernel", kernel, "-I", ".", "-o", made, source), made
    )
