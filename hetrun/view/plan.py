"""The tables of `hetrun plan`: a map of layers by device, totals, and the explanation of one op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from hetrun.graph.graph import Graph
from hetrun.plan.explain import Explanation
from hetrun.plan.place import Task, capacities
from hetrun.plan.plan import PHASES, Assignment, Phase, PhaseCost, Plan
from hetrun.view.console import console, duration, plain, size, table

_BAR = 12  # characters of a full bar
_NAMES = 4  # ops that a cell names; of more it tells the kinds
_BASIS_KINDS = ("measured", "simulated", "analytic")


def print_plan(task: Task, plan: Plan, model: str) -> None:
    """The map, then what follows from it: times, energy, memory, and each device alone."""
    out = console()
    graph, request = task.problem.tables["decode"].graph, task.request
    least = {"latency": "time of the answer", "ttft": "time to the first token", "energy": "energy"}[request.objective]
    out.print(plain(f"{model}: {len(graph.ops)} ops on {', '.join(plan.used_devices)}, for the least {least}", "bold"))
    alike = [a.device for a in plan.prefill] == [a.device for a in plan.decode]
    for phase in PHASES[1:] if alike else PHASES:
        out.print(_map(plan, graph, phase, alike))

    kind = f"{basis_kind(plan.basis)} costs"
    numbers = ("a step", "tokens/s", "in ops", "launches", "copies", "joules", "segments")
    shown = table("predicted", "basis", numbers=numbers)
    for phase in PHASES:
        n_tokens = request.workload(phase).n_tokens
        steps = f" in {request.n_prefill_steps} steps" if request.n_prefill_steps > 1 else ""
        name = f"prefill of {request.prompt_tokens}{steps}" if phase == "prefill" else "decode"
        shown.add_row(name, kind, *_cost_cells(plan.predicted[phase], n_tokens))
    out.print(shown)
    _print_memory(task, plan)
    _print_alone(task, plan)
    prefill_s, decode_s = (plan.predicted[p].total_s for p in PHASES)
    total_s = request.total_seconds(prefill_s, decode_s)
    out.print(plain(f"{request.prompt_tokens} tokens in, {request.gen_tokens} out: {duration(total_s)}"))
    if plan.gap > 1e-6:
        more = "; --solver milp may close that" if plan.gap > 1e-4 else ""
        out.print(
            plain(f"limits are tight: no plan that keeps to them is predicted more than {plan.gap:.2%} better{more}")
        )
    # A prediction is never to be taken for a measurement of this plan.
    out.print(plain(f"predicted, not measured; costs are {'; '.join(plan.basis)}"))


def print_placement(plan: Plan, graph: Graph, model: str, *, to_stderr: bool = False) -> None:
    """The map of a plan that is in use, on stdout or stderr, and what it goes by."""
    out = console(to_stderr=to_stderr)
    out.print(plain(f"{model}: {len(graph.ops)} ops on {', '.join(plan.used_devices)}", "bold"))
    alike = [a.device for a in plan.prefill] == [a.device for a in plan.decode]
    for phase in PHASES[1:] if alike else PHASES:
        out.print(_map(plan, graph, phase, alike))
    out.print(plain(f"predicted, not measured; costs are {'; '.join(plan.basis)}"))


def print_explanation(explanation: Explanation, plan: Plan, index: int) -> None:
    """All candidates for one op in both phases: cost, refusal, and what a step would take more."""
    out = console()
    op = explanation.task.problem.tables["decode"].graph.ops[index]
    out.print(plain(f"{op.name} ({op.kind})", "bold"))
    for phase in PHASES:
        assignment = plan.assignments(phase)[index]
        workload = explanation.task.problem.tables[phase].workload
        n_bytes = op.weight_bytes(workload) + op.activation_bytes(workload) + op.kv_bytes(workload)
        out.print(plain(f"{phase}: {assignment.device}, {assignment.reason}"))
        out.print(plain(f"a step is {_count(op.flops(workload))}FLOP and reads or writes {size(n_bytes)}"))
        second = assignment.runner_up
        shown = table("device", "predicted", "the step", "basis or refusal")
        for c in sorted(assignment.candidates, key=lambda c: (c.seconds is None, c.seconds or 0.0)):
            mark = " (chosen)" if c.device == assignment.device else ""
            mark = " (runner-up)" if second and c.device == second.device else mark
            time = "refuses" if c.seconds is None else duration(c.seconds)
            more = (
                "" if c.seconds is None or c.device == assignment.device else _more(explanation, phase, index, c.device)
            )
            shown.add_row(plain(c.device + mark), time, more, plain(c.refusal or c.basis or ""))
        out.print(shown)
        for line in explanation.reasons(phase, index):
            out.print(plain(f"  {line}"))


def print_outcomes(target_tps: float, n_boards: int, why: str | None, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Whether the rate is reached; if not, why, and what would reach it.   n_boards: those that do together."""
    out = console()
    if why is None:
        out.print(plain(f"the target of {target_tps:g} tokens/s is reached, as predicted"))
        return
    out.print(plain(why))
    if not outcomes:
        out.print(plain(f"{target_tps:g} tokens/s: no shipped system, device, type or context reaches it, nor any two"))
    else:
        shown = table(f"reaches {target_tps:g} tokens/s", "basis", numbers=("tokens/s", "prefill", "memory"))
        for o in outcomes:
            memory = "?" if o["n_bytes"] is None else size(o["n_bytes"])
            cells = (f"{o['decode_tps']:.4g}", duration(o["prefill_s"]), memory)
            shown.add_row(plain(o["label"]), f"{basis_kind(o['basis'])} costs", *cells)
        out.print(shown)
    together = f"{n_boards} boards like this, each with the whole model, reach it together over {n_boards} sequences"
    out.print(plain(f"one sequence gets no faster by more boards of a kind, as its ops run in turn; {together}"))


def print_verified(checked: Mapping[str, Any]) -> None:
    """Predicted beside measured, for the plan and for the best single device."""
    out = console()
    shown = table("run here", "of", numbers=("predicted", "measured", "error"))
    for run in checked["runs"]:
        name = "the plan" if run["run"] == "plan" else f"{run['run']} alone"
        for key, label in (("prefill_s", "prefill"), ("decode_s_per_token", "decode, a token"), ("answer_s", "answer")):
            times = (duration(run["predicted"][key]), duration(run["measured"][key]))
            shown.add_row(plain(name), label, *times, f"{run['error'].get(key, 0.0):+.1%}")
            name = ""
    out.print(shown)
    plan, *single = checked["runs"]
    if single:
        ratio = single[0]["measured"]["answer_s"] / plan["measured"]["answer_s"]
        verdict = f"{ratio:.2f} x as fast as" if ratio >= 1 else f"{1 / ratio:.2f} x slower than"
        out.print(plain(f"measured, the plan is {verdict} {single[0]['run']} alone"))
    elif checked["best_single_device"] is None:
        out.print(plain("no single device runs all of the model, so there is none to compare with"))
    else:
        out.print(plain("the plan is the best single device"))
    out.print(plain(f"medians of {checked['repetitions']} repetitions each"))


def basis_kind(bases: Sequence[str]) -> str:
    """The weakest kind among the bases of a number: what the number may be called."""
    kinds = {b.partition(":")[0] for b in bases}
    return next((kind for kind in reversed(_BASIS_KINDS) if kind in kinds), "?")


@dataclass(frozen=True)
class _Row:
    """Neighbouring layers that are alike.   seconds: of all their ops."""

    first: str
    last: str
    cells: tuple[str, ...]
    seconds: float

    @property
    def title(self) -> str:
        return self.first if self.first == self.last else f"{self.first} to {self.last}"


def _map(plan: Plan, graph: Graph, phase: Phase, alike: bool) -> Table:
    assignments = plan.assignments(phase)
    devices = plan.used_devices
    rows = list(_rows(assignments, graph, devices))
    total_s = sum(row.seconds for row in rows)
    names = (str(plain(d)) for d in devices)
    shown = table("layers" if alike else f"layers, {phase}", *names, f"{phase}, in ops")
    for i, row in enumerate(rows):
        time = f"{duration(row.seconds):>8} {_bar(row.seconds, total_s)}"
        shown.add_row(row.title, *map(plain, row.cells), time, end_section=i == len(rows) - 1)
    totals = []
    for device in devices:
        mine = [a for a in assignments if a.device == device]
        seconds = sum(a.chosen.seconds or 0.0 for a in mine if a.chosen)
        totals.append(f"{len(mine)} ops, {duration(seconds)}, {seconds / total_s if total_s else 0.0:.0%}")
    shown.add_row("all", *map(plain, totals), f"{duration(total_s):>8}")
    return shown


def _rows(assignments: Sequence[Assignment], graph: Graph, devices: Sequence[str]) -> Iterator[_Row]:
    row: _Row | None = None
    for key, placed in _by_layer(assignments, graph):
        cells = tuple(_cell([p for p in placed if p[2] == device], len(placed)) for device in devices)
        seconds = sum(s for *_, s in placed)
        if row and key.isdigit() and row.last.isdigit() and row.cells == cells:
            row = _Row(row.first, key, cells, row.seconds + seconds)
        else:
            if row:
                yield row
            row = _Row(key, key, cells, seconds)
    if row:
        yield row


# (name in the layer, kind, device, seconds)
_Placed = tuple[str, str, str, float]


def _by_layer(assignments: Sequence[Assignment], graph: Graph) -> Iterator[tuple[str, list[_Placed]]]:
    """(layer or "before" / "after", its ops), in the order of the graph."""
    groups: dict[str, list[_Placed]] = {}
    for op, assignment in zip(graph.ops, assignments, strict=True):
        if op.layer is None:
            key, name = ("after" if any(k.isdigit() for k in groups) else "before"), op.name
        else:
            key, name = str(op.layer), op.name.removeprefix(f"blk.{op.layer}.")
        seconds = (assignment.chosen.seconds if assignment.chosen else None) or 0.0
        groups.setdefault(key, []).append((name, op.kind, assignment.device, seconds))
    yield from groups.items()


def _cell(placed: Sequence[_Placed], n_ops: int) -> str:
    if len(placed) == n_ops and n_ops > _NAMES:
        return f"all {n_ops} ops"
    if len(placed) <= _NAMES:
        return ", ".join(name for name, *_ in placed)
    kinds = Counter(kind for _, kind, *_ in placed)
    return f"{len(placed)} ops: " + ", ".join(f"{n} {kind}" if n > 1 else kind for kind, n in kinds.items())


def _cost_cells(cost: PhaseCost, n_tokens: int) -> tuple[str, ...]:
    rate = f"{n_tokens / cost.total_s:.4g}" if cost.total_s else "?"
    times = (duration(s) for s in (cost.ops_s, cost.launch_s, cost.copy_s))
    joules = "unknown" if cost.joules is None else f"{cost.joules:.3g}"
    return duration(cost.total_s), rate, *times, joules, str(cost.n_segments)


def _print_memory(task: Task, plan: Plan) -> None:
    limits = capacities(task.devices)
    shown = table("memory", numbers=("used", "of"))
    shown.add_column("")
    for space, n in plan.memory.items():
        shown.add_row(plain(space), size(n), size(limits.get(space, 0)), _bar(n, limits.get(space, 0)))
    console().print(shown)


def _print_alone(task: Task, plan: Plan) -> None:
    """Each device alone beside the plan, where there is more than one."""
    if len(task.devices) < 2:
        return
    request = task.request
    shown = table("alone", numbers=("prefill", "decode, tokens/s", "answer", "the plan is"))
    plan_s = request.total_seconds(*(plan.predicted[p].total_s for p in PHASES))
    for device in task.devices:
        cost = task.alone(device.info.id)
        if cost is None:
            shown.add_row(plain(device.info.id), "does not run all of it", "", "", "")
            continue
        prefill_s, decode_s = (cost[p].total_s for p in PHASES)
        total_s = request.total_seconds(prefill_s, decode_s)
        ratio = total_s / plan_s if plan_s else 1.0
        gain = "the same" if abs(ratio - 1) < 0.005 else f"{ratio:.2f} x as fast"
        rate = f"{request.n_seqs / decode_s:.4g}" if decode_s else "?"
        shown.add_row(plain(device.info.id), duration(prefill_s), rate, duration(total_s), gain)
    console().print(shown)


def _more(explanation: Explanation, phase: Phase, index: int, device: str) -> str:
    """What the step would take more with the op there."""
    if device not in explanation.task.problem.allowed[index]:
        return ""
    moved = explanation.moved(phase, index, device).total_s
    return f"{'-' if moved < 0 else '+'}{duration(abs(moved))}"


def _bar(part: float, whole: float) -> str:
    """A bar of eighths of a character; anything above 0 is seen."""
    eighths = round(8 * _BAR * min(1.0, part / whole)) if whole > 0 else 0
    eighths = max(eighths, 1 if part > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _count(n: float) -> str:
    for unit in ("", "k", "M", "G"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} T"
