"""Generates text: prompt tokens in, pieces of text out, one session slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hetrun.errors import ContextError, UsageError
from hetrun.model.tokenizer import Tokenizer
from hetrun.run.sample import Sampler, Sampling
from hetrun.run.session import Session

if TYPE_CHECKING:
    from hetrun.run.constraint import Constraint

FinishReason = Literal["end", "stop", "length", "context", "interrupted"]
"""end: the model ended its answer, or the grammar allows no more.   stop: a stop string.   length: max_tokens.
context: no room left.
"""


class StopFilter:
    """Passes text on until one of the stop strings, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not s for s in stops):
            raise UsageError("a stop string must not be empty", remedy="leave out the empty --stop")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be shown now; sets `stopped` once a stop string is complete."""
        self._held += text
        found = [i for s in self._stops if (i := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(s) for s in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)


@dataclass
class Generation:
    """An answer in the making: iterate over it for pieces of text. Figures are complete when the iteration ends.

    tokens: ids generated so far, the end token left out.   prefill_s: until the first logits.   decode_s: steps and
    choices from there on, without the time between the pieces.
    reused_tokens: prompt tokens found in the KV cache.   constraint: what the text is held to, for this one alone.
    """

    session: Session
    tokenizer: Tokenizer
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: Sequence[str] = ()
    slot: int = 0
    constraint: Constraint | None = None
    clock: Callable[[], float] = time.perf_counter

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    reused_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise UsageError(f"max-tokens must not be negative, is {self.max_tokens}")
        if not self.prompt:
            raise UsageError(
                "the prompt has no tokens", remedy="give some text: --prompt TEXT, or --prompt - for stdin"
            )
        if len(self.prompt) > self.session.n_ctx:
            raise ContextError(
                f"the prompt has {len(self.prompt)} tokens, the context holds {self.session.n_ctx}",
                remedy="use a larger --ctx, or a shorter prompt",
            )
        self._pieces = self._generate()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens run per second."""
        return (len(self.prompt) - self.reused_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens per second after the first, whose logits belong to the prefill."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s and len(self.tokens) > 1 else 0.0

    def finish(self) -> str:
        """Runs to the end and returns the whole text."""
        for _ in self._pieces:
            pass
        return self.text

    def _generate(self) -> Iterator[str]:
        stream = self.tokenizer.stream()
        stop = StopFilter(self.stops)
        for token in self._choose_tokens():
            piece = stop.feed(stream.feed(token))
            if stop.stopped:
                self.finish_reason = "stop"
            self.text += piece
            if piece:
                yield piece
            if stop.stopped:
                return
        rest = stop.feed(stream.flush())
        rest += stop.flush()
        self.text += rest
        if rest:
            yield rest

    def _choose_tokens(self) -> Iterator[int]:
        if self.max_tokens == 0:
            self.finish_reason = "length"
            return
        sampler = Sampler(self.sampling, self.prompt)
        self.seed = sampler.seed
        constraint = self.constraint
        # Where the best is taken it is rarely refused: then what else may come is found out when it is.
        prepare = constraint.prepare if constraint and not sampler.takes_best else None
        started = self.clock()
        self.reused_tokens = self.session.reuse(self.prompt, self.slot)
        logits = self.session.feed(self.prompt[self.reused_tokens :], self.slot, prepare)
        self.prefill_s = self.clock() - started
        while True:
            started = self.clock()
            token = constraint.choose(sampler, logits) if constraint else sampler.choose(logits)
            ends = token in self.tokenizer.eog_ids
            if constraint and not ends:
                constraint.accept(token)
            self.decode_s += self.clock() - started
            if ends:
                self.finish_reason = "end"
                return
            self.tokens.append(token)
            yield token
            if constraint and constraint.complete:
                self.finish_reason = "end"
                return
            if len(self.tokens) == self.max_tokens:
                self.finish_reason = "length"
                return
            if self.session.length(self.slot) == self.session.n_ctx:
                self.finish_reason = "context"
                return
            started = self.clock()
            logits = self.session.feed([token], self.slot, prepare)
            self.decode_s += self.clock() - started
