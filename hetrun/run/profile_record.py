"""A profile as plain data: what --json prints, and what the tables and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetrun.run.profile import Cell, Copies, DeviceTotal, Entry, PhaseProfile, Profile, Roof

Record = dict[str, Any]


def profile_record(profile: Profile) -> Record:
    """Seconds are sums over all steps of a phase; a phase that was not run is null. docs/profiling.md has the keys."""
    roofs = {roof.info.id: roof for roof in profile.roofs}
    phases: Record = {"prefill": None, "decode": None}
    for phase in profile.phases:
        phases[phase.phase] = _phase(phase, roofs)
    return {"devices": [_roof(r) for r in profile.roofs], **phases}


def _roof(roof: Roof) -> Record:
    return {
        "device": roof.info.id,
        "description": roof.info.description,
        "backing": roof.info.backing,
        "flops_per_s": roof.flops_per_s,
        "bytes_per_s": roof.bytes_per_s,
    }


def _phase(phase: PhaseProfile, roofs: Mapping[str, Roof]) -> Record:
    return {
        "n_steps": phase.n_steps,
        "n_tokens": phase.n_tokens,
        "clock": phase.clock,
        "measured_s": phase.time_s,
        "predicted_s": phase.predicted_s,
        "error": _error(phase.time_s, phase.predicted_s),
        "tps": _rate(phase.n_tokens, phase.time_s),
        "predicted_tps": _rate(phase.n_tokens, phase.predicted_s),
        "wall_s": phase.wall_s,
        "device_time_s": phase.device_time_s,
        "between_s": phase.between_s,
        "devices": [_device(d, roofs[d.device]) for d in phase.devices],
        "kinds": [_entry(e, roofs[e.device]) for e in phase.kinds],
        "layers": [_entry(e, roofs[e.device]) for e in phase.layers],
        "parts": [_entry(e, roofs[e.device]) for e in phase.parts],
        "cells": [_cell(c, roofs[c.device]) for c in phase.cells],
        "copies": [_copies(c) for c in phase.copies],
    }


def _entry(entry: Entry, roof: Roof) -> Record:
    flops_per_s = _rate(entry.flops, entry.measured_s)
    bytes_per_s = _rate(entry.nbytes, entry.measured_s)
    return {
        "name": entry.name,
        "device": entry.device,
        "measured_s": entry.measured_s,
        "predicted_s": entry.predicted_s,
        "error": _error(entry.measured_s, entry.predicted_s),
        "flops": entry.flops,
        "bytes": entry.nbytes,
        "flops_per_s": flops_per_s,
        "bytes_per_s": bytes_per_s,
        "flops_of_roof": _share(flops_per_s, roof.flops_per_s),
        "bytes_of_roof": _share(bytes_per_s, roof.bytes_per_s),
        "divided": entry.divided,
    }


def _cell(cell: Cell, roof: Roof) -> Record:
    return {**_entry(cell, roof), "ops": list(cell.ops), "layer": cell.layer, "whole": cell.whole}


def _device(device: DeviceTotal, roof: Roof) -> Record:
    return {
        **_entry(device.parts, roof),
        "ops_s": device.parts.measured_s,
        "ops_predicted_s": device.parts.predicted_s,
        "measured_s": device.busy_s,
        "predicted_s": device.predicted_s,
        "error": _error(device.busy_s, device.predicted_s),
        "launches": device.n_runs,
        "launch_s": device.launch_s,
        "launch_predicted_s": device.launch_predicted_s,
        "idle_s": device.idle_s,
        "basis": list(device.basis),
        "predicted_basis": list(device.predicted_basis),
    }


def _copies(copies: Copies) -> Record:
    return {
        "source": copies.source,
        "target": copies.target,
        "copies": copies.n,
        "bytes": copies.nbytes,
        "measured_s": copies.measured_s,
        "predicted_s": copies.predicted_s,
        "error": _error(copies.measured_s, copies.predicted_s),
        "bytes_per_s": _rate(copies.nbytes, copies.measured_s),
    }


def _error(measured: float, predicted: float) -> float | None:
    """How far the prediction lies above what was measured, as a share of that."""
    return predicted / measured - 1.0 if measured > 0 else None


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None


def _share(rate: float | None, roof: float | None) -> float | None:
    return rate / roof if rate is not None and roof else None
