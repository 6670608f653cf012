"""Measures prefill and decode on random tokens."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from hetrun.run.session import Session


@dataclass(frozen=True)
class BenchResult:
    """test: "pp128" (prefill of 128 tokens) or "tg64" (64 steps of one token).   tps: tokens/s of each repetition."""

    test: str
    n: int
    tps: tuple[float, ...]

    @property
    def tps_median(self) -> float:
        return statistics.median(self.tps)


def bench_prefill(
    session: Session, n: int, repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> BenchResult:
    """Runs a prompt of n random tokens from an empty context, once to warm up and then `repetitions` times."""
    tokens = _random_tokens(session, n)

    def measure() -> float:
        session.truncate(0, 0)
        started = clock()
        session.feed(tokens)
        return clock() - started

    return _repeat(f"pp{n}", n, repetitions, measure)


def bench_decode(
    session: Session, n: int, repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> BenchResult:
    """Runs n steps of one random token each behind a first one; nothing is sampled, and no token ends it."""
    first, *tokens = _random_tokens(session, n + 1)

    def measure() -> float:
        session.truncate(0, 0)
        session.feed([first])
        started = clock()
        for token in tokens:
            session.feed([token])
        return clock() - started

    return _repeat(f"tg{n}", n, repetitions, measure)


def run_once(session: Session, prompt_tokens: int, gen_tokens: int) -> None:
    """A prompt of random tokens in an empty context, and steps of one random token behind it.

    Without a prompt the first token's step comes before those that are counted: it is left out of the session's trace.
    """
    session.truncate(0, 0)
    tokens = _random_tokens(session, max(1, prompt_tokens) + gen_tokens)
    prompt, answer = tokens[: max(1, prompt_tokens)], tokens[max(1, prompt_tokens) :]
    recording = session.trace.enabled
    if prompt_tokens == 0:
        session.record(False)
    session.feed(prompt)
    session.record(recording)
    for token in answer:
        session.feed([token])


def _repeat(test: str, n: int, repetitions: int, measure: Callable[[], float]) -> BenchResult:
    measure()
    return BenchResult(test, n, tuple(n / max(measure(), 1e-9) for _ in range(repetitions)))


def _random_tokens(session: Session, n: int) -> list[int]:
    rng = random.Random(0)  # the same on every machine and device
    return [rng.randrange(session.n_vocab) for _ in range(n)]
