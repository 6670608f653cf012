"""What a session asks of a model's graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from hetrun.errors import UsageError

ExtensionKind = Literal["linear", "yarn"]


@dataclass(frozen=True)
class RopeExtension:
    """A context longer than the model was trained for: positions are squeezed by `factor`."""

    kind: ExtensionKind
    factor: float

    @classmethod
    def parse(cls, text: str) -> RopeExtension:
        """ "yarn:4" or "linear:2". UsageError for anything else."""
        kind, _, number = text.partition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if kind not in get_args(ExtensionKind) or not 1.0 < factor <= 1024.0:
            raise UsageError(
                f"{text!r} extends no context", remedy="give a kind and a factor, as yarn:4 or linear:2 (up to 1024)"
            )
        return cls(cast(ExtensionKind, kind), factor)

    def __str__(self) -> str:
        return f"{self.kind}:{self.factor:g}"


@dataclass(frozen=True)
class GraphOptions:
    """What a session asks of the graph.

    n_ctx: tokens a sequence may reach (0: the model's own context, at most 4096).   n_slots: sequences held at once.
    max_tokens: tokens of a step.   max_rollback: tokens that may be taken back when attention is windowed.
    window, sink: a query sees the last `window` keys and the first `sink` (window 0: all). UsageError for negative
    numbers, and for a sink without a window.   extension: of the context that the model was trained for.
    """

    n_ctx: int = 0
    n_slots: int = 1
    max_tokens: int = 512
    max_rollback: int = 64
    kv_format: str = "f16"
    sink: int = 0
    window: int = 0
    extension: RopeExtension | None = None

    def __post_init__(self) -> None:
        remedy = "give a window of 1 or more and a sink of 0 or more, or neither for full attention"
        for name, value in (("window", self.window), ("sink", self.sink)):
            if value < 0:
                raise UsageError(f"an attention {name} of {value} tokens", remedy=remedy)
        if self.sink and not self.window:
            raise UsageError(f"an attention sink of {self.sink} tokens without a window", remedy=remedy)
