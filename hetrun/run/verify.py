"""Measures what a plan was made for: a prompt in one go, then decode step by step."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from hetrun.run.session import Session


@dataclass(frozen=True)
class Measured:
    """Seconds of the whole prompt and of one step of decode, of each repetition."""

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]

    @property
    def prefill_median_s(self) -> float:
        return statistics.median(self.prefill_s)

    @property
    def decode_median_s(self) -> float:
        return statistics.median(self.decode_s)

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.prefill_s + other.prefill_s, self.decode_s + other.decode_s)


def measure(
    session: Session,
    prompt_tokens: int,
    gen_tokens: int,
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Runs a prompt and an answer of random tokens, once to warm up and then `repetitions` times. A step's time is the
    mean over the answer, since steps grow with what came before. ContextError where the context is too short.
    """
    session.check_room(prompt_tokens + gen_tokens)
    rng = random.Random(0)
    prompt = [rng.randrange(session.n_vocab) for _ in range(prompt_tokens)]
    answer = [rng.randrange(session.n_vocab) for _ in range(max(gen_tokens, 1))]
    prefill, decode = [], []
    for _ in range(repetitions + 1):
        session.truncate(0, 0)
        started = clock()
        session.feed(prompt)
        prompted = clock()
        for token in answer:
            session.feed([token])
        ended = clock()
        prefill.append(prompted - started)
        decode.append((ended - prompted) / len(answer))
    return Measured(tuple(prefill[1:]), tuple(decode[1:]))
