"""The cheapest placement, exactly: dynamic programming over the op order.

What the future costs depends on the past only through the last op's device (a launch is paid where it changes) and, for
each value that is still to be read, the device that made it and the memories that hold it (a copy is paid once a
memory). Where the only such value is the newest one, that is a single device: there the graph is cut into blocks. Each
distinct block is solved once, as a table from the device before it to the device at its end, and the blocks are
chained. Prefill and decode are placed together, weighted, since an attention op must run on one device in both: its KV
cache lives there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from hetrun.device import Cost, DeviceInfo
from hetrun.graph.graph import Graph
from hetrun.ops import VALUE_BYTES, Attention
from hetrun.plan.cost import CostTable, Terms, copy_joules, copy_seconds, launch_joules, values_domain
from hetrun.plan.plan import PHASES, Phase

Placement = tuple[int, ...]  # a device's number for each op of a block
# What is still to be read: (value, device that made it, memories that hold it as bits of `_Phase.domain`).
Live = tuple[tuple[int, int, int], ...]
# Best cost and placement of a block, by (device before it, devices of its attention ops, device of its last op).
BlockTable = dict[tuple[int, Placement, int], tuple[float, Placement]]

_LEAST = 1e-9  # what a second counts where none is asked for: it decides only between equals
_START = -1  # the device "before" the first op


def cheapest(
    tables: Mapping[Phase, CostTable],
    allowed: Sequence[Sequence[str]],
    terms: Mapping[Phase, Terms],
    prices: Mapping[str, float] | None = None,
) -> dict[Phase, tuple[str, ...]]:
    """The placements of both phases with the least sum of `terms[phase].of(CostTable.bound(...))`.

    allowed: ids of the devices that each op may run on, at least one each, which all accept it in both phases.
    prices: what a resident byte counts, by space, added as `CostTable.memory_price` says.
    """
    phases = [_Phase(tables[phase], allowed, terms[phase], prices or {}) for phase in PHASES]
    devices = [d.id for d in tables["prefill"].devices]
    chosen = _chain(phases)
    return {phase: tuple(devices[d] for d in placement) for phase, placement in zip(PHASES, chosen, strict=True)}


def block_ends(graph: Graph) -> list[int]:
    """Where blocks end: after these ops no value but the newest is still to be read."""
    last_use = _last_use(_inputs(graph))
    reach, ends = -1, []
    for i in range(len(last_use)):
        if reach <= i:
            ends.append(i + 1)
        reach = max(reach, last_use[i])
    return ends if ends[-1:] == [len(last_use)] else [*ends, len(last_use)]


def _inputs(graph: Graph) -> list[tuple[int, ...]]:
    """Values that each op reads, each once."""
    number = {op.name: i for i, op in enumerate(graph.ops)}
    return [tuple(dict.fromkeys(number[v.name] for v in op.inputs)) for op in graph.ops]


def _last_use(inputs: Sequence[tuple[int, ...]]) -> list[int]:
    """The last op that reads each value; its own op where none does."""
    result = list(range(len(inputs)))
    for i, values in enumerate(inputs):
        for v in values:
            result[v] = i
    return result


@dataclass(frozen=True)
class _Phase:
    """One phase's costs by number: of ops, devices and values (a value has its op's number). All are what the objective
    counts for them."""

    table: CostTable
    allowed: Sequence[Sequence[str]]
    terms: Terms
    prices: Mapping[str, float]

    def counted(self, seconds: float, joules: float | None) -> float:
        return max(self.terms.per_second, _LEAST) * seconds + self.terms.per_joule * (joules or 0.0)

    @cached_property
    def costs(self) -> list[tuple[tuple[int, float], ...]]:
        """(device, cost and memory's price) of the devices that each op may run on."""
        result = []
        for i, (answers, ids) in enumerate(zip(self.table.answers, self.allowed, strict=True)):
            costs = [(d, info.id, answers[info.id]) for d, info in enumerate(self.table.devices) if info.id in ids]
            result.append(
                tuple(
                    (d, self.counted(cost.seconds, cost.joules) + self.table.memory_price(i, device, self.prices))
                    for d, device, cost in costs
                    if isinstance(cost, Cost)
                )
            )
        return result

    @cached_property
    def launch(self) -> list[float]:
        return [self.counted(d.launch.seconds, launch_joules(d)) for d in self.table.devices]

    @cached_property
    def domain(self) -> list[int]:
        """A bit for the memory in which each device sees its values."""
        names = [values_domain(d) for d in self.table.devices]
        return [1 << names.index(name) for name in names]

    @cached_property
    def inputs(self) -> list[tuple[int, ...]]:
        return _inputs(self.table.graph)

    @cached_property
    def last_use(self) -> list[int]:
        return _last_use(self.inputs)

    @cached_property
    def copies(self) -> list[list[list[float]]]:
        """A copy of each value, by the device that made it and the one that reads it."""
        infos = self.table.devices
        rows = [self.table.workload.rows(op.output.rows) * op.output.width for op in self.table.graph.ops]
        by_size = {n: [[self.copy(a, b, VALUE_BYTES * n) for b in infos] for a in infos] for n in set(rows)}
        return [by_size[n] for n in rows]

    def final_copy(self, device: int) -> float:
        """The logits' way to the host."""
        logits = VALUE_BYTES * self.table.graph.n_vocab * self.table.workload.n_outputs
        return self.copy(self.table.devices[device], None, logits)

    def copy(self, source: DeviceInfo, target: DeviceInfo | None, nbytes: int) -> float:
        return self.counted(copy_seconds(source, target, nbytes), copy_joules(source, target, nbytes))

    def kind(self, start: int, end: int) -> object:
        """Equal for blocks that have the same table."""
        return tuple(
            (
                self.costs[i],
                tuple(v - start for v in self.inputs[i]),
                self.last_use[i] - start,
                self._size(i),
                self.fixed(i),
            )
            for i in range(start, end)
        ) + tuple(self._size(v) for i in range(start, end) for v in self.inputs[i] if v < start)

    def fixed(self, op: int) -> bool:
        """Whether the op must run on one device in both phases."""
        return isinstance(self.table.graph.ops[op], Attention)

    def _size(self, op: int) -> tuple[str, int]:
        output = self.table.graph.ops[op].output
        return output.rows, output.width

    def solve_block(self, start: int, end: int) -> BlockTable:
        """The block's ops from `start` to before `end`, for every device that may stand before them."""
        before = [_START] if start == 0 else range(len(self.launch))
        return {
            (entry, fixed, last): best
            for entry in before
            for (fixed, last), best in self._solve_from(entry, start, end).items()
        }

    def _solve_from(self, entry: int, start: int, end: int) -> dict[tuple[Placement, int], tuple[float, Placement]]:
        # The inner loop is most of the solver's time, so it is written out, over local names.
        last_use, launch, domain, copies = self.last_use, self.launch, self.domain, self.copies
        # A state: devices of the attention ops so far, the last device, and (value, maker, memories) of what is to
        # be read.
        live = () if entry == _START else ((start - 1, entry, self.domain[entry]),)
        states: dict[tuple[Placement, int, Live], tuple[float, Placement]]
        states = {((), entry, live): (0.0, ())}
        for i in range(start, end):
            following: dict[tuple[Placement, int, Live], tuple[float, Placement]] = {}
            is_fixed = self.fixed(i)
            reads, is_read = self.inputs[i], last_use[i] > i
            for (fixed, last, unread), (cost, placement) in states.items():
                for device, op_cost in self.costs[i]:
                    total = cost + op_cost if device == last else cost + op_cost + launch[device]
                    here = domain[device]
                    kept = []
                    for value, maker, memories in unread:
                        if value in reads and not memories & here:
                            total += copies[value][maker][device]
                            memories |= here
                        if last_use[value] > i:
                            kept.append((value, maker, memories))
                    if is_read:
                        kept.append((i, device, here))
                    key = ((*fixed, device) if is_fixed else fixed, device, tuple(kept))
                    known = following.get(key)
                    if known is None or total < known[0]:
                        following[key] = (total, (*placement, device))
            states = following
        best: dict[tuple[Placement, int], tuple[float, Placement]] = {}
        for (fixed, last, _), (cost, placement) in states.items():
            if cost < best.get((fixed, last), (inf, ()))[0]:
                best[fixed, last] = (cost, placement)
        return best


@dataclass(frozen=True)
class _Link:
    """Best way to a state of the chain: its cost, the state before, and the block's placement in each phase."""

    cost: float
    before: _Link | None
    block: tuple[Placement, Placement]


def _chain(phases: Sequence[_Phase]) -> tuple[Placement, Placement]:
    """Placements of all ops in both phases."""
    prefill, decode = phases
    solved: dict[object, BlockTable] = {}

    def table(number: int, start: int, end: int) -> BlockTable:
        key = (number, start == 0, phases[number].kind(start, end))
        if key not in solved:
            solved[key] = phases[number].solve_block(start, end)
        return solved[key]

    frontier = {(_START, _START): _Link(0.0, None, ((), ()))}
    start = 0
    for end in block_ends(prefill.table.graph):
        by_fixed = [_by_fixed(table(number, start, end)) for number in range(len(phases))]
        following: dict[tuple[int, int], _Link] = {}
        for fixed in by_fixed[0].keys() & by_fixed[1].keys():
            for state, link in _advance(frontier, by_fixed[0][fixed], by_fixed[1][fixed]):
                if state not in following or link.cost < following[state].cost:
                    following[state] = link
        frontier = following
        start = end

    def total(item: tuple[tuple[int, int], _Link]) -> float:
        (p, d), link = item
        return link.cost + prefill.final_copy(p) + decode.final_copy(d)

    _, link = min(frontier.items(), key=total)
    blocks = []
    while link.before is not None:
        blocks.append(link.block)
        link = link.before
    blocks.reverse()
    return tuple(d for b, _ in blocks for d in b), tuple(d for _, b in blocks for d in b)


def _by_fixed(table: BlockTable) -> dict[Placement, list[tuple[int, int, float, Placement]]]:
    """(before, last, cost, placement) of a block, by the devices of its attention ops."""
    result: dict[Placement, list[tuple[int, int, float, Placement]]] = {}
    for (entry, fixed, last), (cost, placement) in table.items():
        result.setdefault(fixed, []).append((entry, last, cost, placement))
    return result


def _advance(
    frontier: Mapping[tuple[int, int], _Link],
    prefill: Sequence[tuple[int, int, float, Placement]],
    decode: Sequence[tuple[int, int, float, Placement]],
) -> list[tuple[tuple[int, int], _Link]]:
    """One block further, one phase after the other: the phases meet only in the attention ops, which are given."""
    half: dict[tuple[int, int], tuple[float, _Link, Placement]] = {}
    for (p, d), link in frontier.items():
        for entry, last, cost, placement in prefill:
            if entry == p:
                total = link.cost + cost
                if total < half.get((last, d), (inf,))[0]:
                    half[last, d] = (total, link, placement)
    best: dict[tuple[int, int], _Link] = {}
    for (p, d), (so_far, link, prefill_placement) in half.items():
        for entry, last, cost, placement in decode:
            if entry == d:
                total = so_far + cost
                if (p, last) not in best or total < best[p, last].cost:
                    best[p, last] = _Link(total, link, (prefill_placement, placement))
    return list(best.items())
