"""Measures long contexts against llama.cpp with flash attention, alternately: tokens/s by context and KV type.

    .venv/bin/python benchmarks/long_context.py            about six minutes, after peer.py has built the peer
    .venv/bin/python benchmarks/long_context.py --write    also docs/long-context.md
    .venv/bin/python benchmarks/long_context.py --kv q8_0  one KV type

Run it with the Python that has hetrun, on a machine with nothing else running. Both sides keep one context each and
fill it as far as the next test needs: at each length the last 512 tokens of that are the prefill test, and 16 single
tokens behind it, forgotten again and repeated in turn, the decode test.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import performance_page
from peer import HERE, PEER, SMOLLM2, Worker, ask_quietly, known_file, model_path, peer_python, say

from hetrun.errors import HetrunError

PAGE = HERE.parent / "docs/long-context.md"
PEER_TYPES = {"f16": "f16", "q8_0": "q8_0", "kv4": "q4_0", "kv4h": "q4_0"}
SINK, WINDOW = 4, 2044
STEPS, CHUNK = 16, 512  # of a decode and of a prefill test
FILLED = SINK + WINDOW + CHUNK  # the shortest context whose prefill test finds the window full for every token
HEADERS = ("KV, hetrun", "KV, llama.cpp", "test", "context", "hetrun", "llama.cpp", "ratio", "min", "max", "others")


@dataclass(frozen=True)
class Row:
    """ours_tps, peer_tps: one figure a repetition; none of the peer's where it has no such attention."""

    kv: str
    test: str
    context: int
    ours_tps: tuple[float, ...]
    peer_tps: tuple[float, ...]
    others: float

    def cells(self) -> tuple[str, ...]:
        ratios = [ours / peer for ours, peer in zip(self.ours_tps, self.peer_tps, strict=False)]
        figures = [f"{f(ratios):.2f}" if ratios else "" for f in (statistics.median, min, max)]
        ours, theirs = (f"{statistics.median(tps):.1f}" if tps else "" for tps in (self.ours_tps, self.peer_tps))
        peer = PEER_TYPES[self.kv] if self.peer_tps else ""
        kv = self.kv if self.peer_tps else f"{self.kv}, sink {SINK} + window {WINDOW}"
        return (kv, peer, self.test, str(self.context), ours, theirs, *figures, f"{self.others:.0%}")


def beside_peer(kv: str, args: argparse.Namespace, model: Path, peer: Path) -> Iterator[Row]:
    common = [model, str(args.threads), str(max(args.contexts) + STEPS)]
    with ExitStack() as stack:
        ours = stack.enter_context(
            Worker([sys.executable, HERE / "workers/hetrun_worker.py", *common, f"kv_format={kv}"])
        )
        theirs = stack.enter_context(Worker([peer, HERE / "workers/llama_cpp_worker.py", *common, PEER_TYPES[kv]]))
        sides = (ours, theirs)
        for side in sides:
            side.ask("prefill 64")  # first touches: pages of the file, repacked weights
            side.ask("prefill 0")
        for context in args.contexts:
            for side in sides:
                side.ask(f"extend {context - CHUNK}")
            for test, n, line, times in (
                ("prefill", CHUNK, f"extend {context}", 1),
                ("decode", STEPS, f"append {STEPS}", args.repetitions),
            ):
                if test == "decode":
                    for side in sides:
                        side.ask("append 2")
                samples = [[ask_quietly(side, line) for side in sides] for _ in range(times)]
                tps = [tuple(n / seconds for seconds, _ in column) for column in zip(*samples, strict=True)]
                others = statistics.median(max(share for _, share in pair) for pair in samples)
                yield Row(kv, test, context, tps[0], tps[1], others)


def windowed(kv: str, args: argparse.Namespace, model: Path) -> Iterator[Row]:
    contexts = sorted({*args.contexts, FILLED})
    options = [f"kv_format={kv}", f"sink={SINK}", f"window={WINDOW}"]
    command = [
        sys.executable,
        HERE / "workers/hetrun_worker.py",
        model,
        str(args.threads),
        str(max(contexts) + STEPS),
        *options,
    ]
    with Worker(command) as ours:
        ours.ask("prefill 64")
        samples: dict[int, list[tuple[float, float]]] = {context: [] for context in contexts}
        decoded: dict[int, list[tuple[float, float]]] = {context: [] for context in contexts}
        for _ in range(args.repetitions):
            ours.ask("prefill 0")
            for context in contexts:
                ours.ask(f"extend {context - CHUNK}")
                samples[context].append(ask_quietly(ours, f"extend {context}"))
                decoded[context].append(ask_quietly(ours, f"append {STEPS}"))
        for context in contexts:
            for test, n, times in (("prefill", CHUNK, samples[context]), ("decode", STEPS, decoded[context])):
                yield Row(kv, test, context, tuple(n / s for s, _ in times), (), statistics.median(o for _, o in times))


def table(rows: Sequence[Row]) -> str:
    lines = [HEADERS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADERS))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def page(old: str, part: str, rows: Sequence[Row], machine: dict[str, object]) -> str:
    """The page with the figures of one part replaced, or put at its end."""
    begin, end = f"<!-- figures of {part}: written by benchmarks/long_context.py -->", f"<!-- end of {part} -->"
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    figures = f"{begin}\n\n{facts}.\n\n{table(rows)}\n\n{end}"
    before, mark, rest = old.partition(begin)
    if not mark:
        return f"{old.rstrip()}\n\n{figures}\n"
    return before + figures + rest.partition(end)[2]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=known_file, default=SMOLLM2, help="a file of peer.py, or a GGUF file")
    parser.add_argument("--kv", nargs="+", default=["f16", "q8_0", "kv4", "window"], choices=[*PEER_TYPES, "window"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8160])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5, help="of each decode test, alternated")
    parser.add_argument("--write", action="store_true", help="docs/long-context.md, from this run")
    parser.add_argument("--peer-python", type=Path, help=f"the Python of an environment with a native {PEER}")
    args = parser.parse_args()
    if sorted(args.contexts) != args.contexts or args.contexts[0] < CHUNK:
        parser.error(f"contexts of {CHUNK} and more, the longest last")
    return args


def main() -> None:
    args = parse()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    peer = args.peer_python or peer_python(cache)
    model = model_path(args.model, cache)
    for part in args.kv:
        rows = []
        for row in windowed("f16", args, model) if part == "window" else beside_peer(part, args, model, peer):
            say("  ".join(row.cells()))
            rows.append(row)
        print(table(rows))
        if args.write:
            PAGE.write_text(page(PAGE.read_text(), part, rows, performance_page.machine(args.threads, PEER)))
            say(f"wrote {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except HetrunError as error:
        raise SystemExit(f"error: {error}") from error
