"""hetrun's side of benchmarks/peer.py and long_context.py: python hetrun_worker.py MODEL THREADS N_CTX [NAME=VALUE ...]

Names: isa, kv_format, window, sink. Each line of stdin is answered by the seconds that it took, hetrun's own Python
included: "prefill N" and "decode N" from an empty context, "extend N" from the context there is to one of N tokens,
"step N" for N single tokens behind it, "append N" for such that are then forgotten. "prefill 0" empties the context.
"""

from __future__ import annotations

import random
import sys
import time

import hetrun


def main() -> None:
    model, threads, n_ctx, *options = sys.argv[1:]
    named = dict(option.split("=") for option in options)
    settings = {"cpu": {"isa": named["isa"]}} if "isa" in named else {}
    with hetrun.load(
        model,
        devices=["cpu"],
        threads=int(threads),
        n_ctx=int(n_ctx),
        driver_settings=settings,
        kv_format=named.get("kv_format", "f16"),
        window=int(named.get("window", 0)),
        sink=int(named.get("sink", 0)),
    ) as loaded:
        session = loaded.session
        rng = random.Random(0)
        tokens = [rng.randrange(3, session.n_vocab) for _ in range(int(n_ctx))]
        print("ready", flush=True)
        for line in sys.stdin:
            test, n = line.split()
            if test in ("prefill", "decode"):
                session.truncate(0, 0)
            if test == "decode":
                session.feed(tokens[:1])
            start = session.length()
            end = int(n) if test == "extend" else start + int(n)
            started = time.perf_counter()
            if start == end:
                pass
            elif test in ("prefill", "extend"):
                session.feed(tokens[start:end])
            else:
                for token in tokens[start:end]:
                    session.feed([token])
            elapsed_s = time.perf_counter() - started
            if test == "append":
                session.truncate(0, start)
            print(elapsed_s, flush=True)


if __name__ == "__main__":
    main()
