"""`hetrun plan`: which device would run what, how fast, and why."""

from __future__ import annotations

import difflib
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import ContextError, PlacementError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hetrun.cli.changes import Outcome, Search
    from hetrun.graph.graph import Graph
    from hetrun.model.shape import Shape
    from hetrun.plan.explain import Explanation
    from hetrun.plan.place import Request, Task
    from hetrun.plan.plan import Plan


@click.command(
    "plan",
    short_help="Show which device would run what, and how fast.",
    epilog=options.example(
        "hetrun plan --model smollm2-135m",
        "hetrun plan --model smollm2-135m --device model:cortex-a9 --device model:pynq-z1 --gen-tokens 256",
        "hetrun plan --shape tinyllama-382mb --system pynq-z1 --ctx 512",
        "hetrun plan --shape llama2-7b --system laptop --target-tps 20",
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
    "--forbid", "forbids", multiple=True, metavar="PATTERN=DEVICE",
    help="Keep the ops of that name off that device; repeatable.",
)  # fmt: skip
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N",
    help="Length of the prompt to plan for.",
)  # fmt: skip
@click.option(
    "--gen-tokens", type=click.IntRange(min=0), default=128, show_default=True, metavar="N",
    help="Length of the answer to plan for.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice(("latency", "ttft", "energy")), default="latency", show_default=True,
    help="What is to be least: seconds of the whole answer, seconds to the first token, or joules.",
)  # fmt: skip
@click.option(
    "--target-tps", type=float, metavar="X",
    help="Decode at X tokens/s at least, at the least of the objective; where that cannot be, say what must change.",
)  # fmt: skip
@click.option(
    "--solver", type=click.Choice(("auto", "milp")), default="auto", show_default=True,
    help="milp: by HiGHS, exactly where memory is tight, too (pip install 'hetrun[milp]').",
)  # fmt: skip
@options.context()
@options.cache
@click.option("--save", metavar="FILE", help="Write the plan to a file, for --plan of other verbs.")
@click.option("--load", metavar="FILE", help="Show a plan that was saved, priced anew, instead of making one.")
@click.option("--explain", metavar="OP", help="Show what each device would take for one op, or why it refuses.")
@click.option(
    "--verify", is_flag=True,
    help="Run the plan and the best single device here, and compare what is measured with what was predicted.",
)  # fmt: skip
@options.common
def command(
    model: str | None,
    shape: str | None,
    quant: str | None,
    devices: tuple[str, ...],
    system: str | None,
    threads: int | None,
    pins: tuple[str, ...],
    forbids: tuple[str, ...],
    prompt_tokens: int,
    gen_tokens: int,
    objective: Any,
    target_tps: float | None,
    solver: Any,
    n_ctx: int | None,
    kv_type: str | None,
    attention: options.Attention,
    extension: options.RopeExtension | None,
    save: str | None,
    load: str | None,
    explain: str | None,
    verify: bool,
) -> None:
    """Shows which device would run each op of each layer, and the time that follows. Only the model's header is read,
    and without --verify nothing is loaded or run, so devices that are absent or only modelled can be planned for.
    """
    from hetrun import api
    from hetrun.cli.changes import Search
    from hetrun.cli.loading import (
        chosen_kv_type,
        graph_options,
        planned_devices,
        read_plan,
        show_log,
        warn_of_broken,
    )
    from hetrun.plan.explain import Explanation
    from hetrun.plan.place import Forbid, Pin, Request, Task, check_plan
    from hetrun.plugins import Registry

    show_log()
    if load and (pins or forbids or target_tps or save):
        raise UsageError("--load takes a plan as it is", remedy="leave out --pin, --forbid, --target-tps and --save")
    if verify and model is None:
        raise UsageError("--verify runs the model, so it needs a file", remedy="give --model instead of --shape")
    rules = [*map(Pin.parse, pins), *map(Forbid.parse, forbids)]
    request = Request(prompt_tokens, gen_tokens, objective=objective, target_tps=target_tps)
    loaded = read_plan(load) if load else None
    choice = options.Choice(
        devices=devices,
        system=system,
        threads=threads,
        kv_type=kv_type,
        n_ctx=n_ctx,
        attention=attention,
        extension=extension,
    )
    if loaded and not devices and not system:
        choice = replace(choice, devices=tuple(dict.fromkeys((*loaded.devices, *loaded.used_devices))))
    name, header = read_header(model, shape, quant)
    registry = Registry.load()
    found = planned_devices(choice, registry)
    graph = api.graph_on(found, header, graph_options(choice), registry, kv_type)
    _check_lengths(request, graph)
    warn_of_broken(registry)
    choice = replace(choice, kv_type=chosen_kv_type(graph, kv_type))
    search = Search(header, choice, request, rules, registry, model is not None, kv_type)
    missed: Missed | None = None
    if loaded:
        check_plan(loaded, graph, found)
        task = Task.of(graph, found, request)
        plan = task.plan(task.placements(loaded))
    else:
        task = Task.of(graph, found, request, rules)
        task, plan, missed = _solve(task, solver, search)
    explanation = Explanation(task, task.placements(plan))
    if save is not None:
        _save(plan, save)
    checked = None
    if verify:
        from hetrun.cli.verified import verify as run_and_compare

        checked = run_and_compare(task, plan, choice, registry, Path(name))
    # Boards that run a sequence each: what reaches a rate where one sequence cannot.
    n_boards = math.ceil((target_tps or 0.0) * plan.predicted["decode"].total_s * (1 - 1e-9))
    if explain is not None:
        _explain(explanation, plan, explain)
    elif options.flags().json:
        from hetrun.cli.plan_record import plan_record

        record = plan_record(explanation, plan, name)
        if target_tps is not None:
            record["target"] = {
                "tps": target_tps,
                "reached": missed is None,
                "why": missed.why if missed else None,
                "boards_together": n_boards,
                "changes": [vars(o) for o in missed.outcomes] if missed else [],
            }
        print(json.dumps(record if checked is None else {**record, "verify": checked}))
    else:
        from hetrun.view.plan import print_outcomes, print_plan, print_verified

        print_plan(task, plan, Path(name).name)
        if target_tps is not None:
            why, changes = (missed.why, [vars(o) for o in missed.outcomes]) if missed else (None, [])
            print_outcomes(target_tps, n_boards, why, changes)
        if checked is not None:
            print_verified(checked)


@dataclass(frozen=True)
class Missed:
    """A target out of reach: why, and the changes that would reach it."""

    why: str
    outcomes: list[Outcome]


def _solve(task: Task, solver: Any, search: Search) -> tuple[Task, Plan, Missed | None]:
    """(task, plan, None), or where the target is out of reach the best plan without it, and what would reach it.

    PlacementError with what would help, where there is no plan at all.
    """
    from hetrun.plan.fit import STEP

    try:
        return task, task.solve(solver), None
    except PlacementError as error:
        outcomes = search.outcomes()
        limits = {name: limit for name, limit in task.problem.limits.items() if name != STEP}
        free = replace(
            task,
            problem=replace(task.problem, limits=limits),
            request=replace(task.request, target_tps=None),
        )
        if task.request.target_tps is not None and task.request.objective != "energy":
            try:
                return free, free.solve(solver), Missed(str(error), outcomes)
            except PlacementError:
                pass
        raise PlacementError(error.message + search.memory_basis(), remedy=_remedy(error, outcomes)) from error


def _remedy(error: PlacementError, outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return f"{error.remedy}; no other type, context or shipped device helps alone"
    listed = "; ".join(f"{o.label} ({o.decode_tps:.3g} tokens/s)" for o in outcomes)
    return f"planned, each of these would do: {listed}; or {error.remedy}"


def _check_lengths(request: Request, graph: Graph) -> None:
    """ContextError for lengths that were asked for and exceed the context; the defaults are only a usual case."""
    from click.core import ParameterSource

    sources = map(click.get_current_context().get_parameter_source, ("prompt_tokens", "gen_tokens"))
    n_ctx = min((kv.n_ctx for kv in graph.kv_specs.values()), default=1 << 30)
    if request.prompt_tokens + request.gen_tokens > n_ctx and ParameterSource.COMMANDLINE in sources:
        raise ContextError(
            f"a prompt of {request.prompt_tokens} tokens and an answer of {request.gen_tokens} do not fit a context of"
            f" {n_ctx}",
            remedy="give a larger --ctx, or less for --prompt-tokens and --gen-tokens",
        )


def read_header(model: str | None, shape: str | None, quant: str | None) -> tuple[str, Shape]:
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


def _explain(explanation: Explanation, plan: Plan, wanted: str) -> None:
    graph = explanation.task.problem.tables["decode"].graph
    names = [op.name for op in graph.ops]
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or names[:3]
        raise UsageError(f"no op {wanted!r} in the graph", remedy=f"near: {', '.join(near)}; --json lists all")
    index = names.index(wanted)
    if options.flags().json:
        from hetrun.cli.plan_record import op_record

        print(json.dumps(op_record(explanation, plan, index)))
        return
    from hetrun.view.plan import print_explanation

    print_explanation(explanation, plan, index)


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
