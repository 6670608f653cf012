"""Measures hetrun's cpu device against llama.cpp, alternately, in one run: tokens/s of prefill and decode, their ratio.

    .venv/bin/python benchmarks/peer.py              about ten minutes, after the first run has built the peer
    .venv/bin/python benchmarks/peer.py --quick      two minutes
    .venv/bin/python benchmarks/peer.py --write      also docs/performance.md
    .venv/bin/python benchmarks/peer.py --other-types --quick --write     the same of the types that those files lack

Run it with the Python that has hetrun, on a machine with nothing else running. The first run makes an environment with
llama-cpp-python, built natively from the package index (it needs g++, cmake comes with pip), and the models, in
HETRUN_BENCH_CACHE (default ~/.cache/hetrun/benchmarks): 4 GB.

Only llama_decode of the peer is timed, not the Python around it; of hetrun, the whole Session.feed. Both sides are
loaded at once, each in a process of its own, and answer in turn (A B A B ...).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import performance_page
from make_model import FILE_TYPES, FLOAT_TYPES, write_model

from hetrun.errors import HetrunError
from hetrun.model.catalog import Catalog
from hetrun.model.gguf_file import ModelFile

HERE = Path(__file__).resolve().parent
PEER = "llama-cpp-python==0.3.36"
SMOLLM2 = "SmolLM2-135M_Q4_1"
DEFAULT_FILES = (SMOLLM2, *FILE_TYPES)
# Types that these lack, each in a file of a few layers: by make_model.py, or from its F16 by llama.cpp's quantiser.
QUANTISED_TYPES = ("Q4_1", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0")
OTHER_FILES = (*FLOAT_TYPES, *QUANTISED_TYPES)
FILES = (*DEFAULT_FILES, *OTHER_FILES)
READ_MEGABYTES = 768  # beyond the caches of every core we know
REST_S = 0.1  # between two measurements, so that the threads of the one before have parked
QUIET_WAIT_S = 3.0  # longest wait for others to leave the processor alone
QUIET_FRACTION = 0.9  # of the processor's time, idle
TRIES = 2  # measurements at most, for each repetition wanted
SLICE = 16  # steps of a decode test that one side takes at a time


@dataclass(frozen=True)
class Row:
    """One test on one file.   ours_tps, peer_tps, read_bytes_per_s: one figure a repetition, taken one after another.

    decode_bytes: what a decode step reads of the file; 0 for prefill.   others: median share of the processor that
    other programs took meanwhile.
    """

    file: str
    test: str
    n_tokens: int
    ours_tps: tuple[float, ...]
    peer_tps: tuple[float, ...]
    read_bytes_per_s: tuple[float, ...]
    decode_bytes: int
    others: float

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(ours / peer for ours, peer in zip(self.ours_tps, self.peer_tps, strict=True))

    @property
    def bandwidth_fraction(self) -> float | None:
        """Bytes that decode reads a second over what plain reads reach; above 1 where a cache holds the weights."""
        if not self.decode_bytes:
            return None
        fractions = (t * self.decode_bytes / r for t, r in zip(self.ours_tps, self.read_bytes_per_s, strict=True))
        return statistics.median(fractions)

    @property
    def ratio_at_read_rate(self) -> float | None:
        """The ratio of a decode that takes the weights at the read rate: none is faster, but from a cache."""
        if not self.decode_bytes:
            return None
        limits = (r / self.decode_bytes / t for t, r in zip(self.peer_tps, self.read_bytes_per_s, strict=True))
        return statistics.median(limits)


class Worker:
    """A process that answers each line with one number."""

    def __init__(self, command: Sequence[str | Path], greeting: bool = True) -> None:
        self._process = subprocess.Popen([str(c) for c in command], stdin=-1, stdout=-1, text=True, bufsize=1)
        if greeting:
            self._read()

    def ask(self, line: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        return float(self._read())

    def processor_ticks(self) -> int:
        """Processor time of all its threads so far, in the ticks of /proc."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}")
        return line

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def peer_python(cache: Path) -> Path:
    """The Python of an environment with the peer, built here once."""
    folder = cache / PEER.replace("==", "-")
    stamp = folder / "complete"
    if not stamp.exists():
        say(f"building {PEER} in {folder} (minutes, once)")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
        # A wheel that the index or a cache has may be built for any machine; the peer deserves this one's instructions.
        # GCC drops stores of its AMX tile shapes, and its first prompt crashes (llama.cpp #20824), unless told not to.
        environment = {**os.environ, "CXXFLAGS": "-fno-tree-dse -fno-dse"}
        subprocess.run(
            [*pip, "--no-binary", "llama-cpp-python", "--no-cache-dir", PEER, "gguf"], check=True, env=environment
        )
        stamp.touch()
    return folder / "bin/python"


def read_benchmark(cache: Path) -> Path:
    source, program = HERE / "workers/read_bandwidth.cpp", cache / "read_bandwidth"
    flags = ["-O3", "-march=native", "-std=c++17", "-pthread"]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, "-o", program, source], check=True)
    return program


def known_file(name: str) -> str:
    """The name of a file that can be measured; for argparse, which makes one line of the error."""
    if name not in FILES and not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"no file {name}; choose one of {', '.join(FILES)}, or a GGUF file")
    return name


def model_path(name: str, cache: Path, peer: Path) -> Path:
    """A file by its name in FILES, made or pulled where it is missing; or the path of any other."""
    if name == SMOLLM2:
        return Catalog.load().pull("smollm2-135m")
    if name not in FILES:
        return Path(name)
    path = cache / f"{'four-layers' if name in OTHER_FILES else 'tinyllama-shaped'}-{name}.gguf"
    if path.exists():
        return path
    say(f"making {path}")
    if name in FILE_TYPES:
        write_model(path, name)
    elif name in FLOAT_TYPES:
        write_model(path, name, n_layers=4)
    else:
        partial = path.with_suffix(".partial")
        source = model_path("F16", cache, peer)
        subprocess.run([peer, HERE / "accuracy/llama_cpp_quantise.py", source, partial, name], check=True)
        partial.rename(path)
    return path


def decode_bytes(path: Path) -> int:
    """Bytes of weights that one decode step reads: all but the embedding table, of which it reads one row."""
    with ModelFile.open(path) as file:
        weights = file.tensors
        tied = "output.weight" not in weights
        return sum(w.nbytes for name, w in weights.items() if tied or name != "token_embd.weight")


def measure(name: str, path: Path, args: argparse.Namespace, peer: Path, read: Worker) -> list[Row]:
    """Every test on one file, from the shortest prefill on."""
    tests = [("prefill", n) for n in args.prefill] + [("decode", n) for n in args.decode]
    n_ctx = max(n for _, n in tests) + 1
    common = [path, str(args.threads), str(n_ctx)]
    rows = []
    with ExitStack() as stack:
        ours = stack.enter_context(Worker([sys.executable, HERE / "workers/hetrun_worker.py", *common]))
        theirs = stack.enter_context(Worker([peer, HERE / "workers/llama_cpp_worker.py", *common]))
        for side in (ours, theirs):
            side.ask("prefill 64")  # first touches: pages of the file, repacked weights
            side.ask("decode 4")
        for test, n in tests:
            samples = list[Sample]()
            # More tries where others disturb. What is kept is chosen by how quiet it was, never by its figures.
            for _ in range(args.repetitions * TRIES):
                samples.append(sample(ours, theirs, read, test, n))
                if sum(s.others <= performance_page.DISTURBED for s in samples) == args.repetitions:
                    break
            kept = sorted(samples, key=lambda s: s.others)[: args.repetitions]
            columns = tuple(zip(*(s[:3] for s in kept), strict=True))
            others = statistics.median(s.others for s in kept)
            row = Row(name, test, n, *columns, decode_bytes(path) if test == "decode" else 0, others)
            say(performance_page.text_row(row))
            rows.append(row)
    return rows


class Sample(NamedTuple):
    """others: the largest share of the processor that other programs took during one of the three."""

    ours_tps: float
    peer_tps: float
    read_bytes_per_s: float
    others: float


def sample(ours: Worker, theirs: Worker, read: Worker, test: str, n: int) -> Sample:
    """One repetition. Decode goes in slices, both sides and a read in turn: a memory's rate changes within a second."""
    if test == "decode":
        for side in (ours, theirs):
            side.ask("decode 0")
        lines = [f"step {min(SLICE, n - done)}" for done in range(0, n, SLICE)]
    else:
        lines = [f"{test} {n}"]
    answers = [
        [ask_quietly(worker, question) for worker, question in ((ours, line), (theirs, line), (read, ""))]
        for line in lines
    ]
    ours_s, peer_s = (sum(row[side][0] for row in answers) for side in (0, 1))
    read_bytes_per_s = statistics.harmonic_mean([row[2][0] for row in answers])
    others = max(statistics.fmean(row[side][1] for row in answers) for side in range(3))
    return Sample(n / ours_s, n / peer_s, read_bytes_per_s, others)


def ask_quietly(worker: Worker, line: str) -> tuple[float, float]:
    """(answer, share of the processor that others took meanwhile), asked once the machine is idle, or will not be."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while idle_fraction(REST_S) < QUIET_FRACTION and time.monotonic() < deadline:
        pass
    before, own = _processor_ticks(), worker.processor_ticks()
    answer = worker.ask(line)
    ticks = [now - then for now, then in zip(_processor_ticks(), before, strict=True)]
    busy = sum(ticks) - ticks[3] - (worker.processor_ticks() - own)
    return answer, max(busy, 0) / max(sum(ticks), 1)


def idle_fraction(window_s: float) -> float:
    """Processor time of the next window_s in which no process ran, by /proc/stat."""
    before = _processor_ticks()
    time.sleep(window_s)
    ticks = [now - then for now, then in zip(_processor_ticks(), before, strict=True)]
    return ticks[3] / max(sum(ticks), 1)


def _processor_ticks() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def record(row: Row) -> dict[str, object]:
    return {
        **asdict(row),
        "ratios": row.ratios,
        "bandwidth_fraction": row.bandwidth_fraction,
        "ratio_at_read_rate": row.ratio_at_read_rate,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=known_file, metavar="FILE", help=f"{', '.join(FILES)}, or GGUF files")
    parser.add_argument("--other-types", action="store_true", help=f"of {', '.join(OTHER_FILES)}: four layers each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5, help="of each test, alternated")
    parser.add_argument("--prefill", type=int, nargs="*", default=[256, 512], metavar="N")
    parser.add_argument("--decode", type=int, nargs="*", default=[64, 128], metavar="N")
    parser.add_argument("--quick", action="store_true", help="three repetitions of prefill 256 and decode 64")
    parser.add_argument("--json", action="store_true", help="every figure, on stdout")
    parser.add_argument("--write", action="store_true", help="docs/performance.md, from this run")
    parser.add_argument("--peer-python", type=Path, help=f"the Python of an environment with a native {PEER}")
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.prefill, args.decode = 3, [256], [64]
    if args.threads < 1 or args.repetitions < 1 or not args.prefill + args.decode:
        parser.error("at least one thread, repetition and test")
    if args.other_types and args.files:
        parser.error("--other-types, or files by name")
    args.files = args.files or list(OTHER_FILES if args.other_types else DEFAULT_FILES)
    return args


def main() -> None:
    args = parse()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    peer = args.peer_python or peer_python(cache)
    paths = {name: model_path(name, cache, peer) for name in args.files}
    rows: list[Row] = []
    machine = performance_page.machine(args.threads, PEER)
    with Worker([read_benchmark(cache), str(args.threads), str(READ_MEGABYTES)], greeting=False) as read:
        read.ask("")
        for name, path in paths.items():
            rows += measure(name, path, args, peer, read)
    if args.json:
        print(json.dumps({"machine": machine, "rows": [record(row) for row in rows]}, indent=2))
    else:
        print(performance_page.table(rows))
    if args.write:
        page = HERE.parent / "docs/performance.md"
        old = page.read_text() if page.exists() else ""
        page.write_text(performance_page.page(old, rows, machine, "other types" if args.other_types else "figures"))
        say(f"wrote {page}")


if __name__ == "__main__":
    try:
        main()
    except HetrunError as error:
        raise SystemExit(f"error: {error}") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: {' '.join(map(str, error.cmd))}: exit code {error.returncode}") from error
