"""`hetrun profile`: where a model's time goes, predicted beside measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import click

from hetrun.cli import options
from hetrun.errors import UsageError


@click.command(
    "profile",
    short_help="Show where the time goes: predicted beside measured.",
    epilog=options.example(
        "hetrun profile --model smollm2-135m",
        "hetrun profile --model smollm2-135m --prompt-tokens 256 --html profile.html --trace trace.json",
    ),
)
@options.model
@click.option(
    "--prompt-tokens", type=click.IntRange(min=0), default=128, show_default=True, metavar="N",
    help="Tokens of the prompt; 0 leaves prefill out.",
)  # fmt: skip
@click.option(
    "--gen-tokens", type=click.IntRange(min=0), default=32, show_default=True, metavar="N",
    help="Steps of decode; 0 leaves it out.",
)  # fmt: skip
@click.option(
    "--repetitions", "-r", type=click.IntRange(min=1), default=3, show_default=True, metavar="N",
    help="How often to run both; figures are means over all.",
)  # fmt: skip
@click.option("--html", metavar="FILE", help="Write a page with time line, roofline and layer map, to open anywhere.")
@options.trace
@options.context("what the run needs")
@options.placement
@options.common
def command(
    model: str,
    prompt_tokens: int,
    gen_tokens: int,
    repetitions: int,
    html: str | None,
    trace: str | None,
    choice: options.Choice,
) -> None:
    """Runs a prompt of random tokens and some steps of decode, and shows what they took by device, kind of op, layer
    and what the device runs as one: predicted, measured, the error, and the share of the device's roof.

    One run before the ones that count warms up. docs/profiling.md says what each figure means.
    """
    from hetrun.cli.loading import load_model
    from hetrun.cli.recording import Recording
    from hetrun.run.bench import run_once

    if prompt_tokens == gen_tokens == 0:
        raise UsageError("nothing to profile", remedy="give --prompt-tokens or --gen-tokens more than 0")
    choice = replace(choice, n_ctx=choice.n_ctx or max(1, prompt_tokens) + gen_tokens)
    with Recording(profile=True, trace=trace, html=html) as recording, load_model(model, choice) as loaded:
        run_once(loaded.session, prompt_tokens, gen_tokens)
        recording.begin(loaded)
        for i in range(repetitions):
            print(f"running {i + 1} of {repetitions}", file=sys.stderr)
            run_once(loaded.session, prompt_tokens, gen_tokens)
        recording.write(loaded)
        record = recording.record(loaded)
    if options.flags().json:
        print(json.dumps(record))
        return
    from hetrun.view.profile import print_profile

    print_profile(record)
