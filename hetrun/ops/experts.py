"""Mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from hetrun.ops.op import Op, Unary, Value, Workload
from hetrun.ops.vector import FUNCTIONS, Function
from hetrun.tensor import Weight


@dataclass(frozen=True)
class Route(Unary):
    """Which experts a row is given to, and how much each counts: [rows, n_experts].

    The softmax of each row's scores, kept where it is among the n_used largest (of equal ones the first), 0 elsewhere;
    with `normalise` divided by the sum of what is kept; times `factor`.   x: the router's scores, [rows, n_experts].
    """

    n_used: int
    normalise: bool = True
    factor: float = 1.0
    kind: ClassVar[str] = "route"

    def __post_init__(self) -> None:
        self._check(1 <= self.n_used <= self.x.width, f"{self.n_used} of {self.x.width} experts")

    def flops(self, workload: Workload) -> int:
        return 6 * super().flops(workload)


@dataclass(frozen=True)
class Experts(Op):
    """The sum over experts e of routes[e] * down[e] (f(gate[e] x) * (up[e] x)), over those whose route is not 0.

    x: [rows, n_in].   routes: [rows, n_experts], at most n_used of a row not 0.   gate, up: [n_experts, n_ff, n_in].
    down: [n_experts, n_out, n_ff].   function: as in GatedActivation.
    """

    x: Value
    routes: Value
    n_used: int
    gate: Weight
    up: Weight
    down: Weight
    function: Function = "silu"
    kind: ClassVar[str] = "experts"

    def __post_init__(self) -> None:
        self._check(self.x.rows == self.routes.rows, f"{self.x.rows} of {self.x.name} with routes of another batch")
        self._check(self.function in FUNCTIONS, f"unknown function {self.function!r}")
        self._check(1 <= self.n_used <= self.n_experts, f"{self.n_used} of {self.n_experts} experts")
        n_ff = self.gate.shape[1] if len(self.gate.shape) == 3 else 0
        for weight, width in ((self.gate, self.x.width), (self.up, self.x.width), (self.down, n_ff)):
            self._check(
                len(weight.shape) == 3 and weight.shape[0] == self.n_experts and weight.shape[2] == width,
                f"{weight.name} is {weight.shape}, not {self.n_experts} matrices with rows of {width}",
            )
        self._check(self.up.shape == self.gate.shape, f"gate is {self.gate.shape}, but up is {self.up.shape}")

    @property
    def n_experts(self) -> int:
        return self.routes.width

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.down.shape[1], self.x.rows)

    def flops(self, workload: Workload) -> int:
        """Those of the experts that rows are given to."""
        of_one = sum(2 * w.n_elements for w in self.weights) // self.n_experts
        return workload.rows(self.x.rows) * self.n_used * (of_one + 6 * self.gate.shape[1])

    def weight_bytes(self, workload: Workload) -> int:
        """Bytes of the experts that a step reads, on average where rows choose among them evenly."""
        missed = (1.0 - self.n_used / self.n_experts) ** workload.rows(self.x.rows)
        return int(sum(w.nbytes for w in self.weights) * (1.0 - missed))
