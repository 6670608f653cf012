"""The table and the plot of `hetrun explore`."""

from __future__ import annotations

from collections.abc import Sequence

from hetrun.device import DeviceInfo
from hetrun.plan.explore import Explored
from hetrun.view.console import console, plain, size, table

_FASTEST = 12  # designs shown beside the front
_WIDTH, _HEIGHT = 64, 16


def print_explored(model: str, n_ctx: int, host: DeviceInfo, explored: Sequence[Explored], show_all: bool) -> None:
    """explored: fastest first."""
    out = console()
    shown = [e for i, e in enumerate(explored) if show_all or e.front or i < _FASTEST]
    if not explored:
        return
    first = explored[0].point
    out.print(
        plain(
            f"{model}, one token behind {n_ctx}, beside {host.id} ({host.description}); "
            f"{size(max(e.memory_bytes for e in explored))} of weights and cache, which count as resident"
        )
    )
    names = (*first.parameters, "s/token", "s/token of prefill", "J/token", *first.resources)
    lines = table("", "fits", numbers=names)
    for e in shown:
        lines.add_row(
            "*" if e.front else "",
            "yes" if e.point.fits else "no",
            *(str(v) for v in e.point.parameters.values()),
            f"{e.decode_s_per_token:.4f}",
            f"{e.prefill_s_per_token:.4f}",
            "-" if e.joules_per_token is None else f"{e.joules_per_token:.3f}",
            *(f"{r.share:.0%}" for r in e.point.resources.values()),
        )
    out.print(lines)
    if len(shown) < len(explored):
        out.print(f"{len(shown)} of {len(explored)} designs: the fastest and the front (*); --all shows every one")
    out.print()
    for line in plot(explored):
        out.print(plain(line))
    for basis in sorted({b for e in shown for b in e.basis} | {r.basis for r in first.resources.values()}):
        out.print(plain(f"basis: {basis}"))


def plot(explored: Sequence[Explored]) -> list[str]:
    """Seconds a token to the right, the share of the fullest resource upwards. `*` front, `o` fits, `x` does not."""
    xs = [e.decode_s_per_token for e in explored]
    ys = [e.fullest for e in explored]
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for e, x, y in sorted(zip(explored, xs, ys, strict=True), key=lambda item: (item[0].front, item[0].point.fits)):
        column = _place(x, min(xs), max(xs), _WIDTH)
        row = _HEIGHT - 1 - _place(y, min(ys), max(ys), _HEIGHT)
        grid[row][column] = "*" if e.front else "o" if e.point.fits else "x"
    marks = {0: f"{max(ys):.0%}", _HEIGHT - 1: f"{min(ys):.0%}"}
    lines = ["fullest resource (* front, o fits, x does not)"]
    lines += [f"{marks.get(i, ''):>5} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    lines.append(f"{'':>5} +{'-' * _WIDTH}")
    left, right = f"{min(xs):.3f}", f"{max(xs):.3f} s/token"
    return [*lines, f"{'':>7}{left}{right:>{_WIDTH - len(left)}}"]


def _place(value: float, low: float, high: float, cells: int) -> int:
    return 0 if high == low else min(cells - 1, int((value - low) / (high - low) * cells))
