"""`hetrun bench`: how fast a model runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import click

from hetrun.cli import options
from hetrun.errors import UsageError


@click.command(
    "bench",
    short_help="Measure prefill and decode in tokens/s.",
    epilog=options.example("hetrun bench --model smollm2-135m --prompt-tokens 128 --gen-tokens 64 --threads 2"),
)
@options.model
@click.option(
    "--prompt-tokens", "--pp", type=click.IntRange(min=0), default=128, show_default=True, metavar="N",
    help="Tokens of the prefill test; 0 leaves it out.",
)  # fmt: skip
@click.option(
    "--gen-tokens", "--tg", type=click.IntRange(min=0), default=64, show_default=True, metavar="N",
    help="Steps of the decode test; 0 leaves it out.",
)  # fmt: skip
@click.option(
    "--repetitions", "-r", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
    help="Measurements of each test.",
)  # fmt: skip
@options.context("what the tests need")
@options.placement
@options.common
def command(
    model: str,
    prompt_tokens: int,
    gen_tokens: int,
    repetitions: int,
    choice: options.Choice,
) -> None:
    """Measures prefill (pp: a prompt in one go) and decode (tg: one token a step) on random tokens.

    Prints the median of the repetitions with the slowest and the fastest; one more run before them warms up.
    """
    from hetrun.cli.loading import load_model
    from hetrun.run.bench import bench_decode, bench_prefill

    if prompt_tokens == gen_tokens == 0:
        raise UsageError("nothing to measure", remedy="give --prompt-tokens or --gen-tokens more than 0")
    choice = replace(choice, n_ctx=choice.n_ctx or max(prompt_tokens, gen_tokens + 1))
    tests = [(bench_prefill, prompt_tokens), (bench_decode, gen_tokens)]
    records = []
    with load_model(model, choice, stand_ins=False) as loaded:
        for bench, n in tests:
            if n:
                print(f"running {bench.__name__.removeprefix('bench_')} of {n} tokens", file=sys.stderr)
                result = bench(loaded.session, n, repetitions)
                records.append(
                    {
                        "model": loaded.path.stem,
                        "device": "+".join(loaded.plan.used_devices),
                        "threads": choice.threads,
                        "test": result.test,
                        "n": result.n,
                        "repetitions": repetitions,
                        "tps_median": result.tps_median,
                        "tps_min": min(result.tps),
                        "tps_max": max(result.tps),
                    }
                )
    if options.flags().json:
        print(json.dumps(records))
        return
    from hetrun.view.bench import print_bench

    print_bench(records)
