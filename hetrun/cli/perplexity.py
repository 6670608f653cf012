"""`hetrun perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from hetrun.cli import options

if TYPE_CHECKING:
    from hetrun.run.perplexity import Perplexity

DEFAULT_CTX = 512


@click.command(
    "perplexity",
    short_help="Measure how well a model predicts a text.",
    epilog=options.example("hetrun perplexity --model smollm2-135m --file wiki.txt --ctx 512"),
)
@options.model
@click.option("--file", "-f", "file", default="-", metavar="FILE|-", help="The text; - (the default) reads stdin.")
@click.option(
    "--ctx", "--chunk", "n_ctx", type=click.IntRange(min=2), metavar="N",
    help=f"Tokens of a chunk (default: {DEFAULT_CTX}, less where the model has less).",
)  # fmt: skip
@options.placement
@options.common
def command(
    model: str,
    file: str,
    choice: options.Choice,
) -> None:
    """Prints the perplexity of a text: exp of the mean of -ln p over the tokens.

    The text is tokenized as a whole and cut into chunks of --ctx tokens. Each chunk is run on its own from an empty
    context; where the model uses BOS, each begins with it. Every token of a chunk but its first is scored.
    """
    text = options.text_of_file(file, file)
    from hetrun.cli.loading import load_model
    from hetrun.run.perplexity import perplexity

    n_ctx = choice.n_ctx or _default_ctx(model)
    choice = replace(choice, n_ctx=n_ctx)
    started = time.perf_counter()
    with load_model(model, choice) as loaded:
        load_s = time.perf_counter() - started
        tokenizer = loaded.tokenizer
        ids = loaded.tokenize(text, add_special=False)
        bos_id = tokenizer.bos_id if tokenizer.add_bos else None
        tokenizer.release_encoder()
        started = time.perf_counter()
        result = perplexity(loaded.session, ids, n_ctx=n_ctx, bos_id=bos_id, progress=_Progress())
        seconds = time.perf_counter() - started
        used = list(loaded.plan.used_devices)
    if options.flags().json:
        record = {
            "ppl": result.ppl if math.isfinite(result.ppl) else None,
            "tokens": result.n_scored,
            "nll": result.nll,
            "text_tokens": len(ids),
            "ctx": n_ctx,
            "seconds": seconds,
            "load_s": load_s,
            "model": str(loaded.path),
            "devices": used,
        }
        print(json.dumps(record))
    else:
        print(f"{result.ppl:.4f}")
        print(f"[{result.n_scored} tokens scored in {seconds:.1f} s, chunks of {n_ctx}]", file=sys.stderr)


def _default_ctx(model: str) -> int:
    from hetrun.model.catalog import resolve_model
    from hetrun.model.gguf_file import ModelFile

    with ModelFile.open(resolve_model(model)) as file:
        n_ctx = file.metadata.get(f"{file.architecture}.context_length")
    return min(n_ctx, DEFAULT_CTX) if isinstance(n_ctx, int) else DEFAULT_CTX


class _Progress:
    """A line on stderr about every second, where someone watches."""

    def __init__(self) -> None:
        self.shown = time.monotonic()

    def __call__(self, done: int, n_chunks: int, so_far: Perplexity) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - self.shown >= 1.0:
            self.shown = now
            print(f"chunk {done} of {n_chunks}: {so_far.ppl:.4f}", file=sys.stderr)
