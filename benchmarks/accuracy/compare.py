"""How far sets of teacher-forced logits lie from a base set: KL, top-1 agreement, perplexity, largest logit difference.

    python benchmarks/accuracy/compare.py BASE YARDSTICK [X ...] [--by-text] [--json]

A set is a directory of <text>.npy, float32 [n_tokens, n_vocab], as the other scripts here save them.
KL is KL(BASE || X) in nats, the mean over all positions with its standard error; perplexity is over the next tokens of
texts/ids.json. Each X is also paired with the yardstick, position by position: its KL in excess of the yardstick's, the
positions where only it (lost) or only the yardstick (won) misses the base's top-1, and the two-sided p of that split
(exact sign test).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from token_ids import add_option, read_ids


def log_softmax(logits: Any) -> Any:
    """In float64.   logits: [n_tokens, n_vocab]."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def measure_text(base: Any, x: Any, ids: list[int]) -> dict[str, Any]:
    """One number a position each: KL, equal top-1, negative log-likelihood of the next token, largest difference."""
    p, q = log_softmax(base), log_softmax(x)
    steps = np.arange(len(ids) - 1)
    return {
        "kl": (np.exp(p) * (p - q)).sum(axis=1),
        "hit": base.argmax(axis=1) == x.argmax(axis=1),
        "nll": -q[steps, ids[1:]],
        "diff": np.abs(base - x).max(axis=1),
    }


def sign_test(lost: int, won: int) -> float:
    """Two-sided p of a split at least as uneven where both sides are equally likely."""
    n, tail = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(tail + 1)) / 2**n)


def standard_error(x: Any) -> float:
    return float(x.std(ddof=1) / np.sqrt(len(x)))


def summary(name: str, m: dict[str, Any], yardstick: dict[str, Any]) -> dict[str, Any]:
    excess = m["kl"] - yardstick["kl"]
    lost, won = int((yardstick["hit"] & ~m["hit"]).sum()), int((m["hit"] & ~yardstick["hit"]).sum())
    return {
        "set": name,
        "tokens": len(m["kl"]),
        "kl": float(m["kl"].mean()),
        "kl_se": standard_error(m["kl"]),
        "kl_max": float(m["kl"].max()),
        "top1": float(m["hit"].mean()),
        "ppl": float(np.exp(m["nll"].mean())),
        "max_logit_diff": float(m["diff"].max()),
        "kl_excess": float(excess.mean()),
        "kl_excess_se": standard_error(excess),
        "top1_lost": lost,
        "top1_won": won,
        "top1_p": sign_test(lost, won),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["set"]) for row in rows)
    head = "tokens  KL mean (s.e.)       top-1 %     ppl  max |diff|  KL excess (s.e.)       lost won    p"
    print(f"{'set':{width}} {head}")
    for r in rows:
        print(
            f"{r['set']:{width}} {r['tokens']:6}  {r['kl']:.3e} ({r['kl_se']:.1e})  {100 * r['top1']:7.2f}"
            f"  {r['ppl']:6.3f}  {r['max_logit_diff']:.2e}   {r['kl_excess']:+.3e} ({r['kl_excess_se']:.1e})"
            f"  {r['top1_lost']:4} {r['top1_won']:3} {r['top1_p']:4.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("sets", type=Path, nargs="+", help="the first is the yardstick")
    parser.add_argument("--by-text", action="store_true")
    parser.add_argument("--json", action="store_true")
    add_option(parser)
    args = parser.parse_args()
    ids = read_ids(args.ids)
    rows, yardstick = [], {}
    for directory in args.sets:
        parts = {
            name: measure_text(np.load(args.base / f"{name}.npy"), np.load(directory / f"{name}.npy"), tokens)
            for name, tokens in ids.items()
        }
        parts["all texts"] = {
            key: np.concatenate([part[key] for part in parts.values()]) for key in next(iter(parts.values()))
        }
        yardstick = yardstick or parts
        for name, part in parts.items() if args.by_text else [("all texts", parts["all texts"])]:
            label = f"{directory} {name}" if args.by_text else str(directory)
            rows.append(summary(label, part, yardstick[name]))
    if args.json:
        print(json.dumps({"base": str(args.base), "yardstick": str(args.sets[0]), "sets": rows}, indent=2))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
