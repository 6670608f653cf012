"""The table of `hetrun bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetrun.view.console import console, plain, table


def print_bench(records: Sequence[Mapping[str, Any]]) -> None:
    rates = [f"{name} tokens/s" for name in ("median", "min", "max")]
    shown = table("model", "device", "test", numbers=rates)
    for r in records:
        numbers = (f"{r[key]:.2f}" for key in ("tps_median", "tps_min", "tps_max"))
        shown.add_row(plain(r["model"]), plain(r["device"]), r["test"], *numbers)
    console().print(shown)
