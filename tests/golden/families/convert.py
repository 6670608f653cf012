"""A model as `transformers` names and lays it out -> GGUF, as llama.cpp's converter names and lays it out.

    convert(config, tensors, path)    # a config.json as a dict, tensors by the names of the state dict, float32

Written for the tests' tiny models, with no tokenizer. It needs NumPy and the gguf package, but no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURES = {
    "mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3",
}  # fmt: skip
# Their weights are ordered so that neighbours rotate together; `transformers` has halves of a head rotate.
INTERLEAVED = ("llama", "smollm3", "granite")

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
# Where a norm of that name stands after attention, and not before the feed-forward block.
_NORMS_AFTER = ("gemma2", "gemma3", "olmo2")


def convert(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: Path, quant: str | None = None) -> Path:
    """Writes the file and returns its path.   quant: type of all matrices but the router's, else float32."""
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata(config).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key if key.startswith("tokenizer.") else f"{arch}.{key}", value)
    for name, values in [*rope_factors(config), *renamed(config, tensors)]:
        if quant and values.ndim > 1 and "gate_inp" not in name:
            kind = gguf.GGMLQuantizationType[quant]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without the architecture's name."""
    n_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_heads
    keys: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": n_heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "none",
    }
    same = {
        "sliding_window": "attention.sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "logits_scaling": "logit_scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale",
        "num_local_experts": "expert_count",
        "num_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "moe_intermediate_size": "expert_feed_forward_length",
        "norm_topk_prob": "expert_weights_norm",
    }
    keys.update({to: config[name] for name, to in same.items() if config.get(name) is not None})
    return {**keys, **rope_scaling(config)}


def rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type")
    if kind in ("linear", "yarn"):
        keys: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
        if kind == "yarn":
            keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        return keys
    if kind == "longrope":
        n_original = config["original_max_position_embeddings"]
        stretch = config["max_position_embeddings"] / n_original
        magnitude = math.sqrt(1.0 + math.log(stretch) / math.log(n_original)) if stretch > 1 else 1.0
        return {
            "rope.scaling.type": "longrope",
            "rope.scaling.attn_factor": magnitude,
            "rope.scaling.original_context_length": n_original,
        }
    return {}


def rope_factors(config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """What frequencies are divided by."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "longrope":
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", np.array(scaling[f"{length}_factor"], np.float32)
    if scaling.get("rope_type") == "llama3":
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        yield "rope_freqs.weight", llama3_factors(config["rope_theta"], head_dim, scaling)


def llama3_factors(base: float, head_dim: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """Long waves are stretched by the factor, short ones not, those between smoothly more and more."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    n_original = scaling["original_max_position_embeddings"]
    waves = 2.0 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (n_original / waves - low) / (high - low)
    between = 1.0 / ((1.0 - smooth) / factor + smooth)
    factors = np.where(waves > n_original / low, factor, between)
    return np.where(waves < n_original / high, 1.0, factors).astype(np.float32)


def renamed(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    for name, values in tensors.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if experts := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\w+)", name):
            yield from _experts(*experts.groups(), values)
            continue
        stem, _, kind = name.rpartition(".")
        inside = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem)
        to = _INSIDE[inside[2]] if inside else _OUTSIDE[stem]
        if inside and inside[2] == "post_attention_layernorm" and arch in _NORMS_AFTER:
            to = "post_attention_norm"
        if to in ("attn_q", "attn_k") and arch in INTERLEAVED:
            values = interleaved(values, config["num_attention_heads" if to == "attn_q" else "num_key_value_heads"])
        if to.endswith("_norm") and arch.startswith("gemma"):
            values = values + np.float32(1.0)
        yield f"blk.{inside[1]}.{to}.{kind}" if inside else f"{to}.{kind}", values


def _experts(layer: str, part: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if part == "down_proj":
        yield f"blk.{layer}.ffn_down_exps.weight", values
        return
    for to, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
        yield f"blk.{layer}.ffn_{to}_exps.weight", half


def interleaved(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head in the order 0, n/2, 1, n/2 + 1, ..."""
    halves = values.reshape(n_heads, 2, len(values) // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
