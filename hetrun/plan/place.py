"""Chooses a device for every op: the best placement by the drivers' estimates, within memory, rules and rate."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hetrun.device import Unsupported
from hetrun.errors import DeviceError, PlanError
from hetrun.graph.graph import Graph
from hetrun.plan.cost import CostTable
from hetrun.plan.fit import STEP, Fit, Misfit, Placements, Problem, fit
from hetrun.plan.plan import PHASES, Assignment, Candidate, Phase, PhaseCost, Plan
from hetrun.plan.request import Request
from hetrun.plan.rules import Forbid, OpRules, Pin, Rule, allowed_devices, resolve
from hetrun.plugins import FoundDevice, select_device

__all__ = ["Forbid", "Pin", "Request", "Solver", "Task", "check_plan", "make_plan"]

Solver = Literal["auto", "milp"]
"""auto: dynamic programming, and prices where limits are tight.   milp: HiGHS, which also closes their gap."""


@dataclass(frozen=True)
class Task:
    """A graph to place on devices for a request, with all costs asked for."""

    problem: Problem
    request: Request
    rules: Sequence[Rule]
    by_op: Sequence[OpRules]
    devices: Sequence[FoundDevice]

    @classmethod
    def of(cls, graph: Graph, devices: Sequence[FoundDevice], request: Request, rules: Sequence[Rule] = ()) -> Task:
        """PlanError where an op finds no device, PluginError where a driver's answer is no cost."""
        if not devices:
            raise PlanError("no device to place on", remedy='"hetrun devices" lists what is there')
        tables: dict[Phase, CostTable] = {p: CostTable.ask(graph, request.workload(p), devices) for p in PHASES}
        by_op = resolve(graph, devices, rules)
        allowed = allowed_devices(tables, by_op)
        tables = {phase: table.fused(allowed) for phase, table in tables.items()}
        if request.objective == "energy":
            _check_power(tables, allowed)
        limits: dict[str, float] = dict(capacities(devices))
        if request.step_limit_s is not None:
            limits[STEP] = request.step_limit_s
        return cls(Problem(tables, allowed, request.terms, limits), request, rules, by_op, devices)

    def solve(self, solver: Solver = "auto") -> Plan:
        """The best plan found. `hetrun.plan.unfit` says why there is none (PlanError)."""
        found = self.fit(solver)
        if isinstance(found, Misfit):
            from hetrun.plan.unfit import unfit_error

            raise unfit_error(self, found)
        return self.plan(found.placements, found.gap)

    def fit(self, solver: Solver = "auto") -> Fit | Misfit:
        found = None if solver == "milp" else fit(self.problem)
        if found is None or (isinstance(found, Misfit) and not found.proven):
            from hetrun.plan import milp

            if found is None or milp.installed():
                return milp.solve(self.problem)
        return found

    def plan(self, placements: Placements, gap: float = 0.0) -> Plan:
        """The plan of these placements."""
        problem = self.problem
        bases = set[str]().union(*(problem.tables[p].bases(placements[p]) for p in PHASES))
        return Plan(
            model=problem.tables["decode"].graph.fingerprint,
            devices=tuple(d.info.id for d in self.devices),
            prefill=self._assignments("prefill", placements["prefill"]),
            decode=self._assignments("decode", placements["decode"]),
            predicted={p: problem.tables[p].price(placements[p]) for p in PHASES},
            memory=problem.memory(placements),
            gap=gap,
            basis=tuple(sorted(bases)),
        )

    def alone(self, device: str) -> Mapping[Phase, PhaseCost] | None:
        """The cost of everything on one device, or None where it refuses an op or lacks the memory."""
        problem = self.problem
        placements = dict.fromkeys(PHASES, (device,) * len(problem.allowed))
        if any(isinstance(t.answers[i][device], Unsupported) for t in problem.tables.values() for i in self._ops):
            return None
        memory = problem.memory(placements)
        if any(n > problem.limits.get(space, 0) for space, n in memory.items()):
            return None
        return {p: problem.tables[p].price(placements[p]) for p in PHASES}

    def placements(self, plan: Plan) -> Placements:
        """Those of a loaded plan, which `check_plan` has passed."""
        return {phase: tuple(a.device for a in plan.assignments(phase)) for phase in PHASES}

    def best_alone(self) -> str | None:
        """The device on which everything together costs least, by the objective; None where none takes it all."""
        terms = self.problem.terms
        costs = {d.info.id: self.alone(d.info.id) for d in self.devices}
        known = {d: sum(terms[p].of(c[p]) for p in PHASES) for d, c in costs.items() if c}
        return min(known, key=known.__getitem__, default=None)

    @property
    def _ops(self) -> range:
        return range(len(self.problem.allowed))

    def _assignments(self, phase: Phase, placement: Sequence[str]) -> tuple[Assignment, ...]:
        table = self.problem.tables[phase]
        result = []
        for op, device, answers, rules in zip(table.graph.ops, placement, table.answers, self.by_op, strict=True):
            candidates = tuple(
                Candidate(d, refusal=a.reason)
                if isinstance(a, Unsupported)
                else Candidate(d, a.seconds, a.basis, joules=a.joules)
                for d, a in answers.items()
            )
            accepted = [c for c in candidates if c.refusal is None]
            if rules.pinned:
                reason = "pinned"
            elif len(accepted) == 1:
                reason = "the only device that runs it"
            else:
                reason = "the cheapest plan has it here"
            result.append(Assignment(op.name, device, reason, candidates))
        return tuple(result)


def make_plan(
    graph: Graph,
    devices: Sequence[FoundDevice],
    request: Request,
    rules: Sequence[Rule] = (),
    solver: Solver = "auto",
) -> Plan:
    """PlanError where an op finds no device, or no placement keeps to the limits; both say what would help."""
    return Task.of(graph, devices, request, rules).solve(solver)


def check_plan(plan: Plan, graph: Graph, devices: Sequence[FoundDevice]) -> None:
    """PlanError unless a loaded plan is for this graph, its devices are here and accept their ops, and the memory
    holds it.
    """
    if plan.model != graph.fingerprint:
        raise PlanError(
            f"the plan is for another model or context (fingerprint {plan.model}, this one is {graph.fingerprint})",
            remedy="make it anew for this model with the same --ctx, --kv-type and --attention",
        )
    ids = [d.info.id for d in devices]
    for device in plan.used_devices:
        if device not in ids:
            near = difflib.get_close_matches(device, ids, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DeviceError(
                f"the plan is for other devices: there is no device {device!r}, which it uses, among those chosen",
                remedy=f"{hint}chosen: {', '.join(ids)}; choose those of the plan, or make it anew",
            )
    names = [op.name for op in graph.ops]
    for phase in (plan.prefill, plan.decode):
        if [a.op for a in phase] != names:
            raise PlanError("the plan does not assign every op of the graph once, in order", remedy="make it anew")
    blocks: dict[tuple[str, str, str], int] = {}
    for prefill, decode, op in zip(plan.prefill, plan.decode, graph.ops, strict=True):
        if op.kind == "attention" and prefill.device != decode.device:
            raise PlanError(
                f"{op.name}: attention must run on one device in both phases, since its KV cache lives there",
                remedy="edit the plan or make it anew",
            )
        for device in dict.fromkeys((prefill.device, decode.device)):
            found = select_device(devices, device)
            answer = found.driver.estimate(found.info, op, Request().workload("decode"))
            if isinstance(answer, Unsupported):
                raise PlanError(
                    f"{op.name}: {found.info.id} refuses it: {answer.reason}", remedy="edit the plan or make it anew"
                )
            blocks.update({(device, space, name): n for (space, name), n in answer.resident.items()})
    limits = capacities(devices)
    for space in dict.fromkeys(s for _, s, _ in blocks):
        used, limit = sum(n for (_, s, _), n in blocks.items() if s == space), limits.get(space, 0)
        if used > limit:
            raise PlanError(
                f"the plan needs {used / 1e6:.0f} MB of {space} memory, which holds {limit / 1e6:.0f} MB",
                remedy="make it anew for these devices",
            )


def capacities(devices: Sequence[FoundDevice]) -> dict[str, int]:
    """Bytes of each space; where devices differ about one that they share, the least."""
    capacity: dict[str, int] = {}
    for device in devices:
        for space in device.info.spaces:
            capacity[space.name] = min(space.capacity_bytes, capacity.get(space.name, space.capacity_bytes))
    return capacity


def _check_power(tables: Mapping[Phase, CostTable], allowed: Sequence[Sequence[str]]) -> None:
    for table in tables.values():
        for i, devices in enumerate(allowed):
            for device in devices:
                if table.cost(i, device).joules is None:
                    raise PlanError(
                        f"{device} tells no energy, so that the objective energy has no meaning on it",
                        remedy='give its profile "watts" under [model], or leave the device out',
                    )
