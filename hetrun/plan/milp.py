"""Placement as a mixed integer program, solved by HiGHS (`pip install 'hetrun[milp]'`): exact under limits, too.

Variables: x (op on device, 0 or 1; an attention op has one for both phases), a launch where the device changes, a copy
for each value and memory that reads it without having made it, a block for each device that keeps it. Only x must be
whole: the others follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hetrun.device import DeviceInfo
from hetrun.errors import PlanError
from hetrun.ops import VALUE_BYTES, Attention
from hetrun.plan.cost import copy_joules, copy_seconds, launch_joules, values_domain
from hetrun.plan.fit import STEP, Fit, Misfit, Problem
from hetrun.plan.plan import PHASES, Phase

TIME_LIMIT_S = 120.0
_GAP = 1e-7  # relative, at which a solution counts as best
_SCALE = 1e4  # numbers that HiGHS sees are about this large, so that its absolute tolerances mean little
_LEAST = 1e-9  # as the solver's: what a second counts where none is asked for


def installed() -> bool:
    return find_spec("highspy") is not None


def solve(problem: Problem, time_limit_s: float = TIME_LIMIT_S) -> Fit | Misfit:
    """The best placements within the limits, with the bound that HiGHS proved. PlanError without HiGHS, or where the
    time did not do."""
    if not installed():
        raise PlanError("HiGHS is not installed", remedy="pip install 'hetrun[milp]', or leave out --solver milp")
    program = _Program(problem)
    status, values, bound = program.run(time_limit_s)
    if status == "none":
        return _misfit(problem, proven=True)
    if values is None:
        raise PlanError(f"HiGHS found no plan within {time_limit_s:.0f} s", remedy="leave out --solver milp")
    placements = {phase: program.placement(phase, values) for phase in PHASES}
    if not problem.fits(placements):  # within its tolerances only
        return _misfit(problem, proven=False)
    cost = problem.cost(placements)
    return Fit(placements, cost, min(cost, bound) if bound < cost * (1 - 10 * _GAP) else cost)


def _misfit(problem: Problem, *, proven: bool) -> Misfit:
    from hetrun.plan.pack import pack

    packing = pack(problem.tables, problem.allowed, problem.limits)
    used: dict[str, float] = dict(packing.used)
    if STEP in problem.limits and all(n <= problem.limits.get(space, 0) for space, n in used.items()):
        fastest = solve(problem.fastest)
        if isinstance(fastest, Fit):
            used = problem.used(fastest.placements)
    return Misfit(used, proven and packing.exact)


class _Program:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.devices: list[DeviceInfo] = list(problem.tables["decode"].devices)
        self.cost: list[float] = []
        self.is_whole: list[bool] = []
        self.rows: list[tuple[float, float, dict[int, float]]] = []
        self.x: dict[tuple[Phase, int, str], int] = {}
        self.step: dict[int, float] = {}  # seconds of a decode step, by variable
        for phase in PHASES:
            self.add_placement(phase)
            self.add_launches(phase)
            self.add_copies(phase)
        self.add_memory()
        if STEP in problem.limits:
            scale = _SCALE / max(problem.limits[STEP], 1e-12)
            self.rows.append((-float("inf"), _SCALE, {v: s * scale for v, s in self.step.items()}))

    def add(self, phase: Phase, seconds: float, joules: float | None, *, whole: bool = False) -> int:
        """A variable that is 0 or more, at most 1 where it is whole, and takes so much in a step of the phase."""
        index = len(self.cost)
        self.cost.append(0.0)
        self.is_whole.append(whole)
        self.charge(index, phase, seconds, joules)
        return index

    def charge(self, index: int, phase: Phase, seconds: float, joules: float | None) -> None:
        terms = self.problem.terms[phase]
        self.cost[index] += max(terms.per_second, _LEAST) * seconds + terms.per_joule * (joules or 0.0)
        if phase == "decode":
            self.step[index] = self.step.get(index, 0.0) + seconds

    def at_least(self, variable: int, needs: Iterable[tuple[int, float]], constant: float = 0.0) -> None:
        """variable >= constant + sum(factor x other)."""
        row = {variable: 1.0}
        for other, factor in needs:
            row[other] = row.get(other, 0.0) - factor
        self.rows.append((constant, float("inf"), row))

    def add_placement(self, phase: Phase) -> None:
        table = self.problem.tables[phase]
        for i, (op, ids) in enumerate(zip(table.graph.ops, self.problem.allowed, strict=True)):
            for device in ids:
                cost = table.cost(i, device)
                if isinstance(op, Attention) and phase != PHASES[0]:
                    self.x[phase, i, device] = self.x[PHASES[0], i, device]
                    self.charge(self.x[phase, i, device], phase, cost.seconds, cost.joules)
                else:
                    self.x[phase, i, device] = self.add(phase, cost.seconds, cost.joules, whole=True)
            self.rows.append((1.0, 1.0, {self.x[phase, i, d]: 1.0 for d in ids}))

    def on(self, phase: Phase, op: int, devices: Iterable[str]) -> list[tuple[int, float]]:
        """The op is on one of these devices."""
        return [(self.x[phase, op, d], 1.0) for d in devices if (phase, op, d) in self.x]

    def add_launches(self, phase: Phase) -> None:
        for info in self.devices:
            for i in range(len(self.problem.allowed)):
                if (phase, i, info.id) in self.x:
                    launch = self.add(phase, info.launch.seconds, launch_joules(info))
                    before = self.on(phase, i - 1, [info.id]) if i else []
                    self.at_least(launch, [(self.x[phase, i, info.id], 1.0), *((v, -f) for v, f in before)])

    def add_copies(self, phase: Phase) -> None:
        table = self.problem.tables[phase]
        members: dict[str, list[str]] = {}
        for info in self.devices:
            members.setdefault(values_domain(info), []).append(info.id)
        number = {op.name: i for i, op in enumerate(table.graph.ops)}
        readers: dict[int, list[int]] = {}
        for i, op in enumerate(table.graph.ops):
            for name in dict.fromkeys(v.name for v in op.inputs):
                readers.setdefault(number[name], []).append(i)
        for value, ops in readers.items():
            output = table.graph.ops[value].output
            nbytes = VALUE_BYTES * output.width * table.workload.rows(output.rows)
            for domain, ids in members.items():
                self._add_copy(phase, value, ops, ids, nbytes, self._info(ids[0]), members, domain)
        last = len(self.problem.allowed) - 1
        logits = VALUE_BYTES * table.graph.n_vocab * table.workload.n_outputs
        for variable, _ in self.on(phase, last, [d.id for d in self.devices]):
            info = next(d for d in self.devices if self.x.get((phase, last, d.id)) == variable)
            self.charge(variable, phase, copy_seconds(info, None, logits), copy_joules(info, None, logits))

    def _add_copy(
        self, phase: Phase, value: int, ops: list[int], ids: list[str], nbytes: int, target: DeviceInfo,
        members: dict[str, list[str]], domain: str,
    ) -> None:  # fmt: skip
        """The value's way into one memory: a variable for each device that may have made it elsewhere."""
        makers = [d for d in self.devices if values_domain(d) != domain and (phase, value, d.id) in self.x]
        copies = {
            maker.id: self.add(
                phase, copy_seconds(maker, target, nbytes), copy_joules(maker, target, nbytes)
            )
            for maker in makers
        }  # fmt: skip
        for op in ops:
            here = self.on(phase, op, ids)
            if not here or not copies:
                continue
            # Read here and made elsewhere: one of the copies; which of them, its maker says.
            first, *rest = copies.values()
            made_here = self.on(phase, value, members[domain])
            self.at_least(first, [*here, *((v, -f) for v, f in made_here), *((c, -1.0) for c in rest)])
            for maker, copy in copies.items():
                self.at_least(copy, [*here, (self.x[phase, value, maker], 1.0)], constant=-1.0)

    def add_memory(self) -> None:
        blocks: dict[tuple[str, str, str], tuple[int, int]] = {}  # (device, space, name) -> variable, bytes
        for (phase, i, device), x in self.x.items():
            for (space, name), nbytes in self.problem.tables[phase].cost(i, device).resident.items():
                if (device, space, name) not in blocks:
                    blocks[device, space, name] = (self.add(phase, 0.0, None), nbytes)
                self.at_least(blocks[device, space, name][0], [(x, 1.0)])
        for space in dict.fromkeys(s for _, s, _ in blocks):
            limit = self.problem.limits.get(space, 0)
            row = {v: float(n) for (_, s, _), (v, n) in blocks.items() if s == space}
            scale = min(1.0, _SCALE / max(row.values(), default=1.0))
            self.rows.append((-float("inf"), limit * scale, {v: n * scale for v, n in row.items()}))

    def run(self, time_limit_s: float) -> tuple[str, list[float] | None, float]:
        """("best", "time" or "none", values, bound of the cost)."""
        import numpy as np

        highspy: Any = import_module("highspy")
        solver = highspy.Highs()
        for option, value in {
            "output_flag": False, "time_limit": time_limit_s, "mip_rel_gap": _GAP, "mip_abs_gap": 0.0, "threads": 1,
        }.items():  # fmt: skip
            solver.setOptionValue(option, value)
        lp = highspy.HighsLp()
        scale = _SCALE / max(*self.cost, 1e-300)
        lp.num_col_, lp.num_row_ = len(self.cost), len(self.rows)
        lp.col_cost_ = np.array(self.cost) * scale
        lp.col_lower_ = np.zeros(len(self.cost))
        lp.col_upper_ = np.ones(len(self.cost))
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[whole] for whole in self.is_whole]
        lp.row_lower_ = np.array([low for low, _, _ in self.rows])
        lp.row_upper_ = np.array([high for _, high, _ in self.rows])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(row) for _, _, row in self.rows)])
        lp.a_matrix_.index_ = np.array([v for _, _, row in self.rows for v in row])
        lp.a_matrix_.value_ = np.array([f for _, _, row in self.rows for f in row.values()])
        solver.passModel(lp)
        solver.run()
        status = solver.getModelStatus()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return "none", None, 0.0
        info = solver.getInfo()
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return "time", None, 0.0
        best = status == highspy.HighsModelStatus.kOptimal
        return "best" if best else "time", list(solver.getSolution().col_value), info.mip_dual_bound / scale

    def placement(self, phase: Phase, values: list[float]) -> tuple[str, ...]:
        return tuple(
            max(ids, key=lambda device: values[self.x[phase, i, device]]) for i, ids in enumerate(self.problem.allowed)
        )

    def _info(self, device: str) -> DeviceInfo:
        return next(d for d in self.devices if d.id == device)
