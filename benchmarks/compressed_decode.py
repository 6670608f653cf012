"""Decode of the encodings of `hetrun compress` on the cpu device, beside GGUF types: tokens/s, share of the read rate.

    python benchmarks/compressed_decode.py [--threads N] [--repetitions N]      three minutes

TinyLlama-shaped files of random codes, embedding and head as in the Q4_0 file; files in HETRUN_BENCH_CACHE (default
~/.cache/hetrun/benchmarks). A slice of each file's steps and a read of memory take turns, as in peer.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from peer import HERE, READ_MEGABYTES, SLICE, Worker, ask_quietly, decode_bytes, model_path, read_benchmark, say

from hetrun.compress.container import metadata_of, write
from hetrun.compress.encode import GROUP, Codes
from hetrun.model.gguf_file import ModelFile
from hetrun.tensor import ENCODED_TYPES, TensorType, Weight

FILES = ("W2S24", "W2", "Q2_K", "Q4_0")
N_DECODE = 64
PATTERN_ROWS = 61


def random_rows(weight: Weight, kind: TensorType) -> Iterator[bytes]:
    """Rows of a matrix: random codes, scales that give them a spread of about 0.03, some rows again and again."""
    rng = np.random.default_rng(zlib.crc32(weight.name.encode()))
    shape = PATTERN_ROWS, weight.shape[1]
    groups = shape[0], shape[1] // GROUP
    kept = None
    if kind.name == "W2S24":
        order = rng.random((shape[0], shape[1] // 4, 4)).argsort(axis=2)
        kept = (order < 2).reshape(shape)
    code = rng.integers(0, 4, shape, dtype=np.uint8)
    scale, zero = rng.integers(8192, 16384, groups), rng.integers(1, 3, groups, dtype=np.uint8)
    pattern = Codes(code, kept, scale, zero, np.full(shape[0], 2e-6, np.float32)).to_bytes()
    for first in range(0, weight.shape[0], PATTERN_ROWS):
        yield pattern[: kind.row_bytes(shape[1]) * min(PATTERN_ROWS, weight.shape[0] - first)]


def encoded_path(type_name: str, source: Path, cache: Path) -> Path:
    """The file with its layers' matrices in an encoding, made where it is missing."""
    path = cache / f"tinyllama-shaped-{type_name}.gguf"
    if not path.exists():
        say(f"making {path}")
        kind, partial = ENCODED_TYPES[type_name], path.with_suffix(".partial")
        with ModelFile.open(source) as file, open(partial, "wb") as target:
            kinds = {
                name: (w, kind if name.startswith("blk.") and len(w.shape) == 2 else w.type)
                for name, w in file.tensors.items()
            }

            def data(name: str) -> Iterator[bytes | memoryview]:
                weight, own = kinds[name]
                return random_rows(weight, own) if own is kind else iter([file.blocks(name)])

            write(target, metadata_of(file, kinds, {}), file.alignment, list(kinds.values()), data)
        partial.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    source = model_path("Q4_0", cache)
    paths = {n: encoded_path(n, source, cache) if n in ENCODED_TYPES else model_path(n, cache) for n in FILES}
    rates: dict[str, list[float]] = {name: [] for name in FILES}
    shares: dict[str, list[float]] = {name: [] for name in FILES}
    others = 0.0
    with ExitStack() as stack:
        read = stack.enter_context(Worker([read_benchmark(cache), str(args.threads), str(READ_MEGABYTES)], False))
        read.ask("")
        command = [sys.executable, HERE / "workers/hetrun_worker.py"]
        workers = {n: stack.enter_context(Worker([*command, p, str(args.threads), "128"])) for n, p in paths.items()}
        for worker in workers.values():
            worker.ask("decode 4")
        for _ in range(args.repetitions):
            for name, worker in workers.items():
                worker.ask("decode 0")
                answers = [
                    (ask_quietly(worker, f"step {SLICE}"), ask_quietly(read, "")) for _ in range(N_DECODE // SLICE)
                ]
                rates[name].append(N_DECODE / sum(step[0] for step, _ in answers))
                bytes_per_s = statistics.harmonic_mean([reading[0] for _, reading in answers])
                shares[name].append(rates[name][-1] * decode_bytes(paths[name]) / bytes_per_s)
                others = max(others, statistics.fmean(step[1] for step, _ in answers))
    print("| type | read by a step, MB | decode, tokens/s | used of the read rate |\n|---|---|---|---|")
    for name in FILES:
        low, high = min(shares[name]), max(shares[name])
        print(
            f"| {name} | {decode_bytes(paths[name]) / 1e6:.0f} | {statistics.median(rates[name]):.1f} "
            f"| {statistics.median(shares[name]):.0%} ({low:.0%} to {high:.0%}) |"
        )
    print(f"\nMedians of {args.repetitions}; other programs took up to {others:.0%} of the processor.")


if __name__ == "__main__":
    main()
