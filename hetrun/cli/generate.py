"""`hetrun generate`: continues a prompt."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from hetrun.cli import options
from hetrun.cli.grammar_file import read_grammar, structured
from hetrun.cli.process import age_s, peak_rss_bytes
from hetrun.errors import HetrunError, UsageError


@click.command(
    "generate",
    short_help="Continue a prompt.",
    epilog=options.example(
        'hetrun generate --model smollm2-135m --prompt "The capital of France is" --max-tokens 32',
        "hetrun generate --model model.gguf --prompt - --json < prompt.txt",
        'hetrun generate --model smollm2-135m --prompt "A person, as JSON:" --json-schema person.json',
    ),
)
@options.model
@click.option(
    "--prompt", "-p", required=True, metavar="TEXT|-", help="Text to continue; - reads stdin, less a final line break."
)
@options.sampling(temperature=0.0)
@structured
@options.context()
@options.placement
@click.option("--profile", is_flag=True, help="Show where the time went, predicted beside measured, on stderr.")
@click.option(
    "--live", is_flag=True, help="Show tokens/s, how busy devices are and the layers' time, while generating."
)
@options.trace
@click.option(
    "--special", "--parse-special", "parse_special", is_flag=True,
    help='Read "<|im_start|>" and the like in the prompt as the tokens they name.',
)  # fmt: skip
@options.common
def command(
    model: str,
    prompt: str,
    max_tokens: int | None,
    stops: tuple[str, ...],
    json_schema: str | None,
    grammar: str | None,
    parse_special: bool,
    choice: options.Choice,
    profile: bool,
    live: bool,
    trace: str | None,
    **sampling: Any,
) -> int:
    """Continues a prompt, and prints the text as it comes. Figures go to stderr, or with --json into the result.

    Ctrl-C ends with what was generated so far, exit code 130.
    """
    from hetrun.cli.figures import figures, modelled, print_line, print_modelled, segments
    from hetrun.cli.loading import load_model
    from hetrun.cli.recording import Recording
    from hetrun.run.generate import StopFilter
    from hetrun.run.sample import Sampling

    # Checked before the model is loaded, so that a slip costs no wait.
    Sampling(**sampling)
    StopFilter(stops)
    held_to = read_grammar(json_schema, grammar)
    text = options.text_or_stdin(prompt, "--prompt")
    as_json = options.flags().json
    if live and as_json:
        raise UsageError("--live and --json exclude each other", remedy="--profile --json has the figures of the view")
    started = time.perf_counter()
    # In a child process: what encoding needs is as large as a small model's KV cache, and not wanted again.
    with (
        Recording(profile=profile, live=live, trace=trace) as recording,
        load_model(model, choice, lambda t: t.encode(text, parse_special=parse_special)) as loaded,
    ):
        ids = loaded.encoded()
        loaded.tokenizer.release_encoder()  # and what loading freed with it: peak memory is promised
        load_s = time.perf_counter() - started
        generation = loaded.generate(ids, max_tokens=max_tokens, stop=stops, grammar=held_to, **sampling)
        first_token_s: float | None = None
        recording.begin(loaded)
        try:
            with recording.show(loaded, _ignore if as_json else _print) as show:
                for piece in generation:
                    if first_token_s is None:
                        first_token_s = age_s()
                    show(piece)
        except KeyboardInterrupt:
            generation.finish_reason = "interrupted"
        except HetrunError:
            if generation.text and not as_json:
                print(flush=True)  # the error begins a line of its own
            recording.write(loaded)
            raise
        recording.write(loaded)
        times = modelled(loaded, generation)
        if as_json:
            result = {
                **figures(generation),
                **({"modelled": times} if times else {}),
                "load_s": load_s,
                "first_token_s": first_token_s,
                "segments": segments(loaded),
                "model": str(loaded.path),
                "devices": list(loaded.plan.used_devices),
                "ctx": loaded.n_ctx,
                "peak_rss_bytes": peak_rss_bytes(),
            }
            if profile:
                result["profile"] = recording.record(loaded)
            print(json.dumps(result))
        else:
            print(flush=True)
            print_line(generation, load_s)
            if times:
                print_modelled(times)
            if profile:
                from hetrun.view.profile import print_profile

                print_profile(recording.record(loaded), to_stderr=True)
        return 130 if generation.finish_reason == "interrupted" else 0


def _print(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _ignore(piece: str) -> None:
    pass
