"""How long hetrun takes to load a model, and the most memory that loading and 16 tokens take, over the file's size.

    .venv/bin/python benchmarks/load.py             TinyLlama-shaped Q4_0, Q4_K_M, Q8_0 and SmolLM2; a minute
    .venv/bin/python benchmarks/load.py FILE...     GGUF files, or names as benchmarks/peer.py has them

Each run is a fresh process over a file in the page cache. load: from opening the file to a model that takes tokens.
peak: VmHWM, the largest resident set that the kernel saw, file pages of the model included, less the KV cells in use,
which are given beside it. The first run, which may find no huge pages at hand, is shown apart and not in the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import performance_page
from peer import SMOLLM2, model_path

FILES = ("Q4_0", "Q4_K_M", "Q8_0", SMOLLM2)
N_TOKENS = 16

CODE = f"""
import json, sys, time
import hetrun
from hetrun.ops import Attention

started = time.perf_counter()
with hetrun.load(sys.argv[1], devices=["cpu"], threads=int(sys.argv[2])) as model:
    load_s = time.perf_counter() - started
    model.generate([5, 6, 7], max_tokens={N_TOKENS}).finish()
    cells = sum(op.kv.token_bytes() for op in model.session.runtime.graph.ops if isinstance(op, Attention))
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    print(json.dumps({{"load_s": load_s, "peak_bytes": peak * 1024, "kv_bytes": cells * {3 + N_TOKENS}}}))
"""


def run_once(path: Path, threads: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", CODE, str(path), str(threads)], stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cache = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.files or FILES:
        path = model_path(name, cache)
        file_bytes = len(path.read_bytes())  # into the page cache
        first, *runs = (run_once(path, args.threads) for _ in range(args.runs + 1))
        load_s = [run["load_s"] for run in runs]
        peak = [(run["peak_bytes"] - run["kv_bytes"]) / file_bytes for run in runs]
        row = {
            "file": name,
            "file_bytes": file_bytes,
            "first_load_s": first["load_s"],
            "load_s": load_s,
            "kv_bytes": runs[0]["kv_bytes"],
            "peak_over_file": peak,
        }
        rows.append(row)
        if not args.json:
            print(
                f"{name:18} {file_bytes / 1e6:7.1f} MB   load {min(load_s):.3f} {statistics.median(load_s):.3f}"
                f" {max(load_s):.3f} s (first {first['load_s']:.3f})"
                f"   peak {max(peak):.3f} x the file and {runs[0]['kv_bytes'] / 1e6:.1f} MB of KV",
                flush=True,
            )
    machine = performance_page.machine(args.threads, "none")
    if args.json:
        print(json.dumps({"machine": machine, "runs": args.runs, "files": rows}, indent=2))
    else:
        print("; ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items() if key != "peer"))


if __name__ == "__main__":
    main()
