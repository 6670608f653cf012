"""What `hetrun plan --json` prints."""

from __future__ import annotations

from typing import Any

from hetrun.plan.explain import Explanation
from hetrun.plan.place import capacities
from hetrun.plan.plan import PHASES, Assignment, Phase, PhaseCost, Plan
from hetrun.plan.segment import runs


def plan_record(explanation: Explanation, plan: Plan, model: str) -> dict[str, Any]:
    """The whole plan; docs/cli.md tells its keys."""
    task = explanation.task
    request, graph = task.request, task.problem.tables["decode"].graph
    assignment, segments = [], []
    for phase in PHASES:
        for i, op in enumerate(graph.ops):
            entry = {"phase": phase, "op": op.name, "kind": op.kind, "layer": op.layer}
            assignment.append(entry | _assignment(explanation, plan, phase, i))
        for device, start, end in runs([a.device for a in plan.assignments(phase)]):
            names = {"first": graph.ops[start].name, "last": graph.ops[end - 1].name}
            segments.append({"phase": phase, "device": device, "ops": end - start, **names})
    alone = {d.info.id: task.alone(d.info.id) for d in task.devices}
    memory_limits = capacities(task.devices)
    return {
        "model": model,
        "fingerprint": plan.model,
        "devices": list(plan.devices),
        "used_devices": list(plan.used_devices),
        "prompt_tokens": request.prompt_tokens,
        "gen_tokens": request.gen_tokens,
        "objective": request.objective,
        "predicted": {
            **_predicted(explanation, plan.predicted["prefill"], plan.predicted["decode"]),
            **{p: {**vars(plan.predicted[p]), "total_s": plan.predicted[p].total_s} for p in PHASES},
            "basis": list(plan.basis),
        },
        "alone": {
            device: None if cost is None else _predicted(explanation, cost["prefill"], cost["decode"])
            for device, cost in alone.items()
        },
        "memory": dict(plan.memory),
        "capacity": {space: memory_limits[space] for space in plan.memory},
        "gap": plan.gap,
        "segments": segments,
        "assignment": assignment,
    }


def op_record(explanation: Explanation, plan: Plan, index: int) -> dict[str, Any]:
    """One op in both phases, with all candidates."""
    op = explanation.task.problem.tables["decode"].graph.ops[index]
    record: dict[str, Any] = {"op": op.name, "kind": op.kind, "layer": op.layer}
    for phase in PHASES:
        candidates = []
        for c in plan.assignments(phase)[index].candidates:
            moved = None
            if c.seconds is not None and c.device in explanation.task.problem.allowed[index]:
                moved = explanation.moved(phase, index, c.device).total_s
            candidates.append({**vars(c), "step_s_more": moved})
        record[phase] = {**_assignment(explanation, plan, phase, index), "candidates": candidates}
    return record


def _predicted(explanation: Explanation, prefill: PhaseCost, decode: PhaseCost) -> dict[str, Any]:
    request = explanation.task.request
    return {
        "prefill_s": prefill.total_s * request.n_prefill_steps,
        "decode_s_per_token": decode.total_s / request.n_seqs,
        "joules_per_token": None if decode.joules is None else decode.joules / request.n_seqs,
        "joules_of_prefill": None if prefill.joules is None else prefill.joules * request.n_prefill_steps,
        "answer_s": request.total_seconds(prefill.total_s, decode.total_s),
        "prefill_tps": request.prompt_tokens / (prefill.total_s * request.n_prefill_steps) if prefill.total_s else None,
        "decode_tps": request.n_seqs / decode.total_s if decode.total_s else None,
    }


def _assignment(explanation: Explanation, plan: Plan, phase: Phase, index: int) -> dict[str, Any]:
    a: Assignment = plan.assignments(phase)[index]
    chosen, second = a.chosen, a.runner_up
    return {
        "device": a.device,
        "reason": a.reason,
        "reasons": explanation.reasons(phase, index),
        "cost": {"seconds": chosen.seconds, "joules": chosen.joules, "basis": chosen.basis} if chosen else None,
        "runner_up": {"device": second.device, "seconds": second.seconds, "basis": second.basis} if second else None,
        "refusals": {c.device: c.refusal for c in a.candidates if c.refusal is not None},
    }
