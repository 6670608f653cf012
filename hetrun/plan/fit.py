"""Placements within the limits there are: bytes of each memory, and seconds of a decode step where a rate is asked for.

The cheapest placement may need more than that. Then what is limited gets a price (the objective's unit for each byte or
second), found by bisection until the cheapest priced placement just fits (a Lagrangian relaxation). What the prices
leave unused is spliced in from a placement that is cheaper and too large. The best priced cost, less the price of all
that there is, bounds what any placement that fits can cost: so the gap that is reported is proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, sqrt

from hetrun.plan.cost import CostTable, Terms
from hetrun.plan.pack import pack
from hetrun.plan.plan import PHASES, Phase
from hetrun.plan.solve import block_ends, cheapest

Placements = Mapping[Phase, tuple[str, ...]]

STEP = "a decode step"
"""The limit that is no memory: seconds that one step of decode may take."""

_ROUNDS = 14
_DEAR = 1e6  # times a first guess at a price: memory then decides alone
_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True)
class Fit:
    """cost: what the objective counts for the placements.   bound: no placement that fits costs less."""

    placements: Placements
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the best that fits may lie below, as a share of it: 0 is proven best."""
        return max(0.0, self.cost / self.bound - 1.0) if self.bound > 0 else 0.0


@dataclass(frozen=True)
class Misfit:
    """No placement that fits was found. used: what the one that comes closest needs, by limit.

    proven: none that fits exists, and in memory none needs fewer bytes above the limits.
    """

    used: Mapping[str, float]
    proven: bool


@dataclass(frozen=True)
class Problem:
    """allowed: devices of each op.   terms: what the objective counts.   limits: bytes by space; seconds of `STEP`."""

    tables: Mapping[Phase, CostTable]
    allowed: Sequence[Sequence[str]]
    terms: Mapping[Phase, Terms]
    limits: Mapping[str, float]

    def cheapest(self, prices: Mapping[str, float] | None = None) -> Placements:
        """The best placements without limits, where what is limited has a price."""
        prices = prices or {}
        decode = self.terms["decode"]
        decode = replace(decode, per_second=decode.per_second + prices.get(STEP, 0.0))
        by_space = {space: price for space, price in prices.items() if space != STEP}
        return cheapest(self.tables, self.allowed, {**self.terms, "decode": decode}, by_space)

    def cost(self, placements: Placements) -> float:
        return sum(self.terms[p].of(self.tables[p].price(placements[p])) for p in PHASES)

    def bound(self, placements: Placements) -> float:
        """At most the cost; no other placements have less where `cheapest` chose these."""
        return sum(self.terms[p].of(self.tables[p].bound(placements[p])) for p in PHASES)

    def memory(self, placements: Placements) -> dict[str, int]:
        """Resident bytes by space. A block that both phases name on a device is one; host memory is one space however
        many devices use it."""
        blocks: dict[tuple[str, str, str], int] = {}
        for phase in PHASES:
            blocks.update(self.tables[phase].resident(placements[phase]))
        total: dict[str, int] = {}
        for (_, space, _), nbytes in blocks.items():
            total[space] = total.get(space, 0) + nbytes
        return total

    def used(self, placements: Placements) -> dict[str, float]:
        """What the placements take of everything that is limited."""
        used: dict[str, float] = dict(self.memory(placements))
        if STEP in self.limits:
            used[STEP] = self.tables["decode"].price(placements["decode"]).total_s
        return used

    def mostly_on(self, main: str) -> Placements:
        """All ops on one device, but for those that it does not take: they go to the first that does."""
        placement = tuple(main if main in ids else ids[0] for ids in self.allowed)
        return dict.fromkeys(PHASES, placement)

    def fits(self, placements: Placements) -> bool:
        return not self.overflowing(placements)

    def overflowing(self, placements: Placements) -> list[str]:
        """Limits that the placements exceed."""
        return [name for name, n in self.used(placements).items() if n > self.limits.get(name, 0) * _ROUNDING]

    @cached_property
    def fastest(self) -> Problem:
        """The same with no rate asked for, and the best rate as its objective."""
        limits = {name: limit for name, limit in self.limits.items() if name != STEP}
        return replace(self, terms={"prefill": Terms(0.0), "decode": Terms(1.0)}, limits=limits)


def fit(problem: Problem) -> Fit | Misfit:
    """The cheapest placements found that fit, with a bound; or how close any comes."""
    free = problem.cheapest()
    bound = problem.bound(free)
    if problem.fits(free):
        return Fit(free, problem.cost(free), bound)
    search = _Search(problem, free)
    misfit = search.start()
    if misfit:
        return misfit
    search.run()
    assert search.best is not None
    return Fit(search.best, search.best_cost, max(bound, search.bound))


class _Search:
    def __init__(self, problem: Problem, free: Placements) -> None:
        self.problem = problem
        self.best: Placements | None = None
        self.best_cost = inf
        self.bound = 0.0
        # The cheapest placements seen that do not fit: what splices start from.
        self.too_large = [free]
        # A first guess: memory, or time, as dear as what its use saves.
        cost, used = problem.cost(free), problem.used(free)
        n_bytes = sum(n for name, n in used.items() if name != STEP)
        self.guess = {name: cost / max(used[STEP] if name == STEP else n_bytes, 1e-12) for name in problem.limits}
        self.prices = {name: self.guess[name] for name in problem.overflowing(free)}
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}

    def start(self) -> Misfit | None:
        """Finds any placements that fit, or says how close one comes."""
        problem = self.problem
        for device in problem.tables["decode"].devices:
            self.offer(problem.mostly_on(device.id))
        if set(self.prices) - {STEP}:
            self.smallest()
        if self.best is not None:
            return None
        if STEP in problem.limits:
            fastest = fit(problem.fastest)
            if isinstance(fastest, Misfit):
                return fastest
            self.offer_each(fastest.placements)
            if self.best is None:
                return Misfit(problem.used(fastest.placements), proven=fastest.gap == 0.0)
            return None
        packing = pack(problem.tables, problem.allowed, problem.limits)
        self.offer(replace(problem, allowed=packing.allowed).cheapest())
        return Misfit(packing.used, packing.exact) if self.best is None else None

    def smallest(self) -> None:
        """Offers the placements where memory alone counts, in every space that is tight."""
        problem = self.problem
        tight = set(self.prices) - {STEP}
        overflowing = tight
        dear: dict[str, float] = {}
        while overflowing - set(dear):
            dear.update({space: _DEAR * self.guess[space] for space in overflowing})
            placements = problem.cheapest(dear)
            overflowing = set(problem.overflowing(placements)) - {STEP}
        self.high = {space: price for space, price in dear.items() if space not in overflowing}
        self.prices.update({space: self.guess[space] for space in dear})
        self.offer_each(placements)

    def run(self) -> None:
        problem = self.problem
        for _ in range(_ROUNDS):
            placements = problem.cheapest(self.prices)
            priced = problem.bound(placements) + self.relaxed_price(placements)
            self.bound = max(self.bound, priced - sum(p * problem.limits.get(s, 0) for s, p in self.prices.items()))
            if self.offer_each(placements):
                for other in self.too_large[-2:]:
                    self.splice(placements, other)
            else:
                self.too_large.append(placements)
            self.adjust(placements)

    def relaxed_price(self, placements: Placements) -> float:
        """What the solver paid: each op its share of the blocks that it names, half of it in each phase; and a step's
        time."""
        by_space = {space: price for space, price in self.prices.items() if space != STEP}
        paid = sum(
            self.problem.tables[phase].memory_price(i, device, by_space)
            for phase in PHASES
            for i, device in enumerate(placements[phase])
        )
        if STEP not in self.prices:
            return paid
        return paid + self.prices[STEP] * self.problem.tables["decode"].bound(placements["decode"]).total_s

    def adjust(self, placements: Placements) -> None:
        """Halves, in logarithms, the range in which each price lies."""
        overflowing = self.problem.overflowing(placements)
        for name in overflowing:
            self.prices.setdefault(name, self.guess.get(name, max(self.prices.values())))
        for name, price in self.prices.items():
            if name in overflowing:
                self.low[name] = price
                self.prices[name] = sqrt(price * self.high[name]) if name in self.high else price * 8
            else:
                self.high[name] = price
                self.prices[name] = sqrt(price * self.low[name]) if name in self.low else price / 8

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
