"""Greedy continuations by llama.cpp, with the gap between the two best logits at each step, as a golden file.

    pip install llama-cpp-python==0.3.36
    python benchmarks/accuracy/greedy.py --model model.gguf --out tests/golden/accuracy_greedy_smollm2.json

`ids` are decoded one at a time after a prefill; `b512_ids` are the best tokens at the same positions when the whole
sequence is run as one batch instead, which is llama.cpp's own rounding.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from make_golden import sha256

N_TOKENS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "List three primary colors.",
    "Translate 'good morning' to French.",
)
# The model is tuned for chat. Plain text leaves it more undecided, so that it is kept apart.
PROMPTS = {
    "chat": tuple(f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS),
    "plain": (
        "The capital of France is",
        "Once upon a time, in a small village by the sea,",
        "def is_prime(n):\n",
        "The three laws of thermodynamics are",
        "Here is a simple recipe for pancakes:\n1.",
    ),
}


def continue_greedily(llama: Any, kind: str, prompt: str) -> dict[str, Any]:
    """At most N_TOKENS tokens; ends after the end-of-sequence token."""
    ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    llama.reset()
    llama.eval(ids)
    generated: list[int] = []
    gaps: list[float] = []
    while True:
        logits = np.array(llama.scores[llama.n_tokens - 1])
        second, first = np.argsort(logits)[-2:]
        generated.append(int(first))
        gaps.append(round(float(logits[first] - logits[second]), 4))
        if len(generated) == N_TOKENS or first == llama.token_eos():
            break
        llama.eval([int(first)])
    llama.reset()
    llama.eval(ids + generated[:-1])
    in_one_batch = np.array(llama.scores[len(ids) - 1 : llama.n_tokens]).argmax(axis=1).tolist()
    text = llama.detokenize(generated, special=True).decode(errors="replace")
    return {
        "kind": kind,
        "prompt": prompt,
        "prompt_ids": ids,
        "ids": generated,
        "gaps": gaps,
        "b512_ids": in_one_batch,
        "text": text,
    }


def dump(golden: dict[str, Any]) -> str:
    """JSON with one line a continuation."""
    head = {key: value for key, value in golden.items() if key != "continuations"}
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in golden["continuations"])
    return json.dumps(head)[:-1] + ',\n"continuations": [\n' + lines + "\n]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    llama = llama_cpp.Llama(
        str(args.model), n_ctx=512, n_threads=2, n_threads_batch=2, logits_all=True, flash_attn=True, verbose=False
    )
    golden = {
        "made_by": "benchmarks/accuracy/greedy.py, 2 threads, flash attention",
        "llama_cpp_python": llama_cpp.__version__,
        "model": args.model.name,
        "model_sha256": sha256(args.model),
        "continuations": [continue_greedily(llama, kind, p) for kind, prompts in PROMPTS.items() for p in prompts],
    }
    args.out.write_text(dump(golden), encoding="utf-8")


if __name__ == "__main__":
    main()
