"""A model cut by its layers over several boards of one kind, for when one has too little memory.

The boards pass a token's state on by a network, one after the other: that adds memory and no speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hetrun.device import Link
from hetrun.ops import VALUE_BYTES
from hetrun.plan.fit import STEP, Placements
from hetrun.plan.place import Task
from hetrun.plan.plan import PHASES, Phase
from hetrun.plan.solve import block_ends

# analytic: gigabit Ethernet less its framing; the latency of a switched round through two stacks is an assumption.
NETWORK = Link(100e-6, 117e6, "analytic:gigabit Ethernet, 94% of 125 MB/s, latency an assumption")

_MOST_BOARDS = 64


@dataclass(frozen=True)
class Boards:
    """n boards, and seconds of a step of each phase with the state passed on between them."""

    n: int
    step_s: Mapping[Phase, float]
    basis: str


def boards_for(task: Task) -> Boards | None:
    """The fewest boards with this task's devices that hold the model, cut at layer borders; None where no number does.

    The placement on each is the best one without limits, so the figures are of a plan, but maybe not of the best.
    """
    problem = task.problem
    placements = replace(problem, limits={}).cheapest()
    graph = problem.tables["decode"].graph
    ends = block_ends(graph)
    cuts: list[int] = []  # ops that begin a board
    first = start = 0
    for end in ends:
        if _fits(task, placements, first, end):
            start = end
            continue
        if start == first or not _fits(task, placements, start, end):
            return None
        cuts.append(start)
        first, start = start, end
        if len(cuts) >= _MOST_BOARDS:
            return None
    steps: dict[Phase, float] = {}
    for phase in PHASES:
        table = problem.tables[phase]
        steps[phase] = table.price(placements[phase]).total_s
        for cut in cuts:
            output = graph.ops[cut - 1].output
            steps[phase] += NETWORK.seconds(VALUE_BYTES * output.width * table.workload.rows(output.rows))
    return Boards(len(cuts) + 1, steps, NETWORK.basis)


def _fits(task: Task, placements: Placements, first: int, end: int) -> bool:
    blocks: dict[tuple[str, str, str], int] = {}
    for phase in PHASES:
        for i in range(first, end):
            device = placements[phase][i]
            resident = task.problem.tables[phase].cost(i, device).resident
            blocks.update({(device, space, name): n for (space, name), n in resident.items()})
    limits = {space: limit for space, limit in task.problem.limits.items() if space != STEP}
    return all(sum(n for (_, s, _), n in blocks.items() if s == space) <= limit for space, limit in limits.items())
