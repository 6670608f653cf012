"""`hetrun plan`: which device would run what, how fast, and why."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import UsageError

if TYPE_CHECKING:
    from hetrun.graph.graph import Graph
    from hetrun.model.shape import Shape
    from hetrun.plan.place import Request
    from hetrun.plan.plan import Assignment, Plan


@click.command(
    "plan",
    short_help="Show which device would run what, and how fast.",
    epilog=options.example(
        "hetrun plan --model smollm2-135m",
        "hetrun plan --model smollm2-135m --device model:cortex-a9 --device model:pynq-z1 --gen-tokens 256",
        "hetrun plan --shape tinyllama-382mb --system pynq-z1",
        "hetrun plan --model smollm2-135m --explain blk.0.attn_q",
    ),
)
@click.option("--model", "-m", metavar="PATH|NAME", help='A GGUF file, or a name of "hetrun pull --list".')
@click.option("--shape", metavar="NAME|FILE", help="Instead of a file: sizes alone, such as llama2-7b.")
@click.option("--quant", metavar="TYPE", help="With --shape: every matrix in this tensor type.")
@options.devices
@click.option(
    "--pin", "pins", multiple=True, metavar="PATTERN=DEVICE",
    help="Run the ops of that name on that device, such as 'blk.*.ffn_*=reference'; repeatable.",
)  # fmt: skip
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N",
    help="Length of the prompt to plan for.",
)  # fmt: skip
@click.option(
    "--gen-tokens", type=click.IntRange(min=0), default=128, show_default=True, metavar="N",
    help="Length of the answer to plan for.",
)  # fmt: skip
@options.context()
@options.cache
@click.option("--save", metavar="FILE", help="Write the plan to a file, for --plan of other verbs.")
@click.option("--explain", metavar="OP", help="Show what each device would take for one op, or why it refuses.")
@options.common
def command(
    model: str | None,
    shape: str | None,
    quant: str | None,
    devices: tuple[str, ...],
    system: str | None,
    threads: int | None,
    pins: tuple[str, ...],
    prompt_tokens: int,
    gen_tokens: int,
    n_ctx: int | None,
    kv_type: str,
    attention: options.Attention,
    save: str | None,
    explain: str | None,
) -> None:
    """Shows which device would run each op of each layer, and the time that follows. Nothing is loaded or run, so
    devices that are absent or only modelled can be planned for.
    """
    from hetrun import api
    from hetrun.cli.loading import Choice, graph_options, planned_devices, show_log, warn_of_broken
    from hetrun.plan.place import Pin, Request, make_plan
    from hetrun.plugins import Registry

    show_log()
    parsed = [Pin.parse(p) for p in pins]
    choice = Choice(devices=devices, system=system, threads=threads, kv_type=kv_type, n_ctx=n_ctx, attention=attention)
    registry = Registry.load()
    name, header = _header(model, shape, quant)
    graph = api.graph_of(header, graph_options(choice), registry)
    request = Request(prompt_tokens, gen_tokens)
    plan = make_plan(graph, planned_devices(choice, registry), request, parsed)
    warn_of_broken(registry)
    if save is not None:
        _save(plan, save)
    if explain is not None:
        _explain(plan, graph, explain)
    elif options.flags().json:
        print(json.dumps(_record(plan, graph, request, name)))
    else:
        from hetrun.view.plan import print_plan

        print_plan(plan, graph, request, Path(name).name)


def _header(model: str | None, shape: str | None, quant: str | None) -> tuple[str, Shape]:
    """(name, header) of the file or the shape."""
    from hetrun.model.catalog import resolve_model
    from hetrun.model.gguf_file import ModelFile
    from hetrun.model.shape import Shape, load_shape

    if (model is None) == (shape is None):
        raise UsageError("give --model or --shape, one of them", remedy="for example --shape llama2-7b")
    if shape is not None:
        found = load_shape(shape)
        return shape, found.quantised(quant) if quant else found
    if quant is not None:
        raise UsageError("--quant goes with --shape", remedy="a file has the types that it has")
    assert model is not None
    path = resolve_model(model)
    with ModelFile.open(path) as file:
        return str(path), Shape(path.stem, "", file.architecture, file.metadata, file.tensors)


def _explain(plan: Plan, graph: Graph, wanted: str) -> None:
    from hetrun.plan.plan import PHASES

    names = [op.name for op in graph.ops]
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or names[:3]
        raise UsageError(f"no op {wanted!r} in the graph", remedy=f"near: {', '.join(near)}; --json lists all")
    index = names.index(wanted)
    assignments = {phase: plan.assignments(phase)[index] for phase in PHASES}
    if options.flags().json:
        op = graph.ops[index]
        record = {"op": op.name, "kind": op.kind, "layer": op.layer}
        print(json.dumps(record | {phase: _assignment(a) for phase, a in assignments.items()}))
        return
    from hetrun.view.plan import print_explanation

    print_explanation(graph.ops[index], assignments)


def _record(plan: Plan, graph: Graph, request: Request, model: str) -> dict[str, Any]:
    from hetrun.plan.plan import PHASES
    from hetrun.plan.segment import runs

    assignments, segments = [], []
    for phase in PHASES:
        for op, a in zip(graph.ops, plan.assignments(phase), strict=True):
            assignments.append({"phase": phase, "op": op.name, "kind": op.kind, "layer": op.layer, **_assignment(a)})
        for device, start, end in runs([a.device for a in plan.assignments(phase)]):
            names = {"first": graph.ops[start].name, "last": graph.ops[end - 1].name}
            segments.append({"phase": phase, "device": device, "ops": end - start, **names})
    prefill_s, decode_s = (plan.predicted[p].total_s for p in PHASES)
    return {
        "model": model,
        "fingerprint": plan.model,
        "devices": list(plan.devices),
        "used_devices": list(plan.used_devices),
        "prompt_tokens": request.prompt_tokens,
        "gen_tokens": request.gen_tokens,
        "predicted": {
            **{p: {**vars(plan.predicted[p]), "total_s": plan.predicted[p].total_s} for p in PHASES},
            "answer_s": request.total_seconds(prefill_s, decode_s),
            "prefill_tps": request.workload("prefill").n_tokens / prefill_s if prefill_s else None,
            "decode_tps": 1.0 / decode_s if decode_s else None,
            "basis": list(plan.basis),
        },
        "memory": dict(plan.memory),
        "gap": plan.gap,
        "segments": segments,
        "assignments": assignments,
    }


def _assignment(a: Assignment) -> dict[str, Any]:
    chosen, second = a.chosen, a.runner_up
    return {
        "device": a.device,
        "reason": a.reason,
        "cost": {"seconds": chosen.seconds, "basis": chosen.basis} if chosen else None,
        "runner_up": {"device": second.device, "seconds": second.seconds, "basis": second.basis} if second else None,
        "refusals": {c.device: c.refusal for c in a.candidates if c.refusal is not None},
    }


def _save(plan: Plan, target: str) -> None:
    """Writes the plan whole or not at all."""
    path = Path(target)
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            part.write_text(json.dumps(plan.to_json()), encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{target}: the plan cannot be written: {error.strerror}", remedy="name a file in a folder of your own"
        ) from error
