"""Small llama graphs from metadata alone."""

from __future__ import annotations

from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.tensor import TENSOR_TYPES, Weight

SIZES = {"n_embd": 64, "n_ff": 96, "n_vocab": 320, "n_heads": 4, "n_kv": 2}


def metadata(n_layers=2, n_ctx=256, **extra):
    return {
        "general.architecture": "llama",
        "llama.block_count": n_layers,
        "llama.embedding_length": SIZES["n_embd"],
        "llama.context_length": n_ctx,
        "llama.feed_forward_length": SIZES["n_ff"],
        "llama.attention.head_count": SIZES["n_heads"],
        "llama.attention.head_count_kv": SIZES["n_kv"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        **extra,
    }


def tensors(n_layers=2, type_name="Q8_0", tied=True):
    e, f, v = SIZES["n_embd"], SIZES["n_ff"], SIZES["n_vocab"]
    kv = e // SIZES["n_heads"] * SIZES["n_kv"]
    shapes = {"token_embd.weight": (v, e), "output_norm.weight": (e,)}
    if not tied:
        shapes["output.weight"] = (v, e)
    for i in range(n_layers):
        for name, shape in {
            "attn_norm": (e,), "attn_q": (e, e), "attn_k": (kv, e), "attn_v": (kv, e), "attn_output": (e, e),
            "ffn_norm": (e,), "ffn_gate": (f, e), "ffn_up": (f, e), "ffn_down": (e, f),
        }.items():  # fmt: skip
            shapes[f"blk.{i}.{name}.weight"] = shape
    types = {n: "F32" if len(s) == 1 else type_name for n, s in shapes.items()}
    return {n: Weight(n, TENSOR_TYPES[types[n]], s) for n, s in shapes.items()}


def llama_graph(n_layers=2, options=None, **extra):
    options = options or GraphOptions(n_ctx=128)
    return build_graph("llama", metadata(n_layers, **extra), tensors(n_layers), options, architectures())
