"""The page of `hetrun profile --html`: one file that opens anywhere, without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hetrun.run.build import Runtime
from hetrun.run.timeline import Slice, slices
from hetrun.run.trace import StepRecord

SHOWN_STEPS = 24
"""Steps that the page's time line shows; all of them are in a trace file."""

_CATEGORIES = ("step", "between", "run", "op", "copy")


def profile_page(record: Mapping[str, Any], steps: Sequence[StepRecord], runtime: Runtime) -> str:
    """The page's text.   record: as --json prints it; the page shows its figures and has no others."""
    shown = steps[:SHOWN_STEPS]
    data = {"profile": record, "timeline": _timeline(list(slices(shown, runtime))), "n_steps": len(steps)}
    script = _part("profile_timeline.js") + _part("profile_page.js")
    page = _part("profile_page.html").replace("/*STYLE*/", _part("profile_page.css")).replace("/*SCRIPT*/", script)
    # Within a script element "<" could end it; JSON takes the escape in every string, where alone it stands.
    return page.replace("/*DATA*/", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _timeline(found: Sequence[Slice]) -> dict[str, Any]:
    """Slices as short rows: [lane, category, name, kind, began, seconds, predicted, layer], the first four as indices;
    times in microseconds.
    """
    lanes: dict[tuple[str, str, str], int] = {}
    names: dict[str, int] = {}
    kinds: dict[str, int] = {}
    rows = []
    for s in found:
        rows.append(
            [
                lanes.setdefault((s.clock, s.lane, s.track), len(lanes)),
                _CATEGORIES.index(s.category),
                names.setdefault(s.name, len(names)),
                kinds.setdefault(_kind(s), len(kinds)),
                round(s.began_s * 1e6, 2),
                round(s.seconds * 1e6, 2),
                s.args.get("predicted_us"),
                s.args.get("layer"),
            ]
        )
    return {
        "categories": _CATEGORIES,
        "lanes": [{"clock": clock, "lane": lane, "track": track} for clock, lane, track in lanes],
        "names": list(names),
        "kinds": list(kinds),
        "slices": rows,
    }


def _kind(s: Slice) -> str:
    """The kind of op that a slice is drawn as: of fused ops the one that reads weights or the cache."""
    kinds = s.args.get("kinds", [])
    return next((k for k in ("matmul", "attention") if k in kinds), kinds[0] if kinds else s.category)
