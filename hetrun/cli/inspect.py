"""`hetrun inspect`: what is in a GGUF file, and whether it can be run here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import HetrunError
from hetrun.model.encodings import is_container

if TYPE_CHECKING:
    from hetrun.model.gguf_file import ModelFile
    from hetrun.model.metadata import MetadataValue

_SHOWN_ITEMS = 4
_READ_WITH_METADATA = ("rope_freqs.", "rope_factors_")  # tables that become parameters of an op


@dataclass(frozen=True)
class Support:
    """Why a file cannot be tokenized with, or run; None where it can.

    memory: bytes that running it takes, by space: weights as the devices hold them, and the KV cache of `n_ctx` tokens.
    unused: tensors of the file that running it leaves out.   tied: the embeddings are the output head, too.
    """

    tokenizer: str | None
    model: str | None
    memory: Mapping[str, int]
    n_ctx: int
    unused: tuple[str, ...] = ()
    tied: bool = False


@click.command(
    "inspect",
    short_help="Show what is in a GGUF file.",
    epilog=options.example("hetrun inspect --model smollm2-135m", "hetrun inspect model.gguf --json"),
)
@click.argument("path_or_name", required=False, metavar="[PATH|NAME]")
@click.option("--model", "-m", metavar="PATH|NAME", help="The same as an option, as other verbs have it.")
@options.common
def command(path_or_name: str | None, model: str | None) -> None:
    """Shows a GGUF file: its metadata, its tensors with types and shapes, and whether it can be run here or why not."""
    from hetrun.cli.loading import show_log
    from hetrun.model.catalog import resolve_model
    from hetrun.model.gguf_file import ModelFile

    wanted = model or path_or_name
    if wanted is None:
        raise click.UsageError("Missing option '--model'", click.get_current_context())
    show_log()
    with ModelFile.open(resolve_model(wanted)) as file:
        support = _support(file)
        if options.flags().json:
            print(json.dumps(_record(file, support)))
            return
        from hetrun.view.inspect import print_file

        print_file(file, support, _totals(file))


def _support(file: ModelFile) -> Support:
    from hetrun import api
    from hetrun.model.architectures import GraphOptions
    from hetrun.model.tokenizer import Tokenizer
    from hetrun.ops import Attention, Embedding, MatMul
    from hetrun.plan.place import Request, make_plan
    from hetrun.plugins import Registry

    reasons: list[str | None] = []
    memory: Mapping[str, int] = {}
    n_ctx = 0
    unused: tuple[str, ...] = ()
    tied = False

    def tokenizer() -> None:
        Tokenizer.from_metadata(file.metadata)

    def model() -> None:
        nonlocal memory, n_ctx, unused, tied
        registry = Registry.load()
        graph = api.graph_of(file, GraphOptions(), registry)
        unused = tuple(n for n in file.tensors if n not in graph.weights and not n.startswith(_READ_WITH_METADATA))
        heads = {op.weight.name for op in graph.ops if isinstance(op, MatMul)}
        tied = any(isinstance(op, Embedding) and op.weight.name in heads for op in graph.ops)
        memory = make_plan(graph, api.choose_devices(registry, None), Request()).memory
        n_ctx = max((op.kv.n_ctx for op in graph.ops if isinstance(op, Attention)), default=0)

    for check in (tokenizer, model):
        try:
            check()
        except HetrunError as error:
            reasons.append(str(error))
        else:
            reasons.append(None)
    return Support(reasons[0], reasons[1], memory, n_ctx, unused, tied)


def _totals(file: ModelFile) -> dict[str, dict[str, int]]:
    """Tensors, elements and bytes by type, the largest first."""
    by_type: dict[str, dict[str, int]] = {}
    for weight in file.tensors.values():
        entry = by_type.setdefault(weight.type.name, {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += weight.n_elements
        entry["bytes"] += weight.nbytes
    return dict(sorted(by_type.items(), key=lambda item: -item[1]["bytes"]))


def _record(file: ModelFile, support: Support) -> dict[str, Any]:
    n_elements = sum(w.n_elements for w in file.tensors.values())
    n_bytes = sum(w.nbytes for w in file.tensors.values())
    encoded = is_container(file.metadata)
    return {
        "path": str(file.path),
        "paths": [str(path) for path in file.paths],
        "version": file.version,
        "size_bytes": file.size_bytes,
        "alignment_bytes": file.alignment,
        "architecture": file.architecture if encoded else file.metadata.get("general.architecture"),
        "compressed": encoded,
        "supported": support.model is None,
        "unsupported_reason": support.model,
        "memory": {"n_ctx": support.n_ctx, "bytes": dict(support.memory)} if support.memory else None,
        "unused_tensors": list(support.unused),
        "tied_output": support.tied if support.model is None else None,
        "tokenizer_supported": support.tokenizer is None,
        "tokenizer_unsupported_reason": support.tokenizer,
        "parameters": n_elements,
        "bits_per_weight": 8 * n_bytes / n_elements if n_elements else None,
        "types": _totals(file),
        "metadata": {key: _summary(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": w.name, "type": w.type.name, "shape": list(w.shape), "bytes": w.nbytes}
            for w in file.tensors.values()
        ],
    }


def _summary(value: MetadataValue) -> object:
    """A value for JSON; an array by its length and first items."""
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no infinity
    return {"array": value.element_kind, "length": len(value), "first": [_summary(v) for v in value[:_SHOWN_ITEMS]]}
