"""The tables of `hetrun plan`: a map of layers by device, totals, and the explanation of one op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hetrun.graph.graph import Graph
from hetrun.ops import Op
from hetrun.plan.place import Request
from hetrun.plan.plan import PHASES, Assignment, Phase, Plan
from hetrun.view.console import console, duration, plain, size, table


def print_plan(plan: Plan, graph: Graph, request: Request, model: str) -> None:
    out = console()
    out.print(plain(f"{model}: {len(graph.ops)} ops on {', '.join(plan.used_devices)}", "bold"))
    alike = [a.device for a in plan.prefill] == [a.device for a in plan.decode]
    for phase in PHASES[:1] if alike else PHASES:
        shown = table("layers" if alike else f"layers, {phase}", *(str(plain(d)) for d in plan.used_devices))
        for layers, cells in _layer_rows(plan.assignments(phase), graph, plan.used_devices):
            shown.add_row(layers, *map(plain, cells))
        out.print(shown)

    shown = table("predicted", numbers=("a step", "tokens/s", "in ops", "launches", "copies", "segments"))
    for phase in PHASES:
        cost = plan.predicted[phase]
        n_tokens = request.workload(phase).n_tokens
        name = f"prefill of {n_tokens}" if phase == "prefill" else "decode"
        rate = f"{n_tokens / cost.total_s:.4g}" if cost.total_s else "?"
        times = (duration(s) for s in (cost.ops_s, cost.launch_s, cost.copy_s))
        shown.add_row(name, duration(cost.total_s), rate, *times, str(cost.n_segments))
    out.print(shown)
    prefill_s, decode_s = (plan.predicted[p].total_s for p in PHASES)
    total_s = request.total_seconds(prefill_s, decode_s)
    out.print(plain(f"{request.prompt_tokens} tokens in, {request.gen_tokens} out: {duration(total_s)}"))
    out.print(plain("memory: " + ", ".join(f"{space} {size(n)}" for space, n in plan.memory.items())))
    if plan.gap:
        out.print(plain(f"memory is tight: no plan that fits is predicted more than {100 * plan.gap:.1f}% faster"))
    # A prediction is never to be taken for a measurement of this plan.
    out.print(plain(f"predicted, not measured; costs are {'; '.join(plan.basis)}"))


def print_explanation(op: Op, assignments: Mapping[Phase, Assignment]) -> None:
    out = console()
    out.print(plain(f"{op.name} ({op.kind})", "bold"))
    for phase, assignment in assignments.items():
        out.print(plain(f"{phase}: {assignment.device}, {assignment.reason}"))
        shown = table("device", "predicted", "basis or refusal")
        for c in sorted(assignment.candidates, key=lambda c: (c.seconds is None, c.seconds or 0.0)):
            cost = "refuses" if c.seconds is None else duration(c.seconds)
            mark = " (chosen)" if c.device == assignment.device else ""
            shown.add_row(plain(c.device + mark), cost, plain(c.refusal or c.basis or ""))
        out.print(shown)


def _layer_rows(
    assignments: Sequence[Assignment], graph: Graph, devices: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """(layers, what each device runs there); neighbouring layers that are alike share a row."""
    rows: list[tuple[str, str, list[str]]] = []
    for key, placed in _by_layer(assignments, graph):
        cells = [_cell([name for name, d in placed if d == device], len(placed)) for device in devices]
        if rows and key.isdigit() and rows[-1][1].isdigit() and rows[-1][2] == cells:
            rows[-1] = (rows[-1][0], key, cells)
        else:
            rows.append((key, key, cells))
    for first, last, cells in rows:
        yield (first if first == last else f"{first} to {last}"), cells


def _by_layer(assignments: Sequence[Assignment], graph: Graph) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(layer or "before" / "after", [(name of the op in the layer, device)]), in the order of the graph."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for op, assignment in zip(graph.ops, assignments, strict=True):
        if op.layer is None:
            key, name = ("after" if any(k.isdigit() for k in groups) else "before"), op.name
        else:
            key, name = str(op.layer), op.name.removeprefix(f"blk.{op.layer}.")
        groups.setdefault(key, []).append((name, assignment.device))
    yield from groups.items()


def _cell(names: Sequence[str], n_ops: int) -> str:
    if len(names) == n_ops and n_ops > 4:
        return f"all {n_ops} ops"
    return ", ".join(names)
