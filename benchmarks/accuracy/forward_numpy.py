"""An independent forward pass of a llama-architecture GGUF file in plain NumPy; shares no code with hetrun.

    python benchmarks/accuracy/forward_numpy.py --model model.gguf --out DIR [--dtype float64]

Reads the file and dequantises it with the gguf package, evaluates each text as one causal matrix computation (no KV
cache) and saves DIR/<text>.npy, float32 [n_tokens, n_vocab].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
from token_ids import read_ids


class Llama:
    """The model with all weights dequantised to `dtype`."""

    def __init__(self, path: Path, dtype: Any) -> None:
        reader = gguf.GGUFReader(path)
        self.dtype = dtype
        self.w = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(dtype) for t in reader.tensors}

        def meta(key: str, default: Any = None) -> Any:
            field = reader.get_field(f"llama.{key}")
            return default if field is None else field.contents()

        self.n_layers = meta("block_count")
        self.n_heads = meta("attention.head_count")
        self.n_heads_kv = meta("attention.head_count_kv", self.n_heads)
        self.eps = meta("attention.layer_norm_rms_epsilon")
        self.rope_base = meta("rope.freq_base", 10000.0)
        self.head_dim = meta("rope.dimension_count", meta("embedding_length") // self.n_heads)
        self.output = self.w.get("output.weight", self.w["token_embd.weight"])

    def norm(self, h: Any, name: str) -> Any:
        scale = np.sqrt((h * h).mean(axis=1, keepdims=True, dtype=self.dtype) + self.dtype(self.eps))
        return h / scale * self.w[name]

    def rotate(self, x: Any) -> Any:
        """x: [n_tokens, n_heads, head_dim]; neighbouring elements are the real and imaginary part of one number."""
        n = x.shape[0]
        pairs = self.head_dim // 2
        theta = np.outer(np.arange(n), self.rope_base ** (-np.arange(pairs, dtype=np.float64) / pairs))
        turn = np.exp(1j * theta).astype(np.complex64 if self.dtype is np.float32 else np.complex128)
        z = np.ascontiguousarray(x).view(turn.dtype) * turn[:, None, :]
        return np.ascontiguousarray(z).view(self.dtype)

    def attention(self, h: Any, block: str) -> Any:
        n = h.shape[0]
        q = self.rotate((h @ self.w[f"{block}.attn_q.weight"].T).reshape(n, self.n_heads, self.head_dim))
        k = self.rotate((h @ self.w[f"{block}.attn_k.weight"].T).reshape(n, self.n_heads_kv, self.head_dim))
        v = (h @ self.w[f"{block}.attn_v.weight"].T).reshape(n, self.n_heads_kv, self.head_dim)
        group = self.n_heads // self.n_heads_kv
        out = np.empty_like(q)
        future = np.triu(np.ones((n, n), dtype=bool), 1)
        for head in range(self.n_heads):
            scores = q[:, head] @ k[:, head // group].T / self.dtype(np.sqrt(self.head_dim))
            scores[future] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, head // group]
        return out.reshape(n, -1) @ self.w[f"{block}.attn_output.weight"].T

    def feed_forward(self, h: Any, block: str) -> Any:
        gate = h @ self.w[f"{block}.ffn_gate.weight"].T
        up = h @ self.w[f"{block}.ffn_up.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{block}.ffn_down.weight"].T

    def logits(self, ids: list[int]) -> Any:
        h = self.w["token_embd.weight"][ids]
        for layer in range(self.n_layers):
            block = f"blk.{layer}"
            h = h + self.attention(self.norm(h, f"{block}.attn_norm.weight"), block)
            h = h + self.feed_forward(self.norm(h, f"{block}.ffn_norm.weight"), block)
        return (self.norm(h, "output_norm.weight") @ self.output.T).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a directory outside the repository: 300 MB a set")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = Llama(args.model, np.float32 if args.dtype == "float32" else np.float64)
    for name, ids in read_ids().items():
        np.save(args.out / f"{name}.npy", model.logits(ids))
        print(f"{args.dtype}: {name}, {len(ids)} tokens", flush=True)


if __name__ == "__main__":
    main()
