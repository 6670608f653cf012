"""Why each op runs where it does: what the step would take, were that op alone on another device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetrun.device import Cost, DeviceInfo
from hetrun.ops import VALUE_BYTES, Attention
from hetrun.plan.cost import CostTable, copy_joules, copy_seconds, launch_joules, values_domain
from hetrun.plan.fit import STEP, Placements
from hetrun.plan.place import Task
from hetrun.plan.plan import PHASES, Phase


@dataclass(frozen=True)
class Part:
    """What a step takes for one op: the op itself, launches before it and after it, copies of what it reads and makes.

    joules: 0 where a device tells none.
    """

    op_s: float
    launch_s: float
    copy_s: float
    joules: float = 0.0

    @property
    def total_s(self) -> float:
        return self.op_s + self.launch_s + self.copy_s

    def __sub__(self, other: Part) -> Part:
        return Part(
            self.op_s - other.op_s,
            self.launch_s - other.launch_s,
            self.copy_s - other.copy_s,
            self.joules - other.joules,
        )


@dataclass(frozen=True)
class Explanation:
    """The reasons for a task's placements, op by op."""

    task: Task
    placements: Placements

    def reasons(self, phase: Phase, op: int) -> list[str]:
        """Why the op runs where it does, a line for each other device."""
        device, rules = self.placements[phase][op], self.task.by_op[op]
        if rules.pin:
            return [f"pinned by {rules.pin}"]
        lines = []
        for info, answer in zip(
            self.task.problem.tables[phase].devices, self.task.problem.tables[phase].answers[op].values(), strict=True
        ):
            if info.id == device:
                continue
            if not isinstance(answer, Cost):
                lines.append(f"{info.id} refuses it: {answer.reason}")
            elif info.id in rules.forbidden:
                lines.append(f"{info.id}: {rules.forbidden[info.id]}")
            elif info.id not in self.task.problem.allowed[op]:
                lines.append(f"{info.id} refuses it in the other phase")
            else:
                lines.append(self._against(phase, op, info.id))
        return lines or ["there is no other device"]

    def moved(self, phase: Phase, op: int, device: str) -> Part:
        """What a step of the phase would take more, were the op on that device and all else as it is."""
        placement = self.placements[phase]
        return self._part(phase, placement, op, device) - self._part(phase, placement, op, placement[op])

    def _against(self, phase: Phase, op: int, device: str) -> str:
        table = self.task.problem.tables[phase]
        here, there = (table.cost(op, d).seconds for d in (self.placements[phase][op], device))
        moved = self.moved(phase, op, device)
        times = f"{_time(there)} there, {_time(here)} here"
        around = moved.launch_s + moved.copy_s
        if around:
            times += f", and launches and copies {'add' if around > 0 else 'save'} {_time(abs(around))}"
        counted = self._counted(op, device)
        if self.task.request.objective == "energy":
            times += f"; {_sign(moved.joules)}{abs(moved.joules):.3g} J a step"
        if counted > 0:
            return f"{device} is dearer: {times}"
        full = self._full(op, device)
        if full:
            return f"{device} has no room left in {full}: {times}"
        if counted == 0:
            return f"{device} is as good: {times}"
        if STEP in self.task.problem.limits:
            return f"{device} alone would miss the rate, or be part of another plan that costs more: {times}"
        return f"{device} would be cheaper, but the plan as a whole was not found to be: {times}"

    def _counted(self, op: int, device: str) -> float:
        """What the objective counts for the move; of an attention op in both phases, since its cache moves with it."""
        is_fixed = isinstance(self.task.problem.tables["decode"].graph.ops[op], Attention)
        terms = self.task.problem.terms
        total = 0.0
        for phase in PHASES:
            same = self.placements[phase][op] == self.placements["decode"][op]
            if is_fixed or same:
                part = self.moved(phase, op, device)
                total += terms[phase].per_second * part.total_s + terms[phase].per_joule * part.joules
        return total

    def _full(self, op: int, device: str) -> str | None:
        """The memory that could not hold the op's blocks beside what is there."""
        problem = self.task.problem
        wanted: dict[str, int] = {}
        for phase in PHASES:
            for (space, name), nbytes in problem.tables[phase].cost(op, device).resident.items():
                if (device, space, name) not in self._resident:
                    wanted[space] = wanted.get(space, 0) + nbytes
        memory = problem.memory(self.placements)
        return next((s for s, n in wanted.items() if memory.get(s, 0) + n > problem.limits.get(s, 0)), None)

    @cached_property
    def _resident(self) -> Mapping[tuple[str, str, str], int]:
        blocks: dict[tuple[str, str, str], int] = {}
        for phase in PHASES:
            blocks.update(self.task.problem.tables[phase].resident(self.placements[phase]))
        return blocks

    @cached_property
    def _neighbours(self) -> Sequence[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(values read, ops that read its own) of each op."""
        graph = self.task.problem.tables["decode"].graph
        number = {op.name: i for i, op in enumerate(graph.ops)}
        reads = [tuple(dict.fromkeys(number[v.name] for v in op.inputs)) for op in graph.ops]
        readers: list[list[int]] = [[] for _ in graph.ops]
        for i, values in enumerate(reads):
            for value in values:
                readers[value].append(i)
        return [(r, tuple(by)) for r, by in zip(reads, readers, strict=True)]

    @cached_property
    def _infos(self) -> Mapping[str, DeviceInfo]:
        return {d.id: d for d in self.task.problem.tables["decode"].devices}

    def _part(self, phase: Phase, placement: Sequence[str], op: int, device: str) -> Part:
        table = self.task.problem.tables[phase]

        def on(i: int) -> str:
            return device if i == op else placement[i]

        cost = table.cost(op, device)
        launched = [i for i in (op, op + 1) if i < len(placement) and (i == 0 or on(i - 1) != on(i))]
        launches = [self._infos[on(i)] for i in launched]
        copy_s = joules = 0.0
        for value in (*self._neighbours[op][0], op):
            seconds, energy = self._copies(table, value, [on(value), *(on(r) for r in self._neighbours[value][1])])
            copy_s, joules = copy_s + seconds, joules + energy
        if op == len(placement) - 1:
            nbytes = VALUE_BYTES * table.graph.n_vocab * table.workload.n_outputs
            copy_s += copy_seconds(self._infos[device], None, nbytes)
            joules += copy_joules(self._infos[device], None, nbytes)
        joules += (cost.joules or 0.0) + sum(map(launch_joules, launches))
        return Part(cost.seconds, sum(d.launch.seconds for d in launches), copy_s, joules)

    def _copies(self, table: CostTable, value: int, devices: Sequence[str]) -> tuple[float, float]:
        """Seconds and joules of a value's copies.   devices: its maker, then its readers in order."""
        output = table.graph.ops[value].output
        nbytes = VALUE_BYTES * output.width * table.workload.rows(output.rows)
        maker, *readers = (self._infos[d] for d in devices)
        present = {values_domain(maker)}
        seconds = joules = 0.0
        for reader in readers:
            domain = values_domain(reader)
            if domain not in present:
                present.add(domain)
                seconds += copy_seconds(maker, reader, nbytes)
                joules += copy_joules(maker, reader, nbytes)
        return seconds, joules


def _sign(number: float) -> str:
    return "-" if number < 0 else "+"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
