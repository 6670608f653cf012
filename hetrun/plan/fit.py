"""Placements within the memory there is.

The cheapest placement may need more bytes of a space than it has. Then bytes get a price: seconds a byte, for each
space that overflows, found by bisection until the cheapest priced placement just fits (a Lagrangian relaxation). What
the prices leave unused is spliced in from a placement that is cheaper and too large. The best priced cost, less the
price of all the memory there is, bounds what any placement that fits can cost: so the gap that is reported is proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

from hetrun.plan.cost import CostTable
from hetrun.plan.plan import PHASES, Phase
from hetrun.plan.solve import block_ends, cheapest

Placements = Mapping[Phase, tuple[str, ...]]

_ROUNDS = 14
_DEAR = 1e6  # times a first guess at a price: memory then decides alone


@dataclass(frozen=True)
class Fit:
    """cost: weighted seconds of the placements.   bound: no placement that fits costs less."""

    placements: Placements
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the best that fits may lie below, as a share of it: 0 is proven best."""
        return max(0.0, self.cost / self.bound - 1.0) if self.bound > 0 else 0.0


@dataclass(frozen=True)
class Problem:
    """allowed: devices of each op.   weights: steps of each phase.   capacity: bytes by space."""

    tables: Mapping[Phase, CostTable]
    allowed: Sequence[Sequence[str]]
    weights: Mapping[Phase, float]
    capacity: Mapping[str, int]

    def cost(self, placements: Placements) -> float:
        return sum(self.weights[p] * self.tables[p].price(placements[p]).total_s for p in PHASES)

    def used(self, placements: Placements) -> dict[str, int]:
        """Resident bytes by space. A block that both phases name on a device is one; host memory is one space however
        many devices use it."""
        blocks: dict[tuple[str, str, str], int] = {}
        for phase in PHASES:
            blocks.update(self.tables[phase].resident(placements[phase]))
        total: dict[str, int] = {}
        for (_, space, _), nbytes in blocks.items():
            total[space] = total.get(space, 0) + nbytes
        return total

    def mostly_on(self, main: str) -> Placements:
        """All ops on one device, but for those that it does not take: they go to the first that does."""
        placement = tuple(main if main in ids else ids[0] for ids in self.allowed)
        return dict.fromkeys(PHASES, placement)

    def fits(self, placements: Placements) -> bool:
        return not self.overflowing(placements)

    def overflowing(self, placements: Placements) -> list[str]:
        """Spaces that the placements overfill."""
        return [s for s, n in self.used(placements).items() if n > self.capacity.get(s, 0)]


def fit(problem: Problem) -> Fit | None:
    """The cheapest placements found that fit, with a bound. None where none was found."""
    free = cheapest(problem.tables, problem.allowed, problem.weights)
    bound = problem.cost(free)
    if problem.fits(free):
        return Fit(free, bound, bound)
    search = _Search(problem, free)
    search.run()
    if search.best is None:
        return None
    return Fit(search.best, search.best_cost, max(bound, search.bound))


class _Search:
    def __init__(self, problem: Problem, free: Placements) -> None:
        self.problem = problem
        self.best: Placements | None = None
        self.best_cost = inf
        self.bound = 0.0
        # The cheapest placements seen that do not fit: what splices start from.
        self.too_large = [free]
        # A first guess: memory as dear as the time that its use saves.
        self.guess = problem.cost(free) / max(1, sum(problem.used(free).values()))
        self.prices: dict[str, float] = {}
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}

    def run(self) -> None:
        problem = self.problem
        for device in problem.tables["decode"].devices:
            self.offer(problem.mostly_on(device.id))
        if not self.smallest():
            return
        self.prices = dict.fromkeys(self.prices, self.guess)
        for _ in range(_ROUNDS):
            placements = cheapest(problem.tables, problem.allowed, problem.weights, self.prices)
            priced = problem.cost(placements) + self.relaxed_price(placements)
            self.bound = max(self.bound, priced - sum(p * problem.capacity.get(s, 0) for s, p in self.prices.items()))
            if self.offer_each(placements):
                for other in self.too_large[-2:]:
                    self.splice(placements, other)
            else:
                self.too_large.append(placements)
            self.adjust(placements)

    def smallest(self) -> bool:
        """Whether placements fit where memory alone counts, in every space that is tight. They are offered."""
        problem = self.problem
        overflowing = problem.overflowing(self.too_large[0])
        while set(overflowing) - set(self.prices):
            self.prices.update(dict.fromkeys(overflowing, _DEAR * self.guess))
            placements = cheapest(problem.tables, problem.allowed, problem.weights, self.prices)
            overflowing = problem.overflowing(placements)
        self.high = dict(self.prices)
        self.offer_each(placements)
        return self.best is not None

    def relaxed_price(self, placements: Placements) -> float:
        """What the solver paid for memory: each op its share of the blocks that it names, half of it in each phase."""
        return sum(
            self.problem.tables[phase].memory_price(i, device, self.prices)
            for phase in PHASES
            for i, device in enumerate(placements[phase])
        )

    def adjust(self, placements: Placements) -> None:
        """Halves, in logarithms, the range in which each space's price lies."""
        overflowing = self.problem.overflowing(placements)
        for space in overflowing:
            self.prices.setdefault(space, max(self.prices.values()))
        for space, price in self.prices.items():
            if space in overflowing:
                self.low[space] = price
                self.prices[space] = sqrt(price * self.high[space]) if space in self.high else price * 8
            else:
                self.high[space] = price
                self.prices[space] = sqrt(price * self.low[space]) if space in self.low else price / 8

    def offer(self, placements: Placements) -> bool:
        """Whether the placements fit; keeps the cheapest that do."""
        fits = self.problem.fits(placements)
        cost = self.problem.cost(placements)
        if fits and cost < self.best_cost:
            self.best, self.best_cost = placements, cost
        return fits

    def offer_each(self, placements: Placements) -> bool:
        """As `offer`; and each phase's placement for both, where a weight is in one memory only."""
        for placement in placements.values():
            self.offer(dict.fromkeys(PHASES, placement))
        return self.offer(placements)

    def splice(self, fitting: Placements, larger: Placements) -> None:
        """As many blocks of the cheaper placement as fit, from the beginning or from the end."""
        ends = block_ends(self.problem.tables["prefill"].graph)
        for first, second in ((larger, fitting), (fitting, larger)):
            low, high = (0, len(ends)) if first is larger else (len(ends), 0)
            # How much fits grows with the share of `larger`, so that the border is found by bisection.
            while abs(high - low) > 1:
                middle = (low + high) // 2
                joined = {p: (*first[p][: ends[middle - 1]], *second[p][ends[middle - 1] :]) for p in PHASES}
                if self.offer(joined):
                    low = middle
                else:
                    high = middle
