"""Time from process start to the first token, whole run time, and peak resident memory of `hetrun generate`.

    python benchmarks/startup.py --model smollm2-135m [--runs 7] [--hetrun .venv/bin/hetrun] [--threads 2] [--json]

Each run is a fresh process with the model in the page cache. The first token's time is when its first byte arrives on a
pipe; memory is the process's maximum resident set as the kernel accounts it (file pages of the model included).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MB = 1e6


@dataclass(frozen=True)
class Run:
    first_token_s: float
    total_s: float
    peak_rss_bytes: int


def run_once(command: list[str]) -> Run:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    first_byte = os.read(process.stdout.fileno(), 1)
    first_token_s = time.perf_counter() - started
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    total_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first_byte:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}: run it by hand to see why")
    return Run(first_token_s, total_s, usage.ru_maxrss * 1024)


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--hetrun", default="hetrun")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    command = [args.hetrun, "generate", "--model", args.model, "--prompt", args.prompt]
    command += ["--max-tokens", str(args.max_tokens), *(["--threads", str(args.threads)] if args.threads else [])]
    listing = subprocess.run([args.hetrun, "inspect", "--model", args.model, "--json"], capture_output=True, check=True)
    path = Path(json.loads(listing.stdout)["path"])
    file_bytes = path.stat().st_size
    path.read_bytes()  # into the page cache
    runs = [run_once(command) for _ in range(args.runs + 1)][1:]

    figures = {name: spread([getattr(r, name) for r in runs]) for name in asdict(runs[0])}
    ratio = figures["peak_rss_bytes"]["median"] / file_bytes
    if args.json:
        print(json.dumps({**figures, "file_bytes": file_bytes, "peak_over_file": ratio, "runs": args.runs}))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"{machine}; {args.runs} runs, measured")
    for name, unit in (("first_token_s", 1.0), ("total_s", 1.0), ("peak_rss_bytes", MB)):
        s = {k: v / unit for k, v in figures[name].items()}
        label = name if unit == 1.0 else "peak_rss_mb"
        print(f"{label:16} min {s['min']:8.3f}   median {s['median']:8.3f}   max {s['max']:8.3f}")
    print(f"peak / file      {ratio:.3f}  (file {file_bytes / MB:.1f} MB)")


if __name__ == "__main__":
    main()
