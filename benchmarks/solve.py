"""Seconds that the placement solver takes: 32 layers on 4 devices, with equal layers and with all of them different.

python benchmarks/solve.py [--layers 32] [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hetrun.plan.cost import Terms
from hetrun.plan.plan import PHASES
from hetrun.plan.solve import cheapest
from hetrun.plugins import FoundDevice

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from null.fakes import fake, link
from null.graphs import llama_graph
from null.test_solve import allowed_of, random_devices, tables_of


def seconds(n_layers: int, devices: Sequence[FoundDevice]) -> float:
    tables = tables_of(llama_graph(n_layers=n_layers), devices)
    allowed = allowed_of(tables)
    started = time.perf_counter()
    cheapest(tables, allowed, dict.fromkeys(PHASES, Terms()))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    equal = [fake(f"e{i}", link=link(1e-4 * i) if i else None, default_s=1e-3 / (i + 1)) for i in range(4)]
    drawn = random_devices(np.random.default_rng(0), 4, llama_graph(n_layers=args.layers))
    for name, devices in (("equal layers", equal), ("all differ", drawn)):
        times = [seconds(args.layers, devices) for _ in range(args.runs)]
        median_s, least_s = statistics.median(times), min(times)
        print(f"{args.layers} layers, 4 devices, {name:12} median {median_s:.3f} s  min {least_s:.3f} s")


if __name__ == "__main__":
    main()
