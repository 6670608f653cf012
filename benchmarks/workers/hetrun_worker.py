"""hetrun's side of benchmarks/peer.py: python hetrun_worker.py MODEL THREADS N_CTX [ISA]

Each line of stdin, "prefill N" or "decode N", is answered by the seconds that it took, hetrun's own Python included.
"""

from __future__ import annotations

import random
import sys
import time

import hetrun


def main() -> None:
    model, threads, n_ctx, *isa = sys.argv[1:]
    settings = {"cpu": {"isa": isa[0]}} if isa else {}
    with hetrun.load(
        model, devices=["cpu"], threads=int(threads), n_ctx=int(n_ctx), driver_settings=settings
    ) as loaded:
        session = loaded.session
        rng = random.Random(0)
        tokens = [rng.randrange(3, session.n_vocab) for _ in range(int(n_ctx))]
        print("ready", flush=True)
        for line in sys.stdin:
            test, n = line.split()
            session.truncate(0, 0)
            if test == "prefill":
                started = time.perf_counter()
                session.feed(tokens[: int(n)])
            else:
                session.feed(tokens[:1])
                started = time.perf_counter()
                for token in tokens[1 : int(n) + 1]:
                    session.feed([token])
            print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
