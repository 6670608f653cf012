"""Hyperparameters of a decoder from GGUF metadata, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hetrun.errors import ContextError, ModelFileError, UnsupportedModelError
from hetrun.model.header import Keys, Tensors
from hetrun.model.options import GraphOptions
from hetrun.model.rope import RopeTable, local_rope_table, rope_table

_DEFAULT_MAX_CTX = 4096


@dataclass(frozen=True)
class ExpertSizes:
    """Of feed-forward blocks that choose among experts.   normalise, factor: as in `hetrun.ops.Route`."""

    n_experts: int
    n_used: int
    n_ff: int
    normalise: bool
    factor: float


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes of a decoder. Per-layer values are tuples of n_layers entries.

    n_ctx: tokens that a sequence may reach, n_ctx_limit at most.   windows: keys that a query sees (0: all).
    ropes: None where positions do not rotate.   *_soft_cap: 0 for none.
    """

    n_layers: int
    n_embd: int
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_heads: tuple[int, ...]
    n_heads_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    experts: ExpertSizes | None
    head_dim: int
    norm_eps: float
    windows: tuple[int, ...]
    ropes: tuple[RopeTable, ...]
    attention_scale: float
    attention_soft_cap: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_soft_cap: float

    @classmethod
    def read(cls, keys: Keys, tensors: Tensors, options: GraphOptions) -> Hyperparameters:
        """ModelFileError names the key that is missing, makes no sense or is contradicted by another."""
        n_layers = keys.size("block_count")
        n_embd = keys.size("embedding_length")
        n_heads = keys.per_layer("attention.head_count", n_layers)
        n_heads_kv = keys.per_layer("attention.head_count_kv", n_layers, default=n_heads)
        for q, kv in zip(n_heads, n_heads_kv, strict=True):
            if q % kv:
                raise ModelFileError(
                    f"{q} query heads are no multiple of {kv} KV heads", field=keys.name("attention.head_count_kv")
                )
        head_dim = _head_dim(keys, n_embd, n_heads[0])
        n_ctx_train = keys.size("context_length")
        n_ctx = _context(n_ctx_train, options)
        alternates = keys.has("attention.sliding_window_pattern")
        window = keys.size("attention.sliding_window", default=None if alternates else 0, least=0)
        local = keys.layers_but_every("attention.sliding_window_pattern", n_layers)
        everywhere = rope_table(keys, head_dim, _reach(n_ctx, options), n_ctx_train, tensors, options.extension)
        own_base = bool(window) and keys.has("rope.freq_base_swa")
        nearby = local_rope_table(keys, head_dim) if own_base else everywhere
        return cls(
            n_layers=n_layers,
            n_embd=n_embd,
            n_vocab=_vocabulary(keys, tensors),
            n_ctx=n_ctx,
            n_ctx_train=n_ctx_train,
            n_heads=n_heads,
            n_heads_kv=n_heads_kv,
            n_ff=keys.per_layer("feed_forward_length", n_layers),
            experts=_experts(keys),
            head_dim=head_dim,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            windows=tuple(window if is_local else 0 for is_local in local),
            ropes=tuple(nearby if is_local else everywhere for is_local in local),
            attention_scale=keys.number("attention.scale", default=1.0 / math.sqrt(head_dim)),
            attention_soft_cap=keys.number("attn_logit_softcapping", default=0.0),
            embedding_scale=keys.number("embedding_scale", default=1.0),
            residual_scale=keys.number("residual_scale", default=1.0),
            logit_scale=keys.positive("logit_scale", default=1.0),
            logit_soft_cap=keys.number("final_logit_softcapping", default=0.0),
        )


def _head_dim(keys: Keys, n_embd: int, n_heads: int) -> int:
    if n_embd % n_heads and not keys.has("attention.key_length"):
        raise ModelFileError(f"{n_heads} heads in a width of {n_embd}", field=keys.name("attention.head_count"))
    head_dim = keys.size("attention.key_length", default=n_embd // n_heads)
    value_dim = keys.size("attention.value_length", default=head_dim)
    if value_dim != head_dim:
        value_key, key_key = keys.name("attention.value_length"), keys.name("attention.key_length")
        raise UnsupportedModelError(
            f"keys and values of different length are not supported: {value_key} is {value_dim}, {key_key} {head_dim}"
        )
    return head_dim


def _vocabulary(keys: Keys, tensors: Tensors) -> int:
    """Rows of the embedding. ModelFileError where the metadata counts other than these."""
    table = tensors.get("token_embd.weight")
    if table is None:
        return keys.size("vocab_size")
    n_vocab = table.shape[0]
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    counts = {keys.name("vocab_size"): keys.size("vocab_size", default=n_vocab)}
    if isinstance(tokens, Sequence):
        counts["tokenizer.ggml.tokens"] = len(tokens)
    for field, count in counts.items():
        if count != n_vocab:
            raise ModelFileError(f"{count} tokens, but token_embd.weight has {n_vocab} rows", field=field)
    return n_vocab


def _experts(keys: Keys) -> ExpertSizes | None:
    n_experts = keys.size("expert_count", default=0, least=0)
    if n_experts == 0:
        return None
    n_used = keys.size("expert_used_count")
    if n_used > n_experts:
        raise ModelFileError(f"{n_used} of {n_experts} experts", field=keys.name("expert_used_count"))
    softmax = 1  # gguf.constants.ExpertGatingFuncType
    if keys.size("expert_gating_func", default=softmax, least=0) != softmax:
        raise UnsupportedModelError(
            f"{keys.name('expert_gating_func')}: experts chosen by another function than softmax are not supported"
        )
    n_ff = keys.value("expert_feed_forward_length", keys.value("feed_forward_length"))
    return ExpertSizes(
        n_experts,
        n_used,
        keys.size("expert_feed_forward_length", default=n_ff),
        keys.flag("expert_weights_norm", default=True),
        keys.number("expert_weights_scale", default=1.0),
    )


def _context(n_ctx_train: int, options: GraphOptions) -> int:
    factor = options.extension.factor if options.extension else 1.0
    limit = int(n_ctx_train * factor)
    n_ctx = options.n_ctx or min(n_ctx_train, _DEFAULT_MAX_CTX)
    if _reach(n_ctx, options) > limit:
        trained = f"the {n_ctx_train} that the model was trained for"
        if options.extension:
            trained = f"{options.extension} makes of {trained}"
        raise ContextError(
            f"a context of {n_ctx} tokens is longer than {trained}",
            remedy=f"use --ctx {limit} or less, or --rope-scaling yarn:{math.ceil(n_ctx / n_ctx_train)}, or "
            f"--attention sink=4,window={max(1, limit - 4)}",
        )
    return n_ctx


def _reach(n_ctx: int, options: GraphOptions) -> int:
    """Tokens between a query and the farthest key that it meets: sinks stand just before the window."""
    return min(n_ctx, options.sink + options.window) if options.window else n_ctx
