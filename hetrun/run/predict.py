"""What was predicted for the parts of a recorded run, at the workload that each step really had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hetrun.device import Cost, Fusing, Segment, StepTimes
from hetrun.graph.graph import Graph
from hetrun.ops import Op, Workload
from hetrun.plan.cost import copy_seconds, fused_costs
from hetrun.plugins import FoundDevice
from hetrun.run.build import Runtime
from hetrun.run.trace import CopyRecord, RunRecord


@dataclass(frozen=True)
class OpCost:
    """What one op takes in one step.   nbytes: of weights, KV cache and values that it reads and writes."""

    seconds: float
    flops: int
    nbytes: int

    def __add__(self, other: OpCost) -> OpCost:
        return OpCost(self.seconds + other.seconds, self.flops + other.flops, self.nbytes + other.nbytes)


NOTHING = OpCost(0.0, 0, 0)


@dataclass(frozen=True, eq=False)
class Group:
    """Ops of a segment that cannot be timed apart, in the graph's order, and which of the run's steps they are.

    No ops: steps that serve the whole segment.   steps: None for a run that is timed as a whole.
    """

    ops: tuple[Op, ...]
    steps: tuple[int, ...] | None

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(op.name for op in self.ops)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Layers that it belongs to, in order."""
        return tuple(sorted({op.layer for op in self.ops if op.layer is not None}))

    @cached_property
    def title(self) -> str:
        """Its ops without their layer: the same in every layer ("ffn_gate + ffn_up + ffn_act")."""
        return self.title_of(self.names)

    def title_of(self, names: Sequence[str]) -> str:
        """The same for some of its ops."""
        ops = [op for op in self.ops if op.name in names]
        if not ops:
            return "for the whole segment"
        if len(self.layers) > 1 or len(ops) > _LISTED:
            return f"{ops[0].name} to {ops[-1].name}, {len(ops)} ops"
        return " + ".join(_short(op) for op in ops)

    def measured_s(self, run: RunRecord) -> float:
        """What it took in a run of its segment."""
        if self.steps is None:
            return run.seconds
        assert run.event is not None and run.event.steps is not None
        return sum(run.event.steps.seconds[i] for i in self.steps)


_LISTED = 6


def _short(op: Op) -> str:
    return op.name if op.layer is None else op.name.removeprefix(f"blk.{op.layer}.")


def groups_of(segment: Segment, steps: Sequence[tuple[str, ...]] | None) -> tuple[Group, ...]:
    """The segment's ops, those together that share a step.   steps: names of each step's ops (`StepTimes.ops`), or None
    where the device times the segment as a whole. In the order of the graph; what serves the whole segment comes first.
    """
    if steps is None:
        return (Group(segment.ops, None),)
    home = {name: name for names in steps for name in names}  # a union-find forest

    def root(name: str) -> str:
        while home[name] != name:
            name = home[name]
        return name

    for names in steps:
        for name in names:
            home[root(name)] = root(names[0])
    # Steps without ops, and ops that no step names, are of the segment as a whole.
    members: dict[str, list[int]] = {}
    for i, names in enumerate(steps):
        members.setdefault(root(names[0]) if names else "", []).append(i)
    ops: dict[str, list[Op]] = {"": []} if "" in members else {}
    for op in segment.ops:
        ops.setdefault(root(op.name) if op.name in home else "", []).append(op)
    return tuple(Group(tuple(found), tuple(members.get(name, ()))) for name, found in ops.items())


class Prediction:
    """Costs by the drivers' estimates, calibrated where the device is. Equal ops are asked for once a workload."""

    def __init__(self, runtime: Runtime) -> None:
        self.graph: Graph = runtime.graph
        self._found = runtime.found
        signatures: dict[tuple[object, ...], int] = {}
        self._footprints: dict[Workload, int] = {}
        self._again = {op.name: False for op in self.graph.ops}
        if any(f.calibration for f in self._found.values()):
            from hetrun.calibration.terms import with_again

            self._again = {op.name: again for op, again in with_again(self.graph.ops)}
        self._kind = {
            op.name: signatures.setdefault((*op.signature, self._again[op.name]), len(signatures))
            for op in self.graph.ops
        }
        self._segments = {(s.device, s.segment.name): s.segment for steps in runtime.steps.values() for s in steps}
        self._whole = {(d, tuple(op.name for op in s.ops)): s for (d, _), s in self._segments.items()}
        self._fusions: dict[tuple[str, tuple[str, ...], Workload], Mapping[str, float]] = {}
        self._groups: dict[tuple[str, str, int], tuple[Group, ...]] = {}
        self._costs: dict[tuple[str, Workload], dict[int, OpCost]] = {}

    def groups(self, run: RunRecord) -> tuple[Group, ...]:
        """The parts that the run can be divided into."""
        times: StepTimes | None = run.event.steps if run.event else None
        key = (run.device, run.segment, id(times.ops) if times else 0)
        if key not in self._groups:
            segment = self._segments[run.device, run.segment]
            self._groups[key] = groups_of(segment, times.ops if times else None)
        return self._groups[key]

    def op(self, device: str, op: Op, workload: Workload) -> OpCost:
        """On the device, in one step."""
        known = self._costs.setdefault((device, workload), {})
        kind = self._kind[op.name]
        if kind not in known:
            cost = self._cost(self._found[device], op, workload)
            nbytes = op.weight_bytes(workload) + op.kv_bytes(workload) + op.activation_bytes(workload)
            known[kind] = OpCost(cost.seconds if cost else 0.0, op.flops(workload), nbytes)
        return known[kind]

    def ops(self, device: str, group: Group, workload: Workload) -> list[OpCost]:
        """Of the group's ops, in one step."""
        fused = self._fused(device, group, workload)
        costs = (self.op(device, op, workload) for op in group.ops)
        return [replace(c, seconds=fused.get(op.name, c.seconds)) for op, c in zip(group.ops, costs, strict=True)]

    def group(self, device: str, group: Group, workload: Workload) -> OpCost:
        return sum(self.ops(device, group, workload), NOTHING)

    def _fused(self, device: str, group: Group, workload: Workload) -> Mapping[str, float]:
        """Seconds of ops that take less in their run than alone, where the group is the run."""
        found, segment = self._found[device], self._whole.get((device, group.names))
        if segment is None or not self._fuses(found):
            return {}
        key = (device, group.names, workload)
        if key not in self._fusions:
            costs = fused_costs(found, segment, workload)
            self._fusions[key] = {name: cost.seconds for name, cost in costs.items()}
        return self._fusions[key]

    @staticmethod
    def _fuses(found: FoundDevice) -> bool:
        return isinstance(found.driver, Fusing) and not found.calibration

    def launch_s(self, device: str) -> float:
        """Of one run."""
        return self._found[device].info.launch.seconds

    def copy_s(self, copy: CopyRecord) -> float:
        target = self._found[copy.target].info if copy.target in self._found else None
        return copy_seconds(self._found[copy.source].info, target, copy.nbytes)

    def basis(self, device: str) -> tuple[str, ...]:
        """Where the predictions for a device come from."""
        found = self._found[device]
        step = Workload(1, 0)
        costs = {op.name: self._cost(found, op, step) for op in self._ops_on(device)}
        for (own, _), segment in self._segments.items():
            if own == device and self._fuses(found):
                costs.update(fused_costs(found, segment, step))
        return tuple(sorted({c.basis for c in costs.values() if c}))

    def devices(self) -> Iterator[FoundDevice]:
        yield from self._found.values()

    def _cost(self, found: FoundDevice, op: Op, workload: Workload) -> Cost | None:
        answer = found.driver.estimate(found.info, op, workload)
        if not isinstance(answer, Cost):
            return None
        if found.calibration is None:
            return answer
        return found.calibration.cost(answer, op, workload, self._footprint(workload), self._again[op.name])

    def _footprint(self, workload: Workload) -> int:
        from hetrun.calibration.terms import footprint_bytes

        if workload not in self._footprints:
            self._footprints[workload] = footprint_bytes(self.graph.ops, workload)
        return self._footprints[workload]

    def _ops_on(self, device: str) -> list[Op]:
        """One op of each kind that the device runs."""
        ops = {self._kind[op.name]: op for (d, _), s in self._segments.items() if d == device for op in s.ops}
        return list(ops.values())
