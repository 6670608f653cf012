"""A compact golden file of llama.cpp's teacher-forced logits, from what llama_cpp_logits.py saved.

    cd benchmarks/accuracy
    python make_golden.py --model model.gguf --logits DIR --out ../../tests/golden/accuracy_logits_smollm2.json

For each text: `ids`, and for batch 1 and 512 at each position the log-probability of the next token (`next`, one less
than tokens) and the 5 best ids with their log-probabilities (`top_ids`, `top`). `b512.at_b1_top` are batch 512's
log-probabilities of batch 1's 5 best, so that KL(batch 1 || x) over 6 classes (these 5 and the rest) can be had for
both. Natural logarithms, rounded to 4 decimals.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from compare import log_softmax
from token_ids import add_option, read_ids

N_TOP = 5


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rounded(x: Any) -> Any:
    return np.round(x, 4).tolist()


def digest(logits: Any, ids: list[int]) -> dict[str, Any]:
    log_p = log_softmax(logits)
    top = np.argsort(-log_p, axis=1, kind="stable")[:, :N_TOP]
    steps = np.arange(len(ids) - 1)
    return {
        "next": rounded(log_p[steps, ids[1:]]),
        "top_ids": top.tolist(),
        "top": rounded(np.take_along_axis(log_p, top, axis=1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--logits", type=Path, required=True, help="--out of llama_cpp_logits.py")
    parser.add_argument("--out", type=Path, required=True)
    add_option(parser)
    args = parser.parse_args()
    texts = {}
    for name, ids in read_ids(args.ids).items():
        b1, b512 = (np.load(args.logits / batch / f"{name}.npy") for batch in ("b1", "b512"))
        texts[name] = {"ids": ids, "b1": digest(b1, ids), "b512": digest(b512, ids)}
        b1_top = np.array(texts[name]["b1"]["top_ids"])
        texts[name]["b512"]["at_b1_top"] = rounded(np.take_along_axis(log_softmax(b512), b1_top, axis=1))
    head = {
        "made_by": "benchmarks/accuracy/llama_cpp_logits.py and make_golden.py, 2 threads, flash attention",
        "llama_cpp_python": "0.3.36",
        "model": args.model.name,
        "model_sha256": sha256(args.model),
    }
    body = ",\n".join(f" {json.dumps(name)}: {json.dumps(t, separators=(',', ':'))}" for name, t in texts.items())
    args.out.write_text(json.dumps(head)[:-1] + ',\n"texts": {\n' + body + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
