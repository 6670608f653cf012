"""Ops that read a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from hetrun.ops.op import Op, Value, Workload
from hetrun.tensor import Weight


@dataclass(frozen=True)
class Embedding(Op):
    """Rows of the table for the batch's token ids.   weight: [n_vocab, n_embd]."""

    weight: Weight
    kind: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        self._check(len(self.weight.shape) == 2, f"the table must be a matrix, not {self.weight.shape}")

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.weight.shape[1])

    def flops(self, workload: Workload) -> int:
        return 0

    def weight_bytes(self, workload: Workload) -> int:
        return workload.n_tokens * self.weight.type.row_bytes(self.weight.shape[1])


@dataclass(frozen=True)
class MatMul(Op):
    """y = x W^T.   x: [rows, n_in].   weight: [n_out, n_in]."""

    x: Value
    weight: Weight
    kind: ClassVar[str] = "matmul"

    def __post_init__(self) -> None:
        self._check(len(self.weight.shape) == 2, f"the weight must be a matrix, not {self.weight.shape}")
        self._check(
            self.weight.shape[1] == self.x.width,
            f"{self.weight.name} has rows of {self.weight.shape[1]} but {self.x.name} is {self.x.width} wide",
        )

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.weight.shape[0], self.x.rows)

    def flops(self, workload: Workload) -> int:
        return 2 * workload.rows(self.x.rows) * self.weight.n_elements
