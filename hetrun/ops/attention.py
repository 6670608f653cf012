"""Positions, and attention over what came before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from hetrun.ops.kv import KvSpec
from hetrun.ops.op import Op, Unary, Value, Workload, anonymous


@dataclass(frozen=True)
class Rope(Unary):
    """Rotates pairs of each head by position * frequency; elements beyond the pairs pass through.

    frequencies: radians a position, one for each pair, all scaling kinds already applied.   magnitude: factor on the
    rotated elements (YaRN).   layout: pair i is elements (2i, 2i+1) "interleaved", or (i, i + n_pairs) "half".
    max_position: a token beyond it is rotated as one that stands there; None for no such bound.
    """

    head_dim: int
    layout: Literal["interleaved", "half"]
    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    max_position: int | None = None
    kind: ClassVar[str] = "rope"

    def __post_init__(self) -> None:
        self._check(self.layout in ("interleaved", "half"), f"unknown layout {self.layout!r}")
        self._check(
            self.head_dim > 0 and self.x.width % self.head_dim == 0, f"{self.x.width} in heads of {self.head_dim}"
        )
        self._check(
            2 * len(self.frequencies) <= self.head_dim, f"{len(self.frequencies)} pairs in a head of {self.head_dim}"
        )
        self._check(self.max_position is None or self.max_position >= 0, f"no position is below {self.max_position}")

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """Costs go by the number of pairs, so a plan made of a header alone serves the file with its factors."""
        return (self.kind, anonymous(self.x), self.head_dim, self.layout, len(self.frequencies))

    def flops(self, workload: Workload) -> int:
        return 3 * super().flops(workload)


@dataclass(frozen=True)
class Attention(Op):
    """Writes k and v of the batch into the KV cache, then softmax(scale * q K^T) V for each head over the visible keys.

    q: [tokens, n_heads * head_dim].   k, v: [tokens, n_heads_kv * head_dim]; n_heads is a multiple of n_heads_kv,
    and head h reads KV head h // (n_heads / n_heads_kv).   soft_cap: 0 for none, else scores become cap * tanh(score
    / cap).
    q_sink: queries that meet the keys of the first kv.sink positions instead of q, None for q itself. Rotated as at
    position sink + window - 1 at most, they see those keys just before the window, however far it has moved on
    (StreamingLLM, arXiv 2309.17453, section 3.2).
    """

    q: Value
    k: Value
    v: Value
    kv: KvSpec
    scale: float
    soft_cap: float = 0.0
    q_sink: Value | None = None
    kind: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        self._check_same(self.k, self.v)
        self._check(self.k.width == self.kv.width, f"keys are {self.k.width} wide, the cache {self.kv.width}")
        self._check(self.q.width % self.kv.width == 0, f"queries of {self.q.width} over keys of {self.kv.width}")
        self._check(self.q.rows == self.k.rows == "tokens", "queries and keys have one row a token")
        if self.q_sink is not None:
            self._check_same(self.q, self.q_sink)
            self._check(self.kv.sink > 0, "queries of their own for sinks, but no sinks")

    @property
    def n_heads(self) -> int:
        return self.q.width // self.kv.head_dim

    @cached_property
    def output(self) -> Value:
        return Value(self.name, self.q.width)

    def _n_visible(self, workload: Workload) -> int:
        """Query-key pairs of the step, all sequences."""
        per_seq = max(1, workload.n_tokens // max(1, workload.n_seqs))
        first, last = workload.n_past, workload.n_past + per_seq - 1
        mean = (self.kv.n_visible(first) + self.kv.n_visible(last)) / 2
        return int(workload.n_tokens * mean)

    def flops(self, workload: Workload) -> int:
        return 4 * self.q.width * self._n_visible(workload)

    def kv_bytes(self, workload: Workload) -> int:
        last = workload.n_past + max(1, workload.n_tokens // max(1, workload.n_seqs)) - 1
        read = workload.n_seqs * self.kv.n_visible(last)
        return (read + workload.n_tokens) * self.kv.token_bytes()
