"""The tables of `hetrun devices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.text import Text

from hetrun.device import Detail
from hetrun.plugins import FoundDevice, Registry
from hetrun.run.selfcheck import SelfCheck
from hetrun.view.console import console, duration, plain, table

_STYLES = {"ok": "green", "unavailable": "yellow", "broken": "bold red"}


class Report(Protocol):
    """A device, what its self-check found (None: it was not run), and what its driver tells beside."""

    @property
    def found(self) -> FoundDevice: ...

    @property
    def details(self) -> Sequence[Detail]: ...

    @property
    def check(self) -> SelfCheck | None: ...

    @property
    def state(self) -> str: ...


def print_devices(reports: Sequence[Report], registry: Registry, *, named: bool) -> None:
    """Devices that run, those that can only be planned for, and plugins that failed.

    named: the user asked for these; else details of devices that are not here would only be in the way.
    """
    out = console()
    origin = {p.name: f"{p.distribution} {p.version}".strip() or p.module for p in registry.plugins}
    modelled = [r for r in reports if r.found.info.backing == "modelled"]
    shown = table("device", "backing", "state", "self-check", "description", "from")
    for r in (r for r in reports if r not in modelled):
        info = r.found.info
        description = plain(info.description)
        if info.unavailable:
            description.append(f"\n{info.unavailable.reason}\n{info.unavailable.remedy}")
        elif r.check and r.check.error:
            description.append("\n").append(plain(r.check.error))
        state = Text(r.state, _STYLES[r.state])
        shown.add_row(plain(info.id), info.backing, state, _check(r.check), description, plain(origin[r.found.plugin]))
    out.print(shown)
    for r in (r for r in reports if r.details and (named or r.state != "unavailable")):
        shown = table(str(plain(r.found.info.id)), "", "what is missing")
        for detail in r.details:
            shown.add_row(plain(detail.name), plain(detail.value), plain(detail.missing or "", "yellow"))
        out.print(shown)
    if modelled:
        shown = table("to plan for, not to run", "description", "from")
        for r in modelled:
            info = r.found.info
            shown.add_row(plain(info.id), plain(info.description), plain(origin[r.found.plugin]))
        out.print(shown)
    if registry.broken:
        shown = table("plugin that failed", "module", "from", "error")
        for b in registry.broken:
            shown.add_row(*map(plain, (b.name, b.module, b.distribution, b.error)))
        out.print(shown)


def _check(check: SelfCheck | None) -> Text:
    if check is None:
        return Text("")
    took = duration(check.seconds)
    if check.outcome == "pass":
        return Text(f"PASS {took}, error {check.nmse:.0e}", "green")
    return Text(f"FAIL {took}", "bold red") if check.outcome == "fail" else Text("none for it")
