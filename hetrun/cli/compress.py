"""`hetrun compress`: a smaller model from a model and a calibration text."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options

if TYPE_CHECKING:
    from hetrun.compress.run import Done, Result


@click.command(
    "compress",
    short_help="Prune and quantise a model by a calibration text.",
    epilog=options.example(
        "hetrun compress --model smollm2-135m --calibration text.txt --out small.gguf",
        "hetrun compress --model llama.gguf --calibration text.txt --out small.gguf --scheme w2 --keep 'output=q8_0'",
    ),
)
@options.model
@click.option(
    "--calibration",
    "-c",
    required=True,
    metavar="FILE|-",
    help="Text of the kind that the model will see; - reads stdin. Not the text that it will be measured on.",
)
@click.option("--out", "-o", "output", required=True, metavar="FILE", help="The new GGUF file.")
@click.option(
    "--scheme",
    "schemes",
    multiple=True,
    metavar="[PATTERN=]SCHEME",
    help="w2s24 (2:4 pruned, 2 bits; the default), w2 (2 bits) or s24 (2:4 pruned, in Q8_0), for all matrices of the "
    "layers or those of that name; repeatable, the last that matches counts.",
)
@click.option(
    "--keep",
    "keeps",
    multiple=True,
    metavar="PATTERN[=TYPE]",
    help="Leave these tensors as they are, or store them in a type such as q8_0; repeatable.",
)
@click.option(
    "--method",
    type=click.Choice(("sparsegpt", "wanda")),
    default="sparsegpt",
    show_default=True,
    help="sparsegpt: later weights make up for what earlier ones lost. wanda: faster, worse.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=16384,
    show_default=True,
    metavar="N",
    help="Tokens of the calibration text to use, at most.",
)
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens that are run together.",
)
@click.option("--force", is_flag=True, help="Replace --out where it exists.")
@click.option("--restart", is_flag=True, help="Discard what a run that was ended has left.")
@options.common
def command(model: str, calibration: str, output: str, schemes: tuple[str, ...], **chosen: Any) -> None:  # fmt: skip
    """Writes a compressed model: matrices of the layers pruned and quantised, all else as it was.

    The file is GGUF with encodings of our own (docs/compression.md): hetrun reads it, other programs refuse it. What is
    finished is kept in FILE.part, so that the same command goes on where a run was ended.
    """
    text = options.text_of_file(calibration, f"--calibration {calibration}")
    from hetrun.compress.run import Options, compress
    from hetrun.model.catalog import resolve_model

    wanted = Options(schemes=schemes or ("w2s24",), **chosen)
    started = time.perf_counter()
    result = compress(resolve_model(model), text, Path(output), wanted, _Progress())
    seconds = time.perf_counter() - started
    if options.flags().json:
        print(json.dumps(_record(result, seconds)))
        return
    for line in _kept_lines(result):
        print(line, file=sys.stderr)
    print(result.path)
    mean = statistics.fmean(result.errors.values()) if result.errors else 0.0
    print(
        f"[{result.source_bytes / 1e6:.1f} MB -> {result.nbytes / 1e6:.1f} MB in {seconds:.0f} s, "
        f"{result.tokens} tokens of calibration, mean error of a matrix's output {mean:.1%}]",
        file=sys.stderr,
    )


def _record(result: Result, seconds: float) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "bytes": result.nbytes,
        "source_bytes": result.source_bytes,
        "calibration_tokens": result.tokens,
        "seconds": seconds,
        "resumed": result.resumed,
        "tensors": [
            {
                "name": t.weight.name,
                "type": t.type.name,
                "scheme": t.scheme.name if t.scheme else None,
                "bits_per_weight": 8 * t.nbytes / t.weight.n_elements,
                **({"error": result.errors[t.weight.name]} if t.scheme else {"kept": t.why}),
            }
            for t in result.tensors
        ],
    }


def _kept_lines(result: Result) -> list[str]:
    """A line for each reason why matrices were kept."""
    reasons: dict[str, list[str]] = {}
    for t in result.tensors:
        if t.scheme is None and len(t.weight.shape) > 1:
            reasons.setdefault(f"{t.why}, in {t.type}", []).append(t.weight.name)
    return [
        f"kept ({reason}): {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for reason, names in reasons.items()
    ]


class _Progress:
    """A line for each tensor on stderr where someone watches, else one about every ten seconds."""

    def __init__(self) -> None:
        self.shown = time.monotonic()

    def __call__(self, done: int, total: int, last: Done) -> None:
        now = time.monotonic()
        if not last.seconds or (not sys.stderr.isatty() and now - self.shown < 10 and done < total):
            return
        self.shown = now
        name, scheme = last.treatment.weight.name, last.treatment.scheme
        print(
            f"{done} of {total}: {name} {scheme.name if scheme else last.treatment.type}, error {last.error:.1%}",
            file=sys.stderr,
        )
