"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hetrun.device import Batch
from hetrun.errors import DeviceError, UsageError
from hetrun.run.session import Session


@dataclass(frozen=True)
class Perplexity:
    """n_scored: tokens that were predicted.   nll: the sum of -ln p over them."""

    n_scored: int
    nll: float

    @property
    def ppl(self) -> float:
        """exp of the mean -ln p; infinite where that overflows."""
        try:
            return math.exp(self.nll / self.n_scored)
        except OverflowError:
            return math.inf


def chunks(ids: Sequence[int], n_ctx: int, bos_id: int | None) -> list[list[int]]:
    """The text in pieces of n_ctx tokens, the last one shorter, each begun with BOS where there is one."""
    head = [] if bos_id is None else [bos_id]
    size = n_ctx - len(head)
    if size < 1 or n_ctx < 2:
        raise UsageError(f"a context of {n_ctx} leaves no token to predict", remedy="use --ctx 2 or more")
    return [[*head, *ids[i : i + size]] for i in range(0, len(ids), size)]


def perplexity(
    session: Session,
    ids: Sequence[int],
    *,
    n_ctx: int,
    bos_id: int | None = None,
    progress: Callable[[int, int, Perplexity], None] | None = None,
) -> Perplexity:
    """Scores every token of each chunk but the chunk's first one, each chunk on its own (slot 0, from position 0).

    ids: the text, without BOS.   n_ctx: tokens of a chunk.   bos_id: begins each chunk; None for models without.
    progress: called with chunks done, all chunks, and the result so far.
    UsageError where nothing can be scored, DeviceError where a logit is NaN.
    """
    pieces = [c for c in chunks(ids, n_ctx, bos_id) if len(c) > 1]
    if not pieces:
        raise UsageError("the text has fewer than two tokens: nothing to predict", remedy="give a longer text")
    total = Perplexity(0, 0.0)
    for done, chunk in enumerate(pieces, 1):
        for nll in _chunk_nll(session, chunk):
            total = Perplexity(total.n_scored + 1, total.nll + nll)
        if progress:
            progress(done, len(pieces), total)
    return total


def _chunk_nll(session: Session, chunk: Sequence[int]) -> Iterator[float]:
    """-ln p of each token after the first."""
    session.truncate(0, 0)
    size = min(session.max_tokens, session.max_outputs)
    for start in range(0, len(chunk) - 1, size):
        part = chunk[start : min(start + size, len(chunk) - 1)]
        n = len(part)
        logits = session.step(Batch.of(part, range(start, start + n), [0] * n, range(n)))
        rows = np.asarray(logits, np.float32).reshape(n, session.n_vocab).astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(n), chunk[start + 1 : start + 1 + n]]
        for nll in np.log(np.exp(rows).sum(axis=1)) - chosen:
            if math.isnan(nll):
                raise DeviceError("a logit is NaN", remedy='the file or a device is faulty: see "hetrun devices"')
            yield float(nll)
