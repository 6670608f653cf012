"""Perplexity of SmolLM2-135M after each step of compression, by KV format and by attention.

    .venv/bin/python benchmarks/accuracy/compressed.py              an hour on two cores
    .venv/bin/python benchmarks/accuracy/compressed.py --minutes 7  stops then; the same command goes on from there
    .venv/bin/python benchmarks/accuracy/compressed.py --write      also the tables of docs/compression.md

Run it with the Python that has hetrun. Calibrated on docstrings of the standard library, measured on Python's language
reference (pydoc's topics, as every_type.py has them): two texts that any Python has, of one kind; 0.2% of the runs of
ten words in the one are in the other. Windows of 512 tokens from an empty context; attention in windows of 4096. What
is made and measured stays in HETRUN_BENCH_CACHE (default ~/.cache/hetrun/benchmarks) under compressed: 1 GB.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import performance_page  # noqa: E402

import hetrun  # noqa: E402
from hetrun.model.catalog import Catalog  # noqa: E402
from hetrun.model.gguf_file import ModelFile  # noqa: E402
from hetrun.model.tokenizer import Tokenizer  # noqa: E402
from hetrun.run.perplexity import perplexity  # noqa: E402

PAGE = HERE.parents[1] / "docs/compression.md"
BEGIN, END = "<!-- figures: written by benchmarks/accuracy/compressed.py -->", "<!-- end of figures -->"
BASE = "base"
STEPS = {  # name: options of hetrun compress
    "s24-wanda": ["--scheme", "s24", "--method", "wanda"],
    "s24": ["--scheme", "s24"],
    "w2-wanda": ["--scheme", "w2", "--method", "wanda"],
    "w2": ["--scheme", "w2"],
    "w2s24-wanda": ["--scheme", "w2s24", "--method", "wanda"],
    "w2s24": ["--scheme", "w2s24"],
}
SHOWN = {
    BASE: "base (Q4_1)",
    "s24-wanda": "2:4 alone, wanda",
    "s24": "2:4 alone",
    "w2-wanda": "W2 alone, wanda",
    "w2": "W2 alone",
    "w2s24-wanda": "W2 + 2:4, wanda",
    "w2s24": "W2 + 2:4",
}
KV = ("f16", "q8_0", "kv4", "kv4h")
SHORT, LONG = 512, 4096
SINK, WINDOW = 2, 2044
TEXT_TOKENS, CALIBRATION_TOKENS = 20992, 4096


@dataclass(frozen=True)
class Run:
    """One file, KV format and attention, over windows of n_ctx tokens."""

    file: str
    kv: str = "f16"
    n_ctx: int = SHORT
    windowed: bool = False

    @property
    def name(self) -> str:
        return f"{self.file},{self.kv},{self.n_ctx}{',windowed' if self.windowed else ''}"


RUNS = (
    *(Run(file) for file in SHOWN),
    *(Run(file, kv) for file in (BASE, "w2", "w2s24") for kv in KV[1:]),
    *(Run(file, "f16", LONG, windowed) for file in (BASE, "w2s24") for windowed in (False, True)),
)


class OutOfTimeError(Exception):
    """The minutes asked for are over."""


class Bench:
    """The files, and what was measured so far."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args = folder, args
        self.deadline = time.monotonic() + 60 * args.minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.source = Catalog.load().pull("smollm2-135m")
        text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
        with ModelFile.open(self.source) as file:
            ids = Tokenizer.from_metadata(file.metadata).encode(text, add_special=False)
        self.ids = ids[:TEXT_TOKENS]

    def path(self, name: str) -> Path:
        """The file of a step, made where it is missing."""
        if name == BASE:
            return self.source
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            if time.monotonic() > self.deadline:
                raise OutOfTimeError
            text = self.folder / "calibration.txt"
            text.write_text(calibration_text())
            say(f"making {path}")
            command = [sys.executable, "-m", "hetrun", "compress", "--model", self.source, "-c", text, "-o", path]
            tokens = ["--tokens", str(CALIBRATION_TOKENS)]
            subprocess.run([*map(str, command), *tokens, *STEPS[name]], check=True)
        return path

    def measure(self, run: Run) -> list[float]:
        """-ln p summed over each window. Kept window by window."""
        path = self.path(run.file)
        key = hashlib.sha256(path.read_bytes() + repr(self.ids).encode()).hexdigest()[:12]
        kept = self.folder / f"{run.name},{key}.txt"
        done = [float(line) for line in kept.read_text().split()] if kept.exists() else []
        windows = list(self.windows(run.n_ctx))
        if len(done) >= len(windows):
            return done[: len(windows)]
        attention = {"sink": SINK, "window": WINDOW} if run.windowed else {}
        options = {"kv_format": run.kv, "n_ctx": run.n_ctx, "threads": self.args.threads, **attention}
        with hetrun.load(path, devices=["cpu"], **options) as model:
            for window in windows[len(done) :]:
                if time.monotonic() > self.deadline:
                    raise OutOfTimeError
                done.append(perplexity(model.session, window, n_ctx=run.n_ctx).nll)
                kept.write_text("\n".join(map(repr, done)))
        return done

    def windows(self, n_ctx: int) -> Iterator[Sequence[int]]:
        n = min(len(self.ids), max(self.args.tokens, n_ctx))
        return (self.ids[i : i + n_ctx] for i in range(0, n - n_ctx + 1, n_ctx))

    def ppl(self, run: Run) -> float:
        nll = self.measure(run)
        return math.exp(sum(nll) / (len(nll) * (run.n_ctx - 1)))


def calibration_text() -> str:
    """Docstrings of the standard library's modules, without those that show sessions or tables."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) > 300 and ">>>" not in text:
                    found.append(text)
    return "\n\n".join(found)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (headers, ["---"] * len(headers), *rows))


def shown(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def report(bench: Bench, results: dict[Run, float], machine: dict[str, object]) -> str:
    def cell(run: Run) -> str:
        return shown(results[run]) if run in results else "not yet"

    def size(name: str) -> str:
        return f"{bench.path(name).stat().st_size / 1e6:.1f} MB" if Run(name) in results else ""

    def ratio(run: Run) -> str:
        return f"{results[run] / results[Run(BASE)]:.2f}" if run in results else ""

    steps = [[SHOWN[f], size(f), cell(Run(f)), ratio(Run(f))] for f in SHOWN]
    caches = [[SHOWN[f], *(cell(Run(f, kv)) for kv in KV)] for f in (BASE, "w2", "w2s24")]
    attention = [
        [SHOWN[f], *(cell(Run(f, "f16", LONG, windowed)) for windowed in (False, True))] for f in (BASE, "w2s24")
    ]
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    short, long = (n_ctx * len(list(bench.windows(n_ctx))) for n_ctx in (SHORT, LONG))
    return "\n\n".join(
        (
            f"Measured on the cpu device ({facts}). SmolLM2-135M-Instruct Q4_1, {short:,} tokens of Python's language "
            f"reference in windows of {SHORT}; calibrated on {CALIBRATION_TOKENS:,} tokens of the standard library's "
            "docstrings. The matrices of the layers are compressed; the embedding, which is the head too, stays.",
            table(("weights, KV f16", "file", "perplexity", "over base"), steps),
            "By KV format (`kv4h` is `kv4` behind a rotation):",
            table(("weights", *KV), caches),
            f"By attention, {long:,} tokens in windows of {LONG}: all keys, or {SINK} sinks and the last {WINDOW}:",
            table(("weights", "full", f"{SINK} + {WINDOW}"), attention),
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TEXT_TOKENS, help="of the text that is measured on, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--write", action="store_true", help="docs/compression.md, from this run")
    return parser.parse_args()


def main() -> None:
    args = parse()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    bench = Bench(cache / "compressed", args)
    results: dict[Run, float] = {}
    try:
        for run in RUNS:
            results[run] = bench.ppl(run)
            say(f"{run.name}: {shown(results[run])}")
    except OutOfTimeError:
        say(f"stopped with {len(results)} of {len(RUNS)} done: the same command goes on")
    text = report(bench, results, {k: v for k, v in performance_page.machine(args.threads, "").items() if v})
    print(text)
    if args.write:
        old = PAGE.read_text()
        pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
        PAGE.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n\n{text}\n\n{END}", old, count=1, flags=re.S))
        say(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
