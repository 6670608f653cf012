"""From options to plugins, devices and a loaded model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hetrun import api
from hetrun.cli.options import Choice
from hetrun.errors import DeviceError, HetrunError, PlanError, PluginError, UsageError
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions
from hetrun.model.catalog import resolve_model
from hetrun.plan.kv_format import DEFAULT
from hetrun.plan.plan import Plan
from hetrun.plugins import FoundDevice, Registry

if TYPE_CHECKING:
    from hetrun.config import SystemConfig
    from hetrun.model.tokenizer import Tokenizer


def load_model(
    path_or_name: str,
    choice: Choice,
    encode: Callable[[Tokenizer], list[int]] | None = None,
    *,
    stand_ins: bool = True,
) -> api.Model:
    """The model, loaded on the devices chosen. Plugins that failed are named on stderr.

    encode: as in `api.load`.   stand_ins: False where times are measured, and what is only modelled has none.
    """
    show_log()
    if choice.plan_file and choice.pins:
        raise UsageError("--pin and --plan exclude each other", remedy="a plan already says where each op runs")
    path = resolve_model(path_or_name)  # before plugins are looked for: a misspelt name is answered at once
    system = system_of(choice)
    plan = read_plan(choice.plan_file) if choice.plan_file else None
    registry = Registry.load()
    devices = choice.devices or (plan.used_devices if plan else None)
    try:
        model = api.load(
            path,
            devices=devices,
            system=system,
            n_ctx=choice.n_ctx or 0,
            threads=choice.threads,
            pins=choice.pins,
            plan=plan,
            kv_format=choice.kv_type,
            window=choice.attention.window,
            sink=choice.attention.sink,
            extension=choice.extension,
            registry=registry,
            encode=encode,
        )
    except DeviceError as error:
        raise _blame(error, registry, devices) from error
    warn_of_broken(registry)
    chosen_kv_type(model.session.runtime.graph, choice.kv_type)
    if model.stand_ins:
        names = ", ".join(d.info.id for d in model.stand_ins)
        if not stand_ins:
            model.close()
            raise UsageError(
                f"{names}: only modelled, there is nothing to measure", remedy="hetrun plan predicts its times"
            )
        print(f"note: only modelled: {names}; {model.stand_ins[0].acting_id} stands in and computes", file=sys.stderr)
    return model


def planned_devices(
    choice: Choice, registry: Registry, *, to_run: bool = False, calibrated: bool = True
) -> list[FoundDevice]:
    """The devices to plan for: those named, present or not, or all that are here. DeviceError for an unknown one.

    to_run, calibrated: as `api.choose_devices` has them.
    """
    system = system_of(choice)
    try:
        return api.choose_devices(
            registry, choice.devices, system=system, threads=choice.threads, to_run=to_run, calibrated=calibrated
        )
    except DeviceError as error:
        raise _blame(error, registry, choice.devices) from error


def chosen_kv_type(graph: Graph, asked: str | None) -> str:
    """How the graph keeps keys and values; a note on stderr where the devices decided that it is not f16."""
    chosen = next((kv.format for kv in graph.kv_specs.values()), DEFAULT)
    if asked is None and chosen != DEFAULT:
        print(
            f"note: keys and values are kept as {chosen}, which every device takes that has attention "
            f"(--kv-type {DEFAULT}: only devices that take {DEFAULT})",
            file=sys.stderr,
        )
    return chosen


def graph_options(choice: Choice) -> GraphOptions:
    attention = choice.attention
    return GraphOptions(
        n_ctx=choice.n_ctx or 0,
        kv_format=choice.kv_type or DEFAULT,
        window=attention.window,
        sink=attention.sink,
        extension=choice.extension,
    )


def read_plan(path: str) -> Plan:
    """The plan of a file. PlanError where it cannot be read or is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise PlanError(f"{path}: {reason}", remedy="make a plan with hetrun plan --save FILE") from None
    return Plan.from_json(text, path)


def show_log() -> None:
    """Warnings of the log look like the others on stderr."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(logging.Formatter("warning: %(message)s"))


def warn_of_broken(registry: Registry) -> None:
    for broken in registry.broken:
        line = " ".join(broken.error.split())
        print(f'warning: plugin {broken.name} failed: {line}; "hetrun devices" tells more', file=sys.stderr)


def system_of(choice: Choice) -> SystemConfig | None:
    if choice.system is None:
        return None
    from hetrun.config import load_system

    return load_system(choice.system)


def _blame(error: DeviceError, registry: Registry, wanted: Sequence[str] | None) -> HetrunError:
    """The failure of a plugin whose device was asked for by name, else the error itself."""
    names = {w.partition(":")[0] for w in wanted or ()}
    for broken in registry.broken:
        if broken.name in names or not registry.plugins:
            return PluginError(
                f"plugin {broken.name} failed: {broken.error}",
                remedy=f'repair or uninstall {broken.distribution or broken.module}; "hetrun devices --debug" has more',
            )
    return error
