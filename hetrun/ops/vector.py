"""Ops on rows: norms, sums, products, the choice of some."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

from hetrun.ops.op import Op, Unary, Value, Workload
from hetrun.tensor import Weight

Function = Literal["silu", "gelu"]
FUNCTIONS: tuple[str, ...] = get_args(Function)
"""Of activations; gelu in its tanh form."""


@dataclass(frozen=True)
class RmsNorm(Unary):
    """x / sqrt(mean(x^2) + eps) * weight over groups of len(weight) elements (one group, or one a head)."""

    weight: Weight
    eps: float
    kind: ClassVar[str] = "rms_norm"

    def __post_init__(self) -> None:
        self._check(len(self.weight.shape) == 1, f"the weight must be a vector, not {self.weight.shape}")
        self._check(
            self.x.width % self.weight.shape[0] == 0, f"{self.x.width} elements in groups of {self.weight.shape[0]}"
        )

    def flops(self, workload: Workload) -> int:
        return 4 * super().flops(workload)


@dataclass(frozen=True)
class Bias(Unary):
    """y = x + weight, the same vector for every row.   weight: [width]."""

    weight: Weight
    kind: ClassVar[str] = "bias"

    def __post_init__(self) -> None:
        self._check(
            self.weight.shape == (self.x.width,), f"a bias of {self.weight.shape} for a width of {self.x.width}"
        )


@dataclass(frozen=True)
class GatedActivation(Op):
    """f(gate) * up, elementwise.   function: f, of FUNCTIONS."""

    gate: Value
    up: Value
    function: Function = "silu"
    kind: ClassVar[str] = "gated_activation"

    def __post_init__(self) -> None:
        self._check_same(self.gate, self.up)
        self._check(self.function in FUNCTIONS, f"unknown function {self.function!r}")

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.gate.width, self.gate.rows)

    def flops(self, workload: Workload) -> int:
        return 6 * super().flops(workload)


@dataclass(frozen=True)
class Add(Op):
    """a + b, elementwise."""

    a: Value
    b: Value
    kind: ClassVar[str] = "add"

    def __post_init__(self) -> None:
        self._check_same(self.a, self.b)

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.a.width, self.a.rows)


@dataclass(frozen=True)
class Scale(Unary):
    """x * factor."""

    factor: float
    kind: ClassVar[str] = "scale"


@dataclass(frozen=True)
class SoftCap(Unary):
    """cap * tanh(x / cap)."""

    cap: float
    kind: ClassVar[str] = "soft_cap"

    def __post_init__(self) -> None:
        self._check(self.cap > 0, f"the cap must be positive, not {self.cap}")

    def flops(self, workload: Workload) -> int:
        return 4 * super().flops(workload)


@dataclass(frozen=True)
class SelectRows(Op):
    """The rows of x whose logits are wanted (`Batch.outputs`)."""

    x: Value
    kind: ClassVar[str] = "select_rows"

    def __post_init__(self) -> None:
        self._check(self.x.rows == "tokens", f"{self.x.name} has no row a token")

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.x.width, "outputs")

    def flops(self, workload: Workload) -> int:
        return 0
