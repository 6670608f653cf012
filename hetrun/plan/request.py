"""What a plan is made for: lengths, and what is to be least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from hetrun.errors import UsageError
from hetrun.ops import Workload
from hetrun.plan.cost import Terms
from hetrun.plan.plan import Phase

Objective = Literal["latency", "ttft", "energy"]
"""latency: seconds of the whole answer.   ttft: of the prompt, the time to the first token.   energy: joules of all."""

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True)
class Request:
    """The lengths of prompt and answer, the sequences at once, and the objective.

    target_tps: tokens/s of decode, all sequences together, that the plan must reach; None for any.
    """

    prompt_tokens: int = 128
    gen_tokens: int = 128
    n_seqs: int = 1
    max_tokens: int = 512
    objective: Objective = "latency"
    target_tps: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(f"no objective {self.objective!r}", remedy=f"choose {', '.join(OBJECTIVES)}")
        if self.target_tps is not None and not 0 < self.target_tps < float("inf"):
            raise UsageError(f"a target of {self.target_tps} tokens/s", remedy="give a number above 0")

    def workload(self, phase: Phase) -> Workload:
        if phase == "prefill":  # the mean of the prompt's steps: costs grow with n_past in straight lines
            n = self.n_prefill_steps
            return Workload(-(-self.prompt_tokens // n), self.prompt_tokens * (n - 1) // (2 * n))
        return Workload(self.n_seqs, self.prompt_tokens + self.gen_tokens // 2, self.n_seqs, self.n_seqs)

    @property
    def n_prefill_steps(self) -> int:
        """Steps that run the prompt."""
        return -(-self.prompt_tokens // self.max_tokens)

    @property
    def terms(self) -> Mapping[Phase, Terms]:
        """What a step of each phase counts."""
        steps: dict[Phase, float] = {"prefill": float(self.n_prefill_steps), "decode": float(self.gen_tokens)}
        if self.objective == "ttft":
            steps["decode"] = 0.0
        if self.objective == "energy":
            return {phase: Terms(0.0, n) for phase, n in steps.items()}
        return {phase: Terms(n) for phase, n in steps.items()}

    @property
    def step_limit_s(self) -> float | None:
        """Seconds that a step of decode may take."""
        return None if self.target_tps is None else self.n_seqs / self.target_tps

    def total_seconds(self, prefill_s: float, decode_s: float) -> float:
        """Of the whole answer, from the cost of one step of each phase."""
        return prefill_s * self.n_prefill_steps + decode_s * self.gen_tokens
