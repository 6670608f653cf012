"""`hetrun calibrate`: measures the devices that are here, so that plans go by their real times."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import UsageError

if TYPE_CHECKING:
    from hetrun.calibration.table import Calibration
    from hetrun.measure.calibrate import Wanted
    from hetrun.plugins import FoundDevice


@click.command(
    "calibrate",
    short_help="Measure devices, so that plans go by their real times.",
    epilog=options.example(
        "hetrun calibrate",
        "hetrun calibrate --device cpu --threads 2 --model smollm2-135m",
        "hetrun calibrate --device cpu --show",
    ),
)
@options.devices
@click.option(
    "--type", "types", multiple=True, metavar="TYPE",
    help="Measure matmuls with weights of this tensor type; repeatable (default: the common ones).",
)  # fmt: skip
@click.option("--model", "-m", metavar="PATH|NAME", help="Measure the tensor types of that model.")
@click.option(
    "--kv-type", "kv_types", multiple=True, metavar="FORMAT",
    help="Measure attention over a KV cache of this format; repeatable (default: f16).",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer tensor types, less often: a third of the time.")
@click.option("--show", is_flag=True, help="Show what was measured before; measure nothing.")
@click.option("--reset", is_flag=True, help="Forget what was measured; plans go by the drivers' estimates again.")
@options.common
def command(
    devices: tuple[str, ...],
    system: str | None,
    threads: int | None,
    types: tuple[str, ...],
    model: str | None,
    kv_types: tuple[str, ...],
    quick: bool,
    show: bool,
    reset: bool,
) -> None:
    """Times small programs on every device that is here, or on those named: matmuls of each tensor type, attention, the
    other ops, launches and copies, for 1 to 256 tokens. From then on plans, and what is placed by them, go by these
    times. A device is measured for the threads that it is given; each number of threads is kept for itself.

    Stop it at any time: what was measured stays. Nothing else should run meanwhile.
    """
    from hetrun.plugins import Registry

    if show and reset:
        raise UsageError("--show and --reset exclude each other", remedy="choose one of them")
    registry = Registry.load()
    found = _devices(devices, system, threads, registry, to_run=not (show or reset))
    if reset:
        _reset(found)
    elif show:
        _show(found)
    else:
        _calibrate(found, _wanted(types, model, kv_types, quick), quick)


def _devices(
    devices: tuple[str, ...], system: str | None, threads: int | None, registry: Any, to_run: bool
) -> list[FoundDevice]:
    from hetrun.cli.loading import planned_devices

    choice = options.Choice(devices=devices, system=system, threads=threads)
    return planned_devices(choice, registry, calibrated=False, to_run=to_run)


def _wanted(types: Sequence[str], model: str | None, kv_types: Sequence[str], quick: bool) -> Wanted:
    import difflib

    from hetrun.measure.calibrate import COMMON_TYPES, QUICK_TYPES, Wanted
    from hetrun.ops import KV_FORMAT_BITS
    from hetrun.run.random_blocks import TYPES

    chosen = list(types)
    for known, names, option in ((TYPES, types, "--type"), (KV_FORMAT_BITS, kv_types, "--kv-type")):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name.upper() if option == "--type" else name.lower(), known, n=3)
                raise UsageError(
                    f"{option} {name}: nothing to measure under that name",
                    remedy=f"choose one of {', '.join(near or sorted(known))}",
                )
    if model is not None:
        chosen += [t for t in _types_of(model) if t in TYPES]
    return Wanted(chosen or (QUICK_TYPES if quick else COMMON_TYPES), kv_types or ("f16",))


def _types_of(model: str) -> list[str]:
    """Tensor types of the matrices of a model."""
    from hetrun.model.catalog import resolve_model
    from hetrun.model.gguf_file import ModelFile

    with ModelFile.open(resolve_model(model)) as file:
        return sorted({w.type.name for w in file.tensors.values() if len(w.shape) == 2})


def _calibrate(found: Sequence[FoundDevice], wanted: Wanted, quick: bool) -> None:
    from hetrun.calibration import store
    from hetrun.measure.calibrate import calibrate, check_measurable
    from hetrun.measure.timing import QUICK, Effort

    for device in found:
        check_measurable(device)
    results = []
    for device in found:
        path = store.path_of(device.driver, device.info)
        before = store.find(device.driver, device.info)
        started = time.monotonic()

        def progress(what: str, number: int, total: int, name: str = device.info.id, since: float = started) -> None:
            print(f"{name}: {number} of {total}, {time.monotonic() - since:.0f} s: {what}", file=sys.stderr)

        def keep(calibration: Calibration, path: Path = path) -> None:
            store.write(calibration, path)

        result = calibrate(device, wanted, QUICK if quick else Effort(), before, keep, progress)
        print(f"{device.info.id}: done in {time.monotonic() - started:.0f} s, kept in {path}", file=sys.stderr)
        results.append(result)
    _print(results)


def _show(found: Sequence[FoundDevice]) -> None:
    from hetrun.calibration import store

    results = []
    for device in found:
        calibration = store.read(device.driver, device.info) if device.info.backing == "hardware" else None
        if calibration is None:
            print(f'{device.info.id}: not measured; "hetrun calibrate" does that', file=sys.stderr)
        else:
            results.append(calibration)
    _print(results)


def _reset(found: Sequence[FoundDevice]) -> None:
    from hetrun.calibration import store

    removed = {device.info.id: store.remove(device.driver, device.info) for device in found}
    if options.flags().json:
        print(json.dumps({"removed": [name for name, was_there in removed.items() if was_there]}))
        return
    for name, was_there in removed.items():
        print(f"{name}: {'forgotten' if was_there else 'there was nothing to forget'}")


def _print(results: Sequence[Calibration]) -> None:
    from hetrun.calibration.summary import summary

    if options.flags().json:
        print(json.dumps([summary(c) for c in results]))
    elif results:
        from hetrun.view.calibrate import print_calibration

        for calibration in results:
            print_calibration(calibration)
