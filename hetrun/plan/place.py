"""Chooses a device for every op: the cheapest placement by the drivers' estimates, within the pins."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hetrun.device import Cost, Unsupported
from hetrun.errors import PlanError, UsageError
from hetrun.graph.graph import Graph
from hetrun.ops import Workload
from hetrun.plan.cost import CostTable
from hetrun.plan.fit import Problem, fit
from hetrun.plan.plan import Assignment, Candidate, Phase, Plan
from hetrun.plan.solve import cheapest
from hetrun.plugins import FoundDevice, select_device


@dataclass(frozen=True)
class Pin:
    """Ops whose names match `pattern` (shell-style) run on `device`."""

    pattern: str
    device: str

    @classmethod
    def parse(cls, text: str) -> Pin:
        pattern, sep, device = text.partition("=")
        if not (sep and pattern and device):
            raise UsageError(f"pin {text!r} is not PATTERN=DEVICE", remedy="for example --pin 'blk.*.ffn_*=reference'")
        return cls(pattern, device)


@dataclass(frozen=True)
class Request:
    """What the plan is made for: the lengths of prompt and answer, and the sequences at once."""

    prompt_tokens: int = 128
    gen_tokens: int = 128
    n_seqs: int = 1
    max_tokens: int = 512

    def workload(self, phase: Phase) -> Workload:
        if phase == "prefill":
            return Workload(min(self.prompt_tokens, self.max_tokens), 0)
        return Workload(self.n_seqs, self.prompt_tokens + self.gen_tokens // 2, self.n_seqs, self.n_seqs)

    @property
    def n_prefill_steps(self) -> int:
        """Steps that run the prompt."""
        return -(-self.prompt_tokens // self.max_tokens)

    def total_seconds(self, prefill_s: float, decode_s: float) -> float:
        """Of the whole answer, from the cost of one step of each phase."""
        return prefill_s * self.n_prefill_steps + decode_s * self.gen_tokens


def make_plan(graph: Graph, devices: Sequence[FoundDevice], request: Request, pins: Sequence[Pin] = ()) -> Plan:
    """PlanError where an op finds no device, or the memory does not hold the plan; both say what would help."""
    if not devices:
        raise PlanError("no device to place on", remedy='"hetrun devices" lists what is there')
    tables: dict[Phase, CostTable] = {
        "prefill": CostTable.ask(graph, request.workload("prefill"), devices),
        "decode": CostTable.ask(graph, request.workload("decode"), devices),
    }
    pinned = _pinned(graph, devices, pins)
    allowed = [_allowed(tables, i, pinned[i]) for i in range(len(graph.ops))]

    weights: dict[Phase, float] = {"prefill": float(request.n_prefill_steps), "decode": float(request.gen_tokens)}
    problem = Problem(tables, allowed, weights, _capacity(devices))
    found = fit(problem)
    if found is None:
        raise _too_large(problem)
    best = found.placements
    return Plan(
        model=graph.fingerprint,
        devices=tuple(d.info.id for d in devices),
        prefill=_assignments(tables["prefill"], best["prefill"], pinned),
        decode=_assignments(tables["decode"], best["decode"], pinned),
        predicted={p: t.price(best[p]) for p, t in tables.items()},
        memory=problem.used(best),
        gap=found.gap,
        basis=tuple(sorted({c.basis for p, t in tables.items() for c in _costs(t, best[p])})),
    )


def check_plan(plan: Plan, graph: Graph, devices: Sequence[FoundDevice]) -> None:
    """PlanError unless a loaded plan is for this graph and its devices are here and accept their ops."""
    if plan.model != graph.fingerprint:
        raise PlanError(
            f"the plan is for another model or context (fingerprint {plan.model}, this one is {graph.fingerprint})",
            remedy="make it anew for this model with the same --ctx",
        )
    names = [op.name for op in graph.ops]
    for phase in (plan.prefill, plan.decode):
        if [a.op for a in phase] != names:
            raise PlanError("the plan does not assign every op of the graph once, in order", remedy="make it anew")
    for prefill, decode, op in zip(plan.prefill, plan.decode, graph.ops, strict=True):
        if op.kind == "attention" and prefill.device != decode.device:
            raise PlanError(
                f"{op.name}: attention must run on one device in both phases, since its KV cache lives there"
            )
        for assignment in (prefill, decode):
            found = select_device(devices, assignment.device)
            answer = found.driver.estimate(found.info, op, Workload(1, 0))
            if isinstance(answer, Unsupported):
                raise PlanError(
                    f"{op.name}: {found.info.id} refuses it: {answer.reason}", remedy="edit the plan or make it anew"
                )


def _pinned(graph: Graph, devices: Sequence[FoundDevice], pins: Sequence[Pin]) -> list[str | None]:
    """The device that the pins name for each op; a later pin wins over an earlier one."""
    result: list[str | None] = [None] * len(graph.ops)
    for pin in pins:
        device = select_device(devices, pin.device).info.id
        matches = [i for i, op in enumerate(graph.ops) if fnmatchcase(op.name, pin.pattern)]
        if not matches:
            names = [op.name for op in graph.ops]
            near = difflib.get_close_matches(pin.pattern, names, n=3, cutoff=0.4)
            raise PlanError(
                f"pin {pin.pattern!r} matches no op",
                remedy=f'near: {", ".join(near or names[:3])}; "hetrun plan" lists all',
            )
        for i in matches:
            result[i] = device
    return result


def _allowed(tables: Mapping[Phase, CostTable], index: int, pinned: str | None) -> list[str]:
    """Devices that accept the op in both phases, within its pin."""
    refusals: dict[str, str] = {}
    for table in tables.values():
        for device, answer in table.answers[index].items():
            if isinstance(answer, Unsupported):
                refusals.setdefault(device, answer.reason)
    op = next(iter(tables.values())).graph.ops[index]
    if pinned in refusals:
        raise PlanError(
            f"{op.name} is pinned to {pinned}, which refuses it: {refusals[pinned]}", remedy="narrow the pin's pattern"
        )
    accepted = [d.id for d in next(iter(tables.values())).devices if d.id not in refusals]
    if not accepted:
        reasons = "; ".join(f"{d}: {r}" for d, r in refusals.items())
        raise PlanError(
            f"no device runs {op.name} ({op.kind}): {reasons}", remedy="add a device that does, such as --device cpu"
        )
    return [pinned] if pinned else accepted


def _assignments(table: CostTable, placement: Sequence[str], pinned: Sequence[str | None]) -> tuple[Assignment, ...]:
    result = []
    for op, device, answers, pin in zip(table.graph.ops, placement, table.answers, pinned, strict=True):
        candidates = tuple(
            Candidate(d, refusal=a.reason) if isinstance(a, Unsupported) else Candidate(d, a.seconds, a.basis)
            for d, a in answers.items()
        )
        accepted = [c for c in candidates if c.refusal is None]
        if pin:
            reason = "pinned"
        elif len(accepted) == 1:
            reason = "the only device that runs it"
        else:
            reason = "the cheapest plan has it here"
        result.append(Assignment(op.name, device, reason, candidates))
    return tuple(result)


def _capacity(devices: Sequence[FoundDevice]) -> dict[str, int]:
    """Bytes of each space; where devices differ about one that they share, the least."""
    capacity: dict[str, int] = {}
    for device in devices:
        for space in device.info.spaces:
            capacity[space.name] = min(space.capacity_bytes, capacity.get(space.name, space.capacity_bytes))
    return capacity


def _too_large(problem: Problem) -> PlanError:
    """Names the space that the cheapest placement overfills most."""
    placements = cheapest(problem.tables, problem.allowed, problem.weights)
    used = problem.used(placements)
    space = max(problem.overflowing(placements), key=lambda s: used[s] - problem.capacity.get(s, 0))
    kv = sum(kv.nbytes for kv in problem.tables["decode"].graph.kv_specs.values())
    return PlanError(
        f"{space} memory holds {problem.capacity.get(space, 0) / 1e6:.0f} MB, the plan needs "
        f"{used[space] / 1e6:.0f} MB (the KV cache takes {kv / 1e6:.0f} MB), and no plan was found that fits",
        remedy="use a shorter --ctx, fewer sequences, a smaller quantisation of the model, or more devices",
    )


def _costs(table: CostTable, placement: Sequence[str]) -> list[Cost]:
    return [c for d, a in zip(placement, table.answers, strict=True) if isinstance(c := a[d], Cost)]
