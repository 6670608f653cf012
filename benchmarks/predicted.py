"""Predicted beside measured: prefill and decode of whole models on a device, before calibrating it and after.

    .venv/bin/python benchmarks/predicted.py                 about three minutes
    .venv/bin/python benchmarks/predicted.py --passes 1 MODEL.gguf

Each pass calibrates the device anew (in a folder of its own: the user's calibration stays as it is) and then times
every model, so that calibration and models meet the same moods of the machine. A prediction is that of `hetrun plan`.
Around each run a probe of the calibration shows how fast the machine is; the runs nearest to the speed that it was
calibrated at are kept, chosen by the probe and never by their times; "all runs" has the others, too. Files are those of
benchmarks/peer.py (HETRUN_BENCH_CACHE).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peer import SMOLLM2, model_path

import hetrun
from hetrun.api import choose_devices
from hetrun.calibration import store
from hetrun.calibration.table import Calibration, Speeds
from hetrun.device import Workload
from hetrun.errors import HetrunError
from hetrun.graph.graph import Graph
from hetrun.measure.calibrate import Wanted, accepts_of, calibrate, probe_of
from hetrun.measure.patterns import groups
from hetrun.measure.probe import DISTURBED
from hetrun.measure.timing import Bench, Effort
from hetrun.model.gguf_file import ModelFile
from hetrun.plan.cost import CostTable
from hetrun.plugins import FoundDevice, Registry
from hetrun.run.session import Session

FILES = (SMOLLM2, "Q4_0", "Q4_K_M")
PREFILL, DECODE = 256, 64
WAIT_S = 8.0
REST_S = 0.003  # threads of the probe's device spin for a millisecond


@dataclass(frozen=True)
class Run:
    """A run of a test.   slowed: the probe's time over its time while calibrating, before or after the run,
    whichever is further from 1.
    """

    seconds: float
    slowed: float

    @property
    def as_calibrated(self) -> bool:
        return abs(math.log(self.slowed)) <= DISTURBED


@dataclass(frozen=True)
class Row:
    """One test on one file in one pass.   measured_s: median of the runs kept, all_s: of all runs.

    slowed: of the runs kept.
    """

    file: str
    test: str
    measured_s: float
    all_s: float
    slowed: float
    before_s: float
    after_s: float

    @property
    def as_calibrated(self) -> bool:
        return abs(math.log(self.slowed)) <= DISTURBED

    @property
    def error_before(self) -> float:
        return self.before_s / self.measured_s - 1

    @property
    def error_after(self) -> float:
        return self.after_s / self.measured_s - 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def types_of(paths: Sequence[Path]) -> list[str]:
    """Tensor types of the matrices in the files."""
    found: set[str] = set()
    for path in paths:
        with ModelFile.open(path) as file:
            found |= {w.type.name for w in file.tensors.values() if len(w.shape) == 2}
    return sorted(found)


def step_s(graph: Graph, workload: Workload, device: FoundDevice) -> float:
    return CostTable.ask(graph, workload, [device]).price([device.info.id] * len(graph.ops)).total_s


def time_runs(bench: Bench, speeds: Speeds, reading: bool, repetitions: int, run: Callable[[], float]) -> list[Run]:
    """Runs until that many met the machine at the speed that it was calibrated at, or for WAIT_S.

    reading: whether they read weights from memory rather than compute.
    """
    runs: list[Run] = []
    run()
    started = time.monotonic()
    while sum(r.as_calibrated for r in runs) < repetitions:
        if len(runs) >= repetitions and time.monotonic() - started > WAIT_S:
            break
        before = probed(bench, speeds, reading)
        seconds = run()
        runs.append(Run(seconds, max(before, probed(bench, speeds, reading), key=lambda slowed: abs(math.log(slowed)))))
    return runs


def nearest(runs: Sequence[Run], n: int) -> list[Run]:
    """The runs that met the machine nearest to the speed that it was calibrated at."""
    return sorted(runs, key=lambda r: abs(math.log(r.slowed)))[:n]


def probed(bench: Bench, speeds: Speeds, reading: bool) -> float:
    """One probe, as there is one beside a sample of a calibration: the third in a row is some percent faster."""
    time.sleep(REST_S)
    slowed = bench.probe(reading) / (speeds.of(reading) or 1.0)
    time.sleep(REST_S)
    return slowed


def prefill_s(session: Session, tokens: Sequence[int]) -> float:
    session.truncate(0, 0)
    started = time.perf_counter()
    session.feed(tokens[:PREFILL])
    return time.perf_counter() - started


def decode_s(session: Session, tokens: Sequence[int]) -> float:
    """Seconds of a step: their median, since a step that something interrupts takes several times as long."""
    session.truncate(0, 0)
    session.feed(tokens[:1])
    seconds = []
    for token in tokens[1 : DECODE + 1]:
        started = time.perf_counter()
        session.feed([token])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(
    name: str, path: Path, device: FoundDevice, calibration: Calibration, bench: Bench, args: argparse.Namespace
) -> list[Row]:
    rows = []
    with hetrun.load(path, devices=[device.info.id], threads=args.threads, n_ctx=PREFILL + 1) as model:
        session, graph = model.session, model.session.runtime.graph
        rng = random.Random(0)
        tokens = [rng.randrange(3, session.n_vocab) for _ in range(PREFILL + 1)]
        for test, workload, seconds in (
            (f"prefill {PREFILL}", Workload(PREFILL, 0), prefill_s),
            (f"decode {DECODE}", Workload(1, DECODE // 2), decode_s),
        ):
            runs = time_runs(
                bench, calibration.speeds, workload.n_tokens == 1, args.repetitions,
                lambda s=seconds: s(session, tokens),  # type: ignore[misc]
            )  # fmt: skip
            kept = nearest(runs, args.repetitions)
            row = Row(
                name,
                test,
                statistics.median(r.seconds for r in kept),
                statistics.median(r.seconds for r in runs),
                statistics.median(r.slowed for r in kept),
                step_s(graph, workload, device),
                step_s(graph, workload, device.calibrated(calibration)),
            )
            errors = f"{row.error_before:+.0%} before, {row.error_after:+.1%} after"
            say(f"  {name} {test}: {1e3 * row.measured_s:.2f} ms, {errors}, probe {row.slowed:.2f}")
            rows.append(row)
    return rows


def one_pass(paths: dict[str, Path], args: argparse.Namespace) -> list[Row]:
    device = choose_devices(Registry.load(), [args.device], threads=args.threads, calibrated=False)[0]
    wanted = Wanted(types_of(list(paths.values())))
    started = time.monotonic()

    def progress(what: str, *_: int) -> None:
        say(f"  {time.monotonic() - started:.0f} s: {what}")

    calibration = calibrate(device, wanted, Effort(rounds=args.rounds), None, lambda c: None, progress)
    if args.keep:
        store.write(calibration, args.keep)
    say(f"calibrated {', '.join(wanted.types)} in {time.monotonic() - started:.0f} s")
    for check in calibration.checks:
        say(f"  {check.what}: {check.after_s / check.measured_s - 1:+.1%}")

    probe = probe_of(groups(wanted.types, wanted.kv_formats, accepts_of(device)))
    rows = []
    with Bench(device, Effort()) as bench:
        bench.set_probes(probe)
        for name, path in paths.items():
            rows += measure(name, path, device, calibration, bench, args)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Medians over the passes that met the machine at the speed that it was calibrated at, or over all where none did.

    least, most: errors of such a pass.   all runs: the median error over all passes and all their runs.
    """
    lines = [
        "| file | test | measured | before | off by | calibrated | off by | least | most | passes | all runs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for file, test in dict.fromkeys((r.file, r.test) for r in rows):
        everything = [r for r in rows if (r.file, r.test) == (file, test)]
        # Where the machine changed its speed after it was calibrated, a pass compares two machines.
        same = [r for r in everything if r.as_calibrated] or everything
        middle = [1e3 * statistics.median(getattr(r, f) for r in same) for f in ("measured_s", "before_s", "after_s")]
        errors = [r.error_after for r in same]
        before = statistics.median(r.error_before for r in same)
        in_all = statistics.median(r.after_s / r.all_s - 1 for r in everything)
        cells = (
            file, test, f"{middle[0]:.2f} ms", f"{middle[1]:.2f} ms", f"{before:+.0%}", f"{middle[2]:.2f} ms",
            f"{statistics.median(errors):+.1%}", f"{min(errors):+.1%}", f"{max(errors):+.1%}",
            f"{sum(r.as_calibrated for r in same)} of {len(everything)}", f"{in_all:+.1%}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{', '.join(FILES)} (the default), or GGUF files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="times that each program of the calibration is timed")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each test in a pass that count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add this run's figures to those in a file")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the last pass's calibration to a file")
    args = parser.parse_args()
    if min(args.threads, args.passes, args.rounds, args.repetitions) < 1:
        parser.error("at least one thread, pass, round and repetition")
    return args


def main() -> None:
    args = parse()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    paths = {name: model_path(name, cache) for name in args.files or FILES}
    rows: list[Row] = []
    if args.json and args.json.exists():
        rows = [Row(**r) for r in json.loads(args.json.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HETRUN_DATA"] = folder
        for number in range(args.passes):
            say(f"pass {number + 1} of {args.passes}")
            rows += one_pass(paths, args)
            if args.json:
                args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except HetrunError as error:
        raise SystemExit(f"error: {error}") from error
