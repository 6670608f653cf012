"""The figures of benchmarks/peer.py as a table, and docs/performance.md."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import hetrun
from hetrun_cpu import native
from hetrun_cpu.host import processor_name

if TYPE_CHECKING:
    from peer import Row

# What the project set out for: tokens/s over llama.cpp's, by file and test.
TARGETS = {
    "SmolLM2-135M_Q4_1": {"prefill": 8.0, "decode": 3.0},
    "Q4_0": {"prefill": 2.2, "decode": 1.5},
    "Q4_K_M": {"prefill": 2.4, "decode": 1.2},
    "Q3_K_S": {"prefill": 1.9, "decode": 2.0},
    "Q8_0": {"prefill": 3.8, "decode": 1.3},
}
BANDWIDTH_TARGET = 0.85  # of the measured read rate, decode of the TinyLlama-shaped files

# Beyond this share of the processor in other hands, no verdict: threads that wait for each other suffer most.
DISTURBED = 0.05

HEADERS = (
    "file", "test", "hetrun", "llama.cpp", "ratio", "min", "max", "target", "read rate, GB/s", "used of it",
    "ratio at it", "others",
)  # fmt: skip


def machine(threads: int, peer: str) -> dict[str, object]:
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "instruction_set": os.environ.get("HETRUN_CPU_ISA") or native.isa_names()[-1],
        "threads": threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "hetrun": hetrun.__version__,
        "peer": peer,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def cells(row: Row) -> tuple[str, ...]:
    ratio = statistics.median(row.ratios)
    target = TARGETS.get(row.file, {}).get(row.test)
    fraction, limit = row.bandwidth_fraction, row.ratio_at_read_rate
    verdict = "disturbed" if row.others > DISTURBED else "met" if target and ratio >= target else "not met"
    return (
        row.file,
        f"{row.test} {row.n_tokens}",
        f"{statistics.median(row.ours_tps):.1f}",
        f"{statistics.median(row.peer_tps):.1f}",
        f"{ratio:.2f}",
        f"{min(row.ratios):.2f}",
        f"{max(row.ratios):.2f}",
        "" if target is None else f"{target:.1f} {verdict}",
        f"{statistics.median(row.read_bytes_per_s) / 1e9:.1f}",
        "" if fraction is None else f"{fraction:.0%}",
        "" if limit is None else f"{limit:.2f}",
        f"{row.others:.0%}",
    )


def text_row(row: Row) -> str:
    file, test, ours, peer, ratio, low, high, target, read, used, limit, others = cells(row)
    used = f"   reads {used} of {read} GB/s ({limit} at all of it)" if used else ""
    target = f"   target {target}" if target else ""
    return (
        f"{file:20} {test:12} {ours:>8} / {peer:>8} tokens/s = {ratio} ({low}-{high}){target}{used}   others {others}"
    )


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns, readable in a terminal too."""
    lines = [HEADERS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADERS))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def page(old: str, rows: Sequence[Row], machine: dict[str, object], part: str) -> str:
    """The page with that part replaced; text around it is kept. A page without the marks gets them at its end."""
    begin, end = f"<!-- {part}: written by benchmarks/peer.py -->", f"<!-- end of {part} -->"
    before, mark, rest = old.partition(begin)
    after = rest.partition(end)[2] if mark else ""
    if not mark:
        before = before.rstrip("\n") + "\n\n" if before else "# Performance\n\n"
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    repetitions = min(len(row.ratios) for row in rows)
    figures = (
        f"Machine and versions: {facts}.\nMedians of {repetitions} alternated repetitions, tokens/s; ratio is"
        f" the median of the repetitions' own ratios, with the lowest and the highest.\n\n{table(rows)}"
    )
    return f"{before}{begin}\n\n{figures}\n\n{end}{after or chr(10)}"
