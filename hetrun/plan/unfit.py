"""Why there is no placement, and the least that would make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hetrun.errors import PlacementError
from hetrun.ops import Op
from hetrun.plan.fit import STEP, Fit, Misfit, Problem, fit
from hetrun.plan.pack import pack
from hetrun.plan.rules import Pin, Rule, allowed_devices, resolve

if TYPE_CHECKING:
    from hetrun.plan.place import Task


def unfit_error(task: Task, misfit: Misfit) -> PlacementError:
    """Names the limits that are exceeded, by how much, and the rule whose removal makes a placement."""
    over = {name: (n, task.problem.limits.get(name, 0)) for name, n in misfit.used.items()}
    over = {name: (n, limit) for name, (n, limit) in over.items() if n > limit}
    if STEP in over:
        n_tokens = task.problem.tables["decode"].workload.n_tokens
        fastest_s, limit_s = over[STEP]
        bound = "the fastest plan" if misfit.proven else "the fastest plan found"
        message = (
            f"no plan for these devices decodes {n_tokens / limit_s:.4g} tokens/s: {bound} "
            f"is predicted {n_tokens / fastest_s:.4g}"
        )
        remedy = "ask for a lower --target-tps"
        fewer = "a smaller quantisation, a faster device"
    else:
        kv = sum(kv.nbytes for kv in task.problem.tables["decode"].graph.kv_specs.values())
        needs = "needs at least" if misfit.proven else "needs, in the smallest placement found,"
        message = "; ".join(
            f"{space} memory holds {_amount(limit)}, and the plan {needs} {_amount(n)}"
            for space, (n, limit) in over.items()
        )
        message += f" (the KV cache takes {_amount(kv)})"
        remedy = f"{' and '.join(f'{_amount(n - limit)} more of {s}' for s, (n, limit) in over.items())} would do"
        fewer = "a shorter --ctx, a smaller quantisation, more devices"
    rules = _culprits(task)
    if rules:
        message += f"; {_what_is_ruled(task, rules)}"
        remedy = f"drop {' and '.join(map(str, rules))}, or {remedy}"
    return PlacementError(message, remedy=f"{remedy}, or {fewer}")


def _culprits(task: Task) -> Sequence[Rule]:
    """The rule without which there is a placement; all of them where no single one is enough; none where that does
    not help."""
    if not task.rules:
        return ()
    for rule in reversed(task.rules):
        if _fits_with(task, [r for r in task.rules if r is not rule]):
            return (rule,)
    return tuple(task.rules) if _fits_with(task, ()) else ()


def _fits_with(task: Task, rules: Sequence[Rule]) -> bool:
    problem = task.problem
    by_op = resolve(problem.tables["decode"].graph, task.devices, rules)
    other: Problem = replace(problem, allowed=allowed_devices(problem.tables, by_op))
    if STEP in problem.limits:
        return isinstance(fit(other), Fit)
    packing = pack(other.tables, other.allowed, other.limits)
    return all(n <= other.limits.get(space, 0) for space, n in packing.used.items())


def _what_is_ruled(task: Task, rules: Sequence[Rule]) -> str:
    """In words: blk.0.ffn_up and 5 more are pinned to card:0."""
    parts = []
    for rule in rules:
        if isinstance(rule, Pin):
            names = [op.name for op, r in zip(_ops(task), task.by_op, strict=True) if r.pin is rule]
        else:
            names = [op.name for op, r in zip(_ops(task), task.by_op, strict=True) if rule in r.forbidden.values()]
        if names:
            many = f" and {len(names) - 1} more" if len(names) > 1 else ""
            verb = "are" if many else "is"
            what = "pinned to" if isinstance(rule, Pin) else "kept off"
            parts.append(f"{names[0]}{many} {verb} {what} {rule.device}")
    return ", ".join(parts) or "rules narrow the choice"


def _ops(task: Task) -> Sequence[Op]:
    return task.problem.tables["decode"].graph.ops


def _amount(nbytes: float) -> str:
    if nbytes < 1e5:
        return f"{nbytes:.0f} bytes"
    return f"{nbytes / 1e6:.1f} MB" if nbytes < 1e8 else f"{nbytes / 1e6:.0f} MB"
