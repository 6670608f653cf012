"""What recording costs: decode with and without it, step by step in turn, in one process.

    .venv/bin/python benchmarks/profile_overhead.py --model smollm2-135m --threads 2

A round runs the same token at the same position three times: not recording, recording, and not recording again, in an
order that changes from round to round. Steps of milliseconds in turn meet the same weather, which whole runs do not.
Printed are the median time of a step, and the median of each round's ratio to not recording, with the middle half of
the rounds and all of them; "off, again" shows what noise makes of nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import hetrun
from hetrun.run.session import Session


def step_s(session: Session, n_past: int, recording: bool) -> float:
    """Seconds of one step of decode behind n_past tokens."""
    session.truncate(0, n_past)
    session.record(recording)
    started = time.perf_counter()
    session.feed([1])
    seconds = time.perf_counter() - started
    session.record(False)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--past", type=int, default=64, help="tokens in the context")
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times: dict[str, list[float]] = {"off": [], "on": [], "off, again": []}
    with hetrun.load(options.model, devices=["cpu"], threads=options.threads, n_ctx=options.past + 1) as model:
        session = model.session
        session.feed(range(1, options.past + 1))
        for i in range(options.rounds + 20):
            session.trace.steps.clear()
            names = list(times)
            for name in names[i % 3 :] + names[: i % 3]:
                seconds = step_s(session, options.past, name == "on")
                if i >= 20:  # the first warm up
                    times[name].append(seconds)
    record = {
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "step_s": {name: statistics.median(found) for name, found in times.items()},
        "ratios": {
            name: _ratios([found / off for off, found in zip(times["off"], times[name], strict=True)])
            for name in ("on", "off, again")
        },
    }
    if options.json:
        print(json.dumps(record))
        return
    for name, seconds in record["step_s"].items():
        print(f"{name:12} {1e3 * seconds:.4f} ms a step")
    for name, ratio in record["ratios"].items():
        print(
            f"{name} / off: median {ratio['median']:.4f}, half of the rounds {ratio['low']:.4f} to {ratio['high']:.4f},"
        )
        print(f"    all {ratio['min']:.4f} to {ratio['max']:.4f}")


def _ratios(found: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(found, n=4)
    return {"median": median, "low": low, "high": high, "min": min(found), "max": max(found)}


if __name__ == "__main__":
    main()
