"""`hetrun explore`: designs of an accelerator compared before one is built."""

from __future__ import annotations

import difflib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hetrun.device import DesignPoint, DesignSpace, Driver
    from hetrun.plan.explore import Explored
    from hetrun.plugins import Registry


@click.command(
    "explore",
    short_help="Compare designs of an accelerator before building one.",
    epilog=options.example(
        "hetrun explore pynq-z1 --shape tinyllama-382mb --ctx 512",
        "hetrun explore pynq-z1 --model smollm2-135m --set lanes=32,64 --set clock_mhz=125",
    ),
)
@click.argument("driver")
@click.option("--model", "-m", metavar="PATH|NAME", help='A GGUF file, or a name of "hetrun pull --list".')
@click.option("--shape", metavar="NAME|FILE", help="Instead of a file: sizes alone, such as tinyllama-382mb.")
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(min=1), default=16, show_default=True, metavar="N",
    help="Tokens before the one that is timed.",
)  # fmt: skip
@click.option(
    "--set", "chosen", multiple=True, metavar="NAME=N,...",
    help="Values of a parameter, instead of the driver's own; repeatable.",
)  # fmt: skip
@click.option("--all", "show_all", is_flag=True, help="Show every design, not the fastest and the front alone.")
@options.common
def command(
    driver: str, model: str | None, shape: str | None, n_ctx: int, chosen: tuple[str, ...], show_all: bool
) -> None:
    """Plans the model for every design in turn, with the driver's models of time, energy and resources. Nothing is
    built or run. A design is on the front where no other that fits beats it in something without losing in another.
    """
    from hetrun import api
    from hetrun.cli.loading import show_log
    from hetrun.cli.plan import read_header
    from hetrun.device import DesignSpace
    from hetrun.model.architectures import GraphOptions
    from hetrun.plan.explore import combinations, explore
    from hetrun.plugins import FoundDevice, Registry, select_device

    show_log()
    name, header = read_header(model, shape, None)
    registry = Registry.load()
    found = driver_of(registry, driver)
    space: object = found
    if not isinstance(space, DesignSpace):
        raise DeviceError(f"driver {driver} has no designs to explore", remedy="docs/plugins.md says how it would")
    axes = {**space.axes(), **_values(chosen, space)}
    points = [space.design(parameters) for parameters in combinations(axes)]
    host = select_device(registry.devices(common={"modelled": True}), space.host_profile)
    # A cache of keys and values that the designs take, all of which are alike in that.
    devices = [host, FoundDevice(found, points[0].info, found.name)]
    graph = api.graph_on(devices, header, GraphOptions(n_ctx=2 * n_ctx, max_tokens=16), registry)
    print(f"planning {name} for {len(points)} designs", file=sys.stderr)
    explored = explore(graph, found, host, _with_progress(points), n_ctx)
    if options.flags().json:
        print(
            json.dumps({"model": name, "ctx": n_ctx, "host": host.info.id, "designs": [_record(e) for e in explored]})
        )
        return
    from hetrun.view.explore import print_explored

    print_explored(name, n_ctx, host.info, explored, show_all)


def driver_of(registry: Registry, name: str) -> Driver:
    """The driver of that name. DeviceError with near matches where there is none."""
    drivers = {d.name: d for _, d in registry.drivers()}
    if name not in drivers:
        near = difflib.get_close_matches(name, drivers, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DeviceError(f"no driver {name!r}", remedy=f"{hint}drivers here: {', '.join(drivers)}")
    return drivers[name]


def _with_progress(points: Sequence[DesignPoint]) -> Iterator[DesignPoint]:
    """The points, counted on a terminal while they are taken."""
    for i, point in enumerate(points, 1):
        yield point
        if sys.stderr.isatty():
            print(f"\r{i} of {len(points)}", end="\n" if i == len(points) else "", file=sys.stderr, flush=True)


def _values(chosen: tuple[str, ...], space: DesignSpace) -> dict[str, list[int]]:
    axes = space.axes()
    values: dict[str, list[int]] = {}
    for text in chosen:
        name, equals, rest = text.partition("=")
        if name not in axes or not equals:
            raise UsageError(f"--set {text}: no parameter {name!r}", remedy=f"there are {', '.join(axes)}: NAME=N,...")
        try:
            values[name] = [int(n) for n in rest.split(",")]
        except ValueError:
            raise UsageError(f"--set {text}: {rest!r} are no whole numbers", remedy=f"for example {name}=1,2") from None
    return values


def _record(explored: Explored) -> dict[str, Any]:
    point = explored.point
    return {
        "parameters": dict(point.parameters),
        "decode_s_per_token": explored.decode_s_per_token,
        "prefill_s_per_token": explored.prefill_s_per_token,
        "joules_per_token": explored.joules_per_token,
        "memory_bytes": explored.memory_bytes,
        "resources": {
            n: {"used": round(r.used, 1), "capacity": r.capacity, "share": r.share, "basis": r.basis}
            for n, r in point.resources.items()
        },
        "fits": point.fits,
        "front": explored.front,
        "basis": list(explored.basis),
    }
