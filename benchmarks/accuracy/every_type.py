"""Perplexity of hetrun's cpu device beside llama.cpp's for every tensor type, over the same >= 20,000 tokens.

    .venv/bin/python benchmarks/accuracy/every_type.py              an hour on two cores, after the peer is built
    .venv/bin/python benchmarks/accuracy/every_type.py --minutes 7  stops then; the same command goes on from there
    .venv/bin/python benchmarks/accuracy/every_type.py --write      also the tables of docs/accuracy.md

Run it with the Python that has hetrun. The files are SmolLM2-135M with zeros around it (padded_model.py says why),
quantised by llama.cpp's own quantiser; the text is the reference of the Python that runs this (pydoc's topics), in
windows of 512 tokens, each from an empty context on both sides. What is made and measured stays in
HETRUN_BENCH_CACHE (default ~/.cache/hetrun/benchmarks) under every-type: 4 GB.

Beside the perplexities stand their ratio and its standard error over the windows: the two sides differ by noise that a
text of this length does not average away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import performance_page  # noqa: E402
from padded_model import write_float32, write_padded  # noqa: E402
from peer import PEER, peer_python  # noqa: E402

from hetrun.model.catalog import Catalog  # noqa: E402
from hetrun.model.gguf_file import ModelFile  # noqa: E402
from hetrun.model.tokenizer import Tokenizer  # noqa: E402

WINDOW, N_WINDOWS = 512, 41
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "NVFP4"),
)
PARTS = {
    **{name: "ffn_down" for name in ("Q2_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")},
    **{name: "blk.15.ffn_down" for name in ("TQ1_0", "TQ2_0")},  # ternary: ffn_down of every block is too much, too
}
"""Types that leave nothing of this small model where all matrices have them: these matrices alone do, others Q8_0."""

OWN_FILE = "SmolLM2-135M Q4_1"
CACHES = {"f16": "f16", "q8_0": "q8_0", "kv4": "q4_0", "kv4h": "q4_0"}
"""KV formats of hetrun: the one of llama.cpp beside it."""

LIMIT = 0.005
BEGIN, END = "<!-- figures: written by benchmarks/accuracy/every_type.py -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Run:
    """One side over one file.   side: "hetrun", "llama.cpp", or "exact": llama.cpp over the file's values in F32."""

    file: str
    kv: str
    side: str

    @property
    def name(self) -> str:
        return f"{self.file.replace(' ', '-')},{self.kv},{self.side}"


class OutOfTimeError(Exception):
    """The minutes asked for are over."""


class Bench:
    """The files, and what was measured so far."""

    def __init__(self, folder: Path, peer: Path, threads: int, deadline: float) -> None:
        self.folder, self.peer, self.threads, self.deadline = folder, peer, threads, deadline
        folder.mkdir(parents=True, exist_ok=True)
        self.source = Catalog.load().pull("smollm2-135m")
        self.windows = folder / "windows.json"
        if not self.windows.exists():
            self.windows.write_text(json.dumps(windows(self.source)))
        self.runs = folder / f"runs-{hashlib.sha256(self.windows.read_bytes()).hexdigest()[:12]}"
        self.runs.mkdir(exist_ok=True)

    def path(self, type_name: str) -> Path | None:
        """The padded model in a type, made where it is missing; None where llama.cpp's quantiser refuses."""
        if type_name == OWN_FILE:
            return self.source
        path, source = (self.folder / f"padded-{name}.gguf" for name in (type_name, "F32"))
        if not source.exists():
            say(f"making {source}")
            write_padded(self.source, source)
        if not path.exists():
            say(f"making {path}")
            partial = path.with_suffix(".partial")
            part = [PARTS[type_name]] if type_name in PARTS else []
            command = [self.peer, HERE / "llama_cpp_quantise.py", source, partial, type_name, *part]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                say(f"{type_name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
                partial.unlink(missing_ok=True)
                return None
            partial.rename(path)
        return path

    def measure(self, run: Run) -> Sequence[float] | None:
        """-ln p summed over each window, or None where the side does not run the file. Kept window by window."""
        kept = self.runs / f"{run.name}.txt"
        done = [float(line) for line in kept.read_text().split()] if kept.exists() else []
        if len(done) >= N_WINDOWS:
            return done
        path = self.path(run.file)
        if path is None:
            return None
        python, script = (sys.executable, "hetrun") if run.side == "hetrun" else (self.peer, "llama_cpp")
        if run.side == "exact":
            path, source = self.folder / f"values-of-{run.file}.gguf", path
            if not path.exists():
                write_float32(source, path)
        command = [python, HERE / f"{script}_nll.py", path, self.windows, run.kv, self.threads, len(done)]
        process = subprocess.Popen(list(map(str, command)), stdout=-1, text=True)
        assert process.stdout
        try:
            for line in process.stdout:
                done.append(float(line))
                kept.write_text("\n".join(map(repr, done)))
                if time.monotonic() > self.deadline:
                    raise OutOfTimeError
        finally:
            process.terminate()
            process.wait()
        if run.side == "exact":
            path.unlink()  # 766 MB
        if len(done) < N_WINDOWS:
            say(f"{run.name}: stopped after {len(done)} windows")
            return None
        say(f"{run.name}: {perplexity(done):.4f}")
        return done


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def windows(model: Path) -> list[list[int]]:
    """Ids of the text, in windows; as many as are measured."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    with ModelFile.open(model) as file:
        ids = Tokenizer.from_metadata(file.metadata).encode(text[: 8 * WINDOW * N_WINDOWS])
    if len(ids) < WINDOW * N_WINDOWS:
        raise SystemExit(f"the text has {len(ids)} tokens, {WINDOW * N_WINDOWS} are needed")
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(N_WINDOWS)]


@dataclass(frozen=True)
class Row:
    """Perplexities over the same windows.   exact: with float32 weights and activations, where that was asked for.

    difference: ours over theirs, less 1.   error: its standard error by the spread of the windows' own differences.
    """

    name: str
    hetrun: float
    llama_cpp: float
    exact: float | None
    difference: float
    error: float

    @classmethod
    def of(cls, name: str, ours: Sequence[float], theirs: Sequence[float], exact: Sequence[float] | None = None) -> Row:
        differences = [(a - b) / (WINDOW - 1) for a, b in zip(ours, theirs, strict=True)]
        return cls(
            name,
            perplexity(ours),
            perplexity(theirs),
            None if exact is None else perplexity(exact),
            math.expm1(sum(differences) / N_WINDOWS),
            statistics.stdev(differences) / math.sqrt(N_WINDOWS),
        )

    @property
    def verdict(self) -> str:
        if abs(self.difference) <= LIMIT:
            return "yes"
        if self.exact is not None and abs(self.hetrun - self.exact) < abs(self.llama_cpp - self.exact):
            return "no: nearer to exact"
        return "**no**"


def perplexity(nll: Sequence[float]) -> float:
    return math.exp(sum(nll) / (N_WINDOWS * (WINDOW - 1)))


def table(head: str, rows: Sequence[Row]) -> str:
    lines = [
        f"| {head} | hetrun | llama.cpp | exact | difference | standard error | within {LIMIT:.1%} |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        exact = "" if r.exact is None else f"{r.exact:.4f}"
        figures = f"{r.hetrun:.4f} | {r.llama_cpp:.4f} | {exact} | {r.difference:+.2%} | {r.error:.2%}"
        lines.append(f"| {r.name} | {figures} | {r.verdict} |")
    return "\n".join(lines)


def measured(bench: Bench, types: Sequence[str], caches: Sequence[str]) -> tuple[list[Row], list[Row], list[str]]:
    """Rows by type, rows by KV format, and the types that llama.cpp does not write or one side does not run.

    Where the two sides are further apart than `LIMIT`, float32 says which of them is nearer to what the file means.
    """
    pairs: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    by_type: list[Row] = []
    by_cache: list[Row] = []
    left_out: list[str] = []
    for name in types:
        ours, theirs = (bench.measure(Run(name, "f16", side)) for side in ("hetrun", "llama.cpp"))
        if not (ours and theirs):
            left_out.append(name)
            continue
        pairs[name] = ours, theirs
    for kv in caches:
        ours = bench.measure(Run(OWN_FILE, kv, "hetrun"))
        theirs = bench.measure(Run(OWN_FILE, CACHES[kv], "llama.cpp"))
        if ours and theirs:
            by_cache.append(Row.of(f"{kv}, llama.cpp's {CACHES[kv]}", ours, theirs))
    for name, (ours, theirs) in pairs.items():
        label = name + (f" ({PARTS[name]}, others Q8_0)" if name in PARTS else "")
        row = Row.of(label, ours, theirs)
        if abs(row.difference) > LIMIT:
            row = Row.of(label, ours, theirs, bench.measure(Run(name, "f16", "exact")))
        by_type.append(row)
    return by_type, by_cache, left_out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES, metavar="TYPE")
    parser.add_argument("--kv", nargs="*", default=list(CACHES), choices=CACHES, metavar="FORMAT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--again", nargs="*", default=[], metavar="TEXT", help="forget runs whose name holds it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="the tables of docs/accuracy.md")
    parser.add_argument("--peer-python", type=Path, help=f"the Python of an environment with a native {PEER}")
    return parser.parse_args()


def main() -> None:
    args = parse()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    peer = args.peer_python or peer_python(cache)
    bench = Bench(cache / "every-type", peer, args.threads, time.monotonic() + 60 * args.minutes)
    for text in args.again:
        for kept in bench.runs.glob(f"*{text}*"):
            kept.unlink()
    try:
        by_type, by_cache, left_out = measured(bench, args.types, args.kv)
    except OutOfTimeError:
        raise SystemExit("out of time: the same command goes on from here") from None
    machine = performance_page.machine(args.threads, PEER)
    if args.json:
        rows = {"types": [asdict(r) for r in by_type], "kv": [asdict(r) for r in by_cache]}
        print(json.dumps({"machine": machine, **rows, "left_out": left_out}, indent=2))
        return
    text = f"{table('type', by_type)}\n\n{table('KV', by_cache)}\n"
    if left_out:
        text += f"\nNot written by llama.cpp's quantiser, or not run by one side: {', '.join(left_out)}.\n"
    print(text)
    if args.write:
        page = HERE.parents[1] / "docs/accuracy.md"
        before, _, rest = page.read_text().partition(BEGIN)
        facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
        page.write_text(f"{before}{BEGIN}\n\nMachine and versions: {facts}.\n\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
