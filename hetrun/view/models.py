"""The table of `hetrun pull --list`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetrun.view.console import console, plain, size, table


def print_models(records: Sequence[Mapping[str, Any]]) -> None:
    shown = table("name", "size", "cached", "description", "license")
    for r in records:
        n_bytes = size(r["size_bytes"]) if r["size_bytes"] else "?"
        cached = "yes" if r["cached"] else ""
        shown.add_row(plain(r["name"]), n_bytes, cached, plain(r["description"]), plain(r["license"]))
    console().print(shown)
