"""Where tables are printed, and text that a file or a plugin chose made safe for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def console(*, to_stderr: bool = False) -> Console:
    """stdout, or stderr. Where it is no terminal nothing is cut to a width that nobody has."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(stderr=to_stderr) if stream.isatty() else Console(stderr=to_stderr, width=10_000)


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table; the columns of `numbers` come last and are aligned to the right."""
    made = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for title in numbers:
        made.add_column(title, justify="right")
    return made


def plain(value: object, style: str = "") -> Text:
    """A text without markup, with control characters escaped: a file's metadata must not steer the terminal."""
    text = str(value)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text(shown, style)


def size(n_bytes: float) -> str:
    """Bytes in the decimal unit that gives 1 to 999."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in the unit that gives 1 to 999."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("the last unit takes all")
