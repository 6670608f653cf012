"""Designs of a device compared: each is planned for as if it were there, beside the host that it would have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from hetrun.device import DesignPoint, Driver, MemorySpace
from hetrun.graph.graph import Graph
from hetrun.plan.place import Request, make_plan
from hetrun.plugins import FoundDevice

_NO_LIMIT_BYTES = 1 << 50


@dataclass(frozen=True)
class Explored:
    """A design and what the planner predicts with it.

    prefill_s_per_token: of the prompt.   joules_per_token: of the whole system, at decode; None where it is not told.
    memory_bytes: that the plan takes of all spaces.   front: no design that fits is better in one of seconds of decode
    and prefill, joules and the fullest resource without being worse in another.
    """

    point: DesignPoint
    decode_s_per_token: float
    prefill_s_per_token: float
    joules_per_token: float | None
    memory_bytes: int
    basis: tuple[str, ...]
    front: bool = False

    @property
    def fullest(self) -> float:
        """The largest share of a resource."""
        return max(r.share for r in self.point.resources.values())

    @property
    def goals(self) -> tuple[float, ...]:
        """What should be small."""
        return (self.decode_s_per_token, self.prefill_s_per_token, self.joules_per_token or 0.0, self.fullest)


def combinations(axes: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Every choice of a value for each axis."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def explore(
    graph: Graph, driver: Driver, host: FoundDevice, points: Iterable[DesignPoint], prompt_tokens: int
) -> list[Explored]:
    """Each of the driver's points planned for: a prompt, and a token behind it. Fastest first. Memory counts no limit.

    host: the device that the driver's `host_profile` names.
    """
    found: list[Explored] = []
    host = replace(_roomy(host), answers={})  # the same beside every design
    for point in points:
        devices = [host, _roomy(FoundDevice(driver, point.info, driver.name))]
        request = Request(prompt_tokens=prompt_tokens, gen_tokens=1, max_tokens=point.pass_tokens)
        plan = make_plan(graph, devices, request)
        prefill, decode = plan.predicted["prefill"], plan.predicted["decode"]
        found.append(
            Explored(
                point,
                decode.total_s,
                prefill.total_s * request.n_prefill_steps / prompt_tokens,
                decode.joules,
                sum(plan.memory.values()),
                plan.basis,
            )
        )
    found.sort(key=lambda e: e.goals)
    front = set(pareto([e.goals if e.point.fits else None for e in found]))
    return [replace(e, front=i in front) for i, e in enumerate(found)]


def pareto(goals: Sequence[Sequence[float] | None]) -> Iterator[int]:
    """The indices that nothing is better than everywhere or equal and somewhere better. None takes no part."""
    known = [(i, g) for i, g in enumerate(goals) if g is not None]
    for i, own in known:
        if not any(_dominates(other, own) for j, other in known if j != i):
            yield i


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def _roomy(device: FoundDevice) -> FoundDevice:
    def unlimited(space: MemorySpace) -> MemorySpace:
        return replace(space, capacity_bytes=_NO_LIMIT_BYTES)

    return replace(device, info=replace(device.info, spaces=tuple(map(unlimited, device.info.spaces))))
