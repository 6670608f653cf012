"""Tiny random models of every family: configurations as `transformers` has them, and weights from a seed.

The weights are large enough that every part of a model shows in its logits: attention that prefers some keys, norms
away from one, biases away from zero.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

N_VOCAB = 96
N_TOKENS = 40

_BASE: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_GEMMA: dict[str, Any] = {
    "head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
}  # fmt: skip
_QWEN3: dict[str, Any] = {"head_dim": 32, "rope_theta": 1e6}
_EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.6, 1.9, 2.3, 2.8],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0, 9.0, 10.0],
}


def _case(model_type: str, *more: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    config = {**_BASE, "model_type": model_type}
    for part in (*more, own):
        config.update(part)
    return config


CASES: dict[str, dict[str, Any]] = {
    "llama": _case("llama"),
    "llama-biases": _case("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-linear": _case("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama-llama3": _case(
        "llama", rope_theta=500000.0, rope_scaling={**_LLAMA3, "original_max_position_embeddings": 16}
    ),
    "llama-yarn": _case(
        "llama", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ),
    "mistral-window": _case("mistral", sliding_window=8, head_dim=32),
    "mixtral": _case("mixtral", num_local_experts=6, num_experts_per_tok=2, sliding_window=None),
    "smollm3": _case("smollm3", num_hidden_layers=5, no_rope_layer_interval=4, use_sliding_window=False),
    "granite": _case(
        "granite", embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.1, logits_scaling=4.0
    ),
    "qwen2": _case("qwen2", use_sliding_window=False, rope_theta=1e6),
    "qwen2-yarn": _case(
        "qwen2",
        use_sliding_window=False,
        rope_theta=1e6,
        rope_scaling={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    ),
    "qwen3": _case("qwen3", _QWEN3, tie_word_embeddings=True),
    "qwen3moe": _case("qwen3_moe", _QWEN3, _EXPERTS, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]),
    "qwen3moe-raw": _case(
        "qwen3_moe", _QWEN3, _EXPERTS, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[0]
    ),
    "phi3": _case("phi3", sliding_window=None),
    "phi3-window": _case("phi3", sliding_window=8),
    "phi3-partial": _case("phi3", sliding_window=None, partial_rotary_factor=0.75, tie_word_embeddings=True),
    "phi3-short": _case("phi3", sliding_window=None, original_max_position_embeddings=48, rope_scaling=_LONG),
    "phi3-long": _case("phi3", sliding_window=None, original_max_position_embeddings=16, rope_scaling=_LONG),
    "olmo2": _case("olmo2", rope_theta=500000.0),
    "gemma": _case("gemma", _GEMMA),
    "gemma2": _case(
        "gemma2", _GEMMA, num_hidden_layers=4, sliding_window=8, query_pre_attn_scalar=32,
        attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
    ),
    "gemma3": _case(
        "gemma3_text", _GEMMA, num_hidden_layers=7, sliding_window=8, query_pre_attn_scalar=32, rope_theta=1e6,
        rope_local_base_freq=10000.0, rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
}  # fmt: skip


def tokens(case: str) -> list[int]:
    """Ids of the sequence that the logits are of."""
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    return [int(N_VOCAB * x) for x in rng.random(N_TOKENS)]


def random_weights(case: str, shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Values of every tensor, the same wherever NumPy runs: float32, by the name that `transformers` gives it."""
    return {name: _values(case, name, tuple(shape)) for name, shape in shapes.items()}


def _values(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(f"{case} {name}".encode()))
    uniform = np.sqrt(12.0) * (rng.random(shape) - 0.5)  # mean 0, deviation 1
    if name.endswith("norm.weight") or "layernorm" in name:
        shift = 0.0 if case.startswith("gemma") else 1.0  # which adds 1 itself
        return (shift + 0.3 * uniform).astype(np.float32)
    if len(shape) == 1:
        return (0.3 * uniform).astype(np.float32)
    gain = 1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "lm_head", ".gate.")) else 1.0
    if "embed_tokens" in name:
        return (0.5 * uniform).astype(np.float32)
    return (gain * shape[-1] ** -0.5 * uniform).astype(np.float32)
