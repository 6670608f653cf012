"""`hetrun devices`: what is here, whether it works, and what is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hetrun.device import Detail
    from hetrun.plugins import FoundDevice, Plugin, Registry
    from hetrun.run.selfcheck import SelfCheck


@dataclass(frozen=True)
class DeviceReport:
    """A device, what its self-check found (None: it was not run), and what its driver tells beside."""

    found: FoundDevice
    check: SelfCheck | None
    details: Sequence[Detail] = ()

    @property
    def state(self) -> str:
        if self.check is not None and self.check.outcome == "fail":
            return "broken"
        return "ok" if self.found.info.unavailable is None else "unavailable"


@click.command(
    "devices",
    short_help="Show devices, what is missing, and whether they compute.",
    epilog=options.example("hetrun devices", "hetrun devices --device cpu --json"),
)
@options.devices
@click.option("--check/--no-check", default=True, help="Compute a little on each device that is here (default: yes).")
@options.common
def command(devices: tuple[str, ...], system: str | None, threads: int | None, check: bool) -> int:
    """Shows every device: its state, the reason and the remedy where it cannot be used, and whether a small computation
    on it gives the right result; and what drivers tell beside of those that are here or named. Plugins that failed are
    shown with their error, with --debug with their traceback.

    Exit code 7 if a device computes wrongly or fails while it does.
    """
    from hetrun.cli.loading import planned_devices
    from hetrun.plugins import Registry

    registry = Registry.load()
    if devices or system:
        found = planned_devices(options.Choice(devices=devices, system=system, threads=threads), registry)
    else:
        found = registry.devices(None, {} if threads is None else {"threads": threads})
    reports = [_report(device, check) for device in found]
    if options.flags().json:
        print(json.dumps(_record(reports, registry)))
    else:
        from hetrun.view.devices import print_devices

        print_devices(reports, registry, named=bool(devices or system))
        if options.flags().debug:
            for broken in registry.broken:
                print(f"\nplugin {broken.name}:\n{broken.detail}", file=sys.stderr)
    wrong = [r for r in reports if r.state == "broken"]
    if wrong:
        first = wrong[0]
        reason = first.check.error if first.check else ""
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DeviceError(
            f"{first.found.info.id} fails its self-check: {reason}{more}",
            remedy=first.check.remedy if first.check else None,
        )
    return 0


def _report(found: FoundDevice, check: bool) -> DeviceReport:
    from hetrun.run.selfcheck import self_check

    runnable = found.info.unavailable is None and found.info.backing != "modelled"
    checked = self_check(found) if check and runnable else None
    return DeviceReport(found, checked, _details(found))  # after the check: it may have loaded what is told


def _details(found: FoundDevice) -> Sequence[Detail]:
    from hetrun.device import Described, Detail

    if not isinstance(found.driver, Described):
        return ()
    try:
        return found.driver.details(found.info)
    except Exception as error:  # a plugin's fault hides no device
        return [Detail("details", "unknown", f"the driver raised {type(error).__name__}: {error}")]


def _record(reports: list[DeviceReport], registry: Registry) -> dict[str, Any]:
    plugins = {p.name: p for p in registry.plugins}
    return {
        "devices": [
            {
                "id": r.found.info.id,
                "description": r.found.info.description,
                "backing": r.found.info.backing,
                "state": r.state,
                "reason": r.found.info.unavailable.reason if r.found.info.unavailable else None,
                "remedy": r.found.info.unavailable.remedy if r.found.info.unavailable else None,
                "self_check": vars(r.check) if r.check else None,
                "details": [vars(detail) for detail in r.details],
                "spaces": [{"name": s.name, "capacity_bytes": s.capacity_bytes} for s in r.found.info.spaces],
                "driver": r.found.driver.name,
                "plugin": _plugin(plugins[r.found.plugin]),
            }
            for r in reports
        ],
        "plugins": [_plugin(p) for p in registry.plugins],
        "broken": [{**_plugin(b), "error": b.error, "detail": b.detail} for b in registry.broken],
    }


def _plugin(plugin: Plugin) -> dict[str, str]:
    return {
        "name": plugin.name,
        "module": plugin.module,
        "distribution": plugin.distribution,
        "version": plugin.version,
    }
