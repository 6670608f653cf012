"""Teacher-forced logits of llama.cpp, token by token and in batches: DIR/b1/<text>.npy and DIR/b512/<text>.npy.

    pip install llama-cpp-python==0.3.36
    python benchmarks/accuracy/llama_cpp_logits.py --model model.gguf --out DIR [--write-ids]

llama.cpp runs with its own default, flash attention (--no-flash-attn for its other path). Each array is float32
[n_tokens, n_vocab]. --write-ids tokenizes the texts anew into texts/ids.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from llama_cpp import Llama
from token_ids import add_option, read_ids, read_texts, write_ids

N_CTX = 512


def tokenize_texts(model: Path) -> dict[str, list[int]]:
    """Ids with BOS where the file asks for it; special tokens in the text are parsed."""
    llama = Llama(str(model), vocab_only=True, verbose=False)
    bos = llama.metadata.get("tokenizer.ggml.add_bos_token", "false") == "true"
    return {name: llama.tokenize(text, add_bos=bos, special=True) for name, text in read_texts().items()}


def save_logits(
    model: Path, n_batch: int, ids: dict[str, list[int]], out: Path, flash_attn: bool, threads: int
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    llama = Llama(
        str(model),
        n_ctx=N_CTX,
        n_batch=n_batch,
        n_ubatch=n_batch,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        flash_attn=flash_attn,
        verbose=False,
    )
    for name, tokens in ids.items():
        if len(tokens) > N_CTX:
            raise SystemExit(f"{name}: {len(tokens)} tokens, at most {N_CTX} fit")
        llama.reset()
        llama.eval(tokens)
        np.save(out / f"{name}.npy", np.array(llama.scores[: len(tokens)], dtype=np.float32))
        print(f"batch {n_batch}: {name}, {len(tokens)} tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="a directory outside the repository: 300 MB a set, 1.2 GB for Gemma 3"
    )
    parser.add_argument("--flash-attn", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2, help="1 on a busy machine, where threads wait for each other")
    parser.add_argument("--write-ids", action="store_true")
    add_option(parser)
    args = parser.parse_args()
    if args.write_ids:
        write_ids(tokenize_texts(args.model), args.ids)
    for n_batch in (1, 512):
        save_logits(args.model, n_batch, read_ids(args.ids), args.out / f"b{n_batch}", args.flash_attn, args.threads)


if __name__ == "__main__":
    main()
