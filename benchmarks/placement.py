"""The tables and examples of docs/placement.md: what plans are predicted to take, and what runs take here.

    python benchmarks/placement.py [--write] [--no-run] [--json]

Predicted: SmolLM2, TinyLlama and Llama 2 7B over the shipped systems, by their profiles and by the driver of the U280
engine; nothing of it is measured.
Run: SmolLM2 on the cpu device and on mixes with the reference, predicted beside measured. Where `hetrun calibrate` has
measured the devices, predictions come from that, and the table's basis says so.
Examples: each console block of the page is run again, and its output replaced. A minute, most of it the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from predicted import nearest, time_runs

import hetrun
from hetrun.api import choose_devices, graph_on
from hetrun.calibration.table import Speeds
from hetrun.config import load_system
from hetrun.errors import HetrunError
from hetrun.graph.graph import Graph
from hetrun.measure.calibrate import accepts_of, probe_of
from hetrun.measure.patterns import groups
from hetrun.measure.timing import Bench, Effort
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import Shape, load_shape
from hetrun.plan.place import Request, make_plan
from hetrun.plan.plan import Plan
from hetrun.plugins import FoundDevice, Registry
from hetrun.run.session import Session
from hetrun.toml_table import shipped
from hetrun_cpu.host import processor_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "placement.md"
BEGIN, END = "<!-- {}: written by benchmarks/placement.py -->", "<!-- end of {} -->"
SHAPES = ("smollm2-135m", "tinyllama", "tinyllama-382mb", "llama2-7b")
# Types that one device alone reads, on its system.
SPECIAL = (("llama2-7b-w2s24", "workstation-u280"),)
CONTEXT, PROMPT, ANSWER = 512, 128, 128

MODEL = "smollm2-135m"
RUN_PROMPT, RUN_ANSWER, REPETITIONS = 128, 32, 5
MIXES: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "cpu, one norm on reference": ("blk.14.ffn_norm=reference",),
    "cpu, one layer's feed-forward on reference": ("blk.14.ffn_*=reference",),
    "cpu, every norm on reference": ("blk.*norm=reference", "output_norm=reference"),
}


@dataclass(frozen=True)
class Times:
    """Predicted seconds of a prompt of PROMPT tokens and of a token after it; joules of the token, where known."""

    devices: str
    prefill_s: float
    decode_s: float
    decode_j: float | None
    basis: str

    @classmethod
    def of(cls, plan: Plan) -> Times:
        prefill, decode = plan.predicted["prefill"], plan.predicted["decode"]
        devices = " + ".join(d.removeprefix("model:") for d in plan.used_devices)
        return cls(devices, prefill.total_s, decode.total_s, getattr(decode, "joules", None), ", ".join(kinds(plan)))


@dataclass(frozen=True)
class Planned:
    """A shape on a system.   best: the fastest of its devices alone.   unfit: why none fits.   fits: what would."""

    shape: str
    system: str
    best: Times | None
    plan: Times | None
    gap: float = 0.0
    unfit: str = ""
    fits: str = ""


@dataclass(frozen=True)
class Ran:
    """A mix of devices that ran here: predicted and median measured seconds."""

    mix: str
    segments: int
    prefill_predicted_s: float
    prefill_s: float
    decode_predicted_s: float
    decode_s: float
    basis: str


def kinds(plan: Plan) -> list[str]:
    """How the costs of a plan are known: "analytic", "measured"."""
    return sorted({basis.partition(":")[0] for basis in plan.basis})


def planned(shape: str, system: str, registry: Registry) -> Planned:
    header = load_shape(shape)
    devices = choose_devices(registry, None, system=load_system(system), to_run=False)
    graph = graph_on(devices, header, GraphOptions(n_ctx=CONTEXT), registry)
    best = min((t for d in devices if (t := alone(graph, d))), key=answer_s, default=None)
    try:
        plan = make_plan(graph, devices, Request(PROMPT, ANSWER))
    except HetrunError as error:
        return Planned(shape, system, best, None, unfit=error.message, fits=smaller(header, devices, registry))
    return Planned(shape, system, best, Times.of(plan), plan.gap)


def smaller(header: Shape, devices: Sequence[FoundDevice], registry: Registry) -> str:
    """The first smaller quantisation that the devices hold, and its times."""
    for quant in ("Q4_K", "Q3_K", "Q2_K"):
        graph = graph_on(devices, header.quantised(quant), GraphOptions(n_ctx=CONTEXT), registry)
        with suppress(HetrunError):
            times = Times.of(make_plan(graph, devices, Request(PROMPT, ANSWER)))
            return f"With every matrix in {quant} it fits: {seconds(times.prefill_s)}, {seconds(times.decode_s)}"
    return "No quantisation of it fits"


def alone(graph: Graph, device: FoundDevice) -> Times | None:
    try:
        return Times.of(make_plan(graph, [device], Request(PROMPT, ANSWER)))
    except HetrunError:
        return None


def answer_s(times: Times) -> float:
    return times.prefill_s + ANSWER * times.decode_s


def all_ran() -> list[Ran]:
    """Every mix. Where the cpu is calibrated, its probes choose the runs that count: those at the speeds of then."""
    cpu = choose_devices(Registry.load(), ["cpu"])[0]
    with Bench(cpu, Effort()) as bench:
        speeds = Speeds()
        if cpu.calibration is not None:
            bench.set_probes(probe_of(groups((), ("f16",), accepts_of(cpu))))
            speeds = cpu.calibration.speeds
        return [ran(mix, pins, bench, speeds) for mix, pins in MIXES.items()]


def ran(mix: str, pins: Sequence[str], bench: Bench, speeds: Speeds) -> Ran:
    """Prefill of RUN_PROMPT tokens, and RUN_ANSWER steps behind the first token."""
    devices = ["cpu", "reference"] if pins else ["cpu"]
    with hetrun.load(MODEL, devices=devices, pins=pins, n_ctx=CONTEXT) as model:
        graph, used = model.session.runtime.graph, choose_devices(Registry.load(), devices)
        from hetrun.plan.place import Pin

        rules = [Pin.parse(p) for p in pins]
        prompt = make_plan(graph, used, Request(RUN_PROMPT, RUN_ANSWER), rules)
        steps = make_plan(graph, used, Request(1, RUN_ANSWER), rules)
        session = model.session
        tokens = [7 * i % session.n_vocab for i in range(max(RUN_PROMPT, RUN_ANSWER + 1))]

        def prefill_s() -> float:
            session.truncate(0, 0)
            return fed_s(session, tokens[:RUN_PROMPT])

        def decode_s() -> float:
            session.truncate(0, 0)
            session.feed(tokens[:1])
            return statistics.median(fed_s(session, [token]) for token in tokens[1 : RUN_ANSWER + 1])

        prefill = nearest(time_runs(bench, speeds, False, REPETITIONS, prefill_s), REPETITIONS)
        decode = nearest(time_runs(bench, speeds, True, REPETITIONS, decode_s), REPETITIONS)
    return Ran(
        mix,
        model.plan.predicted["decode"].n_segments,
        prompt.predicted["prefill"].total_s,
        statistics.median(run.seconds for run in prefill),
        steps.predicted["decode"].total_s,
        statistics.median(run.seconds for run in decode),
        "; ".join(prompt.basis),
    )


def fed_s(session: Session, tokens: Sequence[int]) -> float:
    started = time.perf_counter()
    session.feed(tokens)
    return time.perf_counter() - started


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def cells(row: Planned) -> list[str]:
    best, plan = row.best, row.plan
    energy = "" if plan is None or plan.decode_j is None else f"{plan.decode_j:.3g}"
    return [
        row.shape,
        row.system,
        best.devices if best else "none holds it alone",
        f"{seconds(best.prefill_s)}, {seconds(best.decode_s)}" if best else "",
        plan.devices if plan else "does not fit",
        f"{seconds(plan.prefill_s)}, {seconds(plan.decode_s)}" if plan else "",
        energy,
        f"{answer_s(best) / answer_s(plan):.2f}" if best and plan else "",
        (plan or best).basis if plan or best else "",
    ]


def predictions(rows: Sequence[Planned]) -> str:
    headers = (
        "model", "system", "best device alone", "prompt, token", "plan", "prompt, token", "J/token", "gain",
        "costs are",
    )  # fmt: skip
    unfit = [f"- {r.shape} on {r.system}: {r.unfit}. {r.fits}." for r in rows if r.unfit]
    gaps = [f"- {r.shape} on {r.system}: at most {r.gap:.1%} from the best that fits." for r in rows if r.gap]
    notes = "".join(
        f"\n\n{title}\n\n" + "\n".join(lines)
        for title, lines in (("Does not fit:", unfit), ("Memory is tight:", gaps))
        if lines
    )
    return (
        f"Prompt of {PROMPT} tokens, answer of {ANSWER}, context of {CONTEXT}. Predicted from the profiles and"
        f" the U280 engine's\ncycle model, not measured; gain is the time of the whole answer on the best device alone,"
        f" over the plan's.\n\n"
        f"{table(headers, [cells(r) for r in rows])}{notes}"
    )


def measurements(rows: Sequence[Ran]) -> str:
    headers = ("where", "segments", "prompt predicted", "measured", "off by", "token predicted", "measured", "off by")
    body = [
        [
            r.mix, str(r.segments),
            seconds(r.prefill_predicted_s), seconds(r.prefill_s), f"{r.prefill_predicted_s / r.prefill_s - 1:+.0%}",
            seconds(r.decode_predicted_s), seconds(r.decode_s), f"{r.decode_predicted_s / r.decode_s - 1:+.0%}",
        ]
        for r in rows
    ]  # fmt: skip
    where = (
        f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python"
        f" {platform.python_version()}, hetrun {hetrun.__version__}, {datetime.now(timezone.utc):%Y-%m-%d}"
    )
    bases = sorted({basis for r in rows for basis in r.basis.split("; ")})
    guessed = all(basis.startswith("analytic:") for basis in bases)
    return (
        f"{MODEL}, prompt of {RUN_PROMPT} tokens, {RUN_ANSWER} tokens one by one; medians of the {REPETITIONS} runs"
        f" in which probes\nfound the machine nearest to the speeds of its calibration. {where}."
        f"\nPredictions are from {'; '.join(bases)}"
        f"{': nothing was calibrated, so that they are orders of magnitude' if guessed else ''}."
        f"\n\n{table(headers, body)}"
    )


def replaced(page: str, name: str, text: str) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    before, mark, rest = page.partition(begin)
    assert mark, f"{PAGE} has no mark {begin!r}"
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def with_examples(page: str) -> str:
    """Runs the commands of every console block, and puts what they print below them."""

    def rerun(match: re.Match[str]) -> str:
        commands = [line[2:] for line in match[1].splitlines() if line.startswith("$ ")]
        return "```console\n" + "".join(f"$ {c}\n{output(c)}" for c in commands) + "```"

    return re.sub(r"```console\n(.*?)```", rerun, page, flags=re.DOTALL)


def output(command: str) -> str:
    """What a hetrun command prints, stderr too, in lines of 100 columns."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "hetrun", command
    done = subprocess.run(
        [sys.executable, "-m", "hetrun", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/placement.md")
    parser.add_argument("--no-run", action="store_true", help="leave out what is measured, and keep the page's figures")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    args = parser.parse_args()
    registry = Registry.load()
    pairs = [*((shape, system) for shape in SHAPES for system in shipped("systems")), *SPECIAL]
    rows = [planned(shape, system, registry) for shape, system in pairs]
    runs = [] if args.no_run else all_ran()
    if args.json:
        print(json.dumps({"predicted": [asdict(r) for r in rows], "ran": [asdict(r) for r in runs]}))
    else:
        print(predictions(rows), *([measurements(runs)] if runs else []), sep="\n\n")
    if args.write:
        page = replaced(PAGE.read_text(encoding="utf-8"), "predictions", predictions(rows))
        page = replaced(page, "measurements", measurements(runs)) if runs else page
        PAGE.write_text(with_examples(page), encoding="utf-8")


if __name__ == "__main__":
    main()
