"""The tables of `hetrun profile` and `hetrun generate --profile`, from the record that --json prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hetrun.view.console import console, duration, plain, size, table

Record = Mapping[str, Any]

_BAR = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_profile(record: Record, *, to_stderr: bool = False) -> None:
    """Predicted beside measured: totals, devices, kinds of op, what is fused, layers, copies."""
    out = console(to_stderr=to_stderr)
    shown = [(name, record[name]) for name in ("prefill", "decode") if record[name]]
    for name, phase in shown:
        out.print(_headline(name, phase))
        out.print(_devices(phase))
        out.print(_entries("op kind", phase["kinds"], phase))
        out.print(_entries("timed as one", phase["parts"], phase))
        if phase["copies"]:
            out.print(_copies(phase))
    if shown:
        out.print(_layers(dict(shown)))
        _notes(out, record, [phase for _, phase in shown])


def _headline(name: str, phase: Record) -> Text:
    steps = f"{phase['n_steps']} step{'s' if phase['n_steps'] > 1 else ''}"
    clock = _clock(phase)
    line = Text(f"{name}", "bold").append(f": {phase['n_tokens']} tokens in {steps}; ", "default")
    line.append(f"{duration(phase['measured_s'] / phase['n_steps'])} a step {clock}", "default")
    line.append(f" ({_tps(phase['tps'])}), {duration(phase['predicted_s'] / phase['n_steps'])} predicted", "default")
    line.append(f" ({_tps(phase['predicted_tps'])}), error ", "default").append(error(phase["error"]))
    if phase["device_time_s"] is not None:
        line.append(f"; the host took {duration(phase['wall_s'] / phase['n_steps'])} to emulate it", "default")
    return line


def _devices(phase: Record) -> Table:
    clock = _clock(phase)
    columns = (clock, "predicted", "error", "launches", "in launches", "predicted", "idle", "bytes/s", "FLOP/s")
    shown = table("device, a step", numbers=columns)
    shown.add_column(f"{clock} by; predicted by")
    for d in phase["devices"]:
        shown.add_row(
            plain(d["device"]),
            _step(phase, d["measured_s"]),
            _step(phase, d["predicted_s"]),
            error(d["error"]),
            f"{d['launches'] / phase['n_steps']:g}",
            _step(phase, d["launch_s"]),
            _step(phase, d["launch_predicted_s"]),
            _step(phase, d["idle_s"]),
            _rate(d["bytes_per_s"], d["bytes_of_roof"], "B/s"),
            _rate(d["flops_per_s"], d["flops_of_roof"], "FLOP/s"),
            plain(f"{', '.join(d['basis'])}; {', '.join(d['predicted_basis'])}"),
        )
    return shown


def _entries(title: str, entries: Sequence[Record], phase: Record) -> Table:
    """Entries with their share of the phase."""
    shown = table(f"{title}, a step", "device")
    for column in (_clock(phase), "share", "predicted", "error", "bytes/s", "FLOP/s"):
        shown.add_column(column, justify="right")
    for e in entries:
        shown.add_row(
            plain(e["name"]),
            plain(e["device"]),
            ("~" if e["divided"] else "") + _step(phase, e["measured_s"]),
            f"{100 * e['measured_s'] / phase['measured_s']:.1f}%" if phase["measured_s"] else "",
            _step(phase, e["predicted_s"]),
            error(e["error"]),
            _rate(e["bytes_per_s"], e["bytes_of_roof"], "B/s"),
            _rate(e["flops_per_s"], e["flops_of_roof"], "FLOP/s"),
        )
    return shown


def _copies(phase: Record) -> Table:
    columns = ("copies", "bytes", "measured", "predicted", "error")
    shown = table("link, a step", numbers=columns)
    for c in phase["copies"]:
        shown.add_row(
            plain(f"{c['source']} to {c['target']}"),
            f"{c['copies'] / phase['n_steps']:g}",
            size(c["bytes"] / phase["n_steps"]),
            _step(phase, c["measured_s"]),
            _step(phase, c["predicted_s"]),
            error(c["error"]),
        )
    return shown


def _layers(phases: Mapping[str, Record]) -> Table:
    """A row for each layer and device, the phases side by side."""
    shown = table("layer", "device")
    for name in phases:
        for column in (f"{name} a step, {_clock(phases[name])}", "predicted", "error"):
            shown.add_column(column, justify="right")
        shown.add_column("")
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    most = {}
    for name, phase in phases.items():
        most[name] = max((e["measured_s"] for e in phase["layers"]), default=0.0)
        for e in phase["layers"]:
            rows.setdefault((e["name"], e["device"]), {})[name] = e
    for (layer, device), found in rows.items():
        cells: list[Text | str] = []
        for name, phase in phases.items():
            if e := found.get(name):
                times = (_step(phase, e["measured_s"]), _step(phase, e["predicted_s"]), error(e["error"]))
                cells += [*times, Text(bar(e["measured_s"] / most[name] if most[name] else 0.0), "cyan")]
            else:
                cells += ["", "", "", ""]
        shown.add_row(plain(layer.removeprefix("layer ")), plain(device), *cells)
    return shown


def _notes(out: Console, record: Record, phases: Sequence[Record]) -> None:
    for d in record["devices"]:
        roofs = [
            f"{_decimal(d[key])}{unit}" for key, unit in (("bytes_per_s", "B/s"), ("flops_per_s", "FLOP/s")) if d[key]
        ]
        if roofs:
            out.print(plain(f"roof of {d['device']}, by its cost model: {', '.join(roofs)}; % are of it"))
    if any(e["divided"] for phase in phases for e in phase["kinds"]):
        out.print(plain("~ ops that the device runs as one were timed together, and divided as their predictions are"))
    if any(p["whole"] for phase in phases for p in phase["cells"]):
        names = sorted({p["device"] for phase in phases for p in phase["cells"] if p["whole"]})
        out.print(plain(f"{', '.join(names)} times segments as a whole, not their ops"))
    if any(phase["clock"] == "modelled" for phase in phases):
        out.print(plain("modelled: by the device's own model, not measured"))
    out.print(plain("error: how far the prediction lies above (+) or below (-) the time beside it"))


def error(value: float | None) -> Text:
    """A share as a signed percentage, coloured by how large it is."""
    if value is None:
        return Text("")
    style = "green" if abs(value) <= 0.1 else "yellow" if abs(value) <= 0.3 else "red"
    return Text(f"{round(100 * value):+d}%", style)  # rounded first, or little below zero would be -0%


def bar(share: float) -> str:
    """A bar of up to `_BAR` cells, in eighths."""
    eighths = round(share * _BAR * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _clock(phase: Record) -> str:
    """What heads the times of a phase."""
    return "device time" if phase["clock"] == "mixed" else str(phase["clock"])


def _step(phase: Record, seconds: float) -> str:
    """Seconds of a whole phase as those of one step."""
    return duration(seconds / phase["n_steps"])


def _tps(tps: float | None) -> str:
    return "? tokens/s" if tps is None else f"{tps:.4g} tokens/s"


def _rate(rate: float | None, of_roof: float | None, unit: str) -> str:
    if not rate:
        return ""
    share = "" if of_roof is None else f" {100 * of_roof:3.0f}%"
    return f"{_decimal(rate)}{unit}{share}"


def _decimal(value: float) -> str:
    """Three figures and a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5 or prefix == "T":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError("the last prefix takes all")
