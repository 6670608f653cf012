"""Seconds to open a GGUF file: hetrun's reader against the gguf package's, alternately.

python benchmarks/open_file.py --model smollm2-135m [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from gguf import GGUFReader

from hetrun.model.catalog import resolve_model
from hetrun.model.gguf_file import ModelFile


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    path = resolve_model(args.model)
    ours, theirs = [], []
    for _ in range(args.runs):
        ours.append(seconds(lambda: ModelFile.open(path)))
        theirs.append(seconds(lambda: GGUFReader(path)))
    for name, times in (("hetrun", ours), ("gguf", theirs)):
        print(f"{name:8} min {min(times):.4f} s   median {statistics.median(times):.4f} s   max {max(times):.4f} s")


if __name__ == "__main__":
    main()
