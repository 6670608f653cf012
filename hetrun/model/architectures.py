"""Architectures: metadata and tensors of a GGUF file -> Graph.

A decoder family is data (`DecoderFamily`); one builder serves them all. What a file may or may not have (biases, norms
of queries and keys, norms after a block, an output head of its own) is read from its tensors.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hetrun.errors import ContextError, ModelFileError, UnsupportedModelError, UsageError
from hetrun.graph.graph import Graph, canonical
from hetrun.model.hyperparameters import Hyperparameters
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)  # fmt: skip
from hetrun.tensor import Weight


@dataclass(frozen=True)
class GraphOptions:
    """What a session asks of the graph.

    n_ctx: tokens a sequence may reach (0: the model's own context, at most 4096).   n_slots: sequences held at once.
    max_tokens: tokens of a step.   max_rollback: tokens that may be taken back when attention is windowed.
    window, sink: a query sees the last `window` keys and the first `sink` (window 0: all). UsageError for negative
    numbers, and for a sink without a window.
    """

    n_ctx: int = 0
    n_slots: int = 1
    max_tokens: int = 512
    max_rollback: int = 64
    kv_format: str = "f16"
    sink: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        remedy = "give a window of 1 or more and a sink of 0 or more, or neither for full attention"
        for name, value in (("window", self.window), ("sink", self.sink)):
            if value < 0:
                raise UsageError(f"an attention {name} of {value} tokens", remedy=remedy)
        if self.sink and not self.window:
            raise UsageError(f"an attention sink of {self.sink} tokens without a window", remedy=remedy)


@dataclass(frozen=True)
class Architecture:
    """What `hetrun_architectures` returns: a name (`general.architecture`) and a pure function to a Graph."""

    name: str
    build: Callable[[Mapping[str, Any], Mapping[str, Weight], GraphOptions], Graph]


@dataclass(frozen=True)
class DecoderFamily:
    """A family of decoder-only transformers with gated feed-forward blocks.

    rope_layout: which elements of a head rotate together, as the file's weights are ordered.
    scale_embedding: multiply embeddings by sqrt(n_embd).
    """

    name: str
    rope_layout: Literal["interleaved", "half"] = "interleaved"
    activation: Literal["silu", "gelu"] = "silu"
    scale_embedding: bool = False

    def build(self, metadata: Mapping[str, Any], tensors: Mapping[str, Weight], options: GraphOptions) -> Graph:
        return _DecoderBuilder(self, Hyperparameters.read(self.name, metadata, tensors), tensors, options).graph()


FAMILIES = (DecoderFamily("llama"),)

# Tables that some converters leave in the file although they follow from the metadata.
_REDUNDANT_TENSORS = (".attn_rot_embd", ".rotary_emb.inv_freq")

_DEFAULT_MAX_CTX = 4096


def architectures(plugins: Iterable[Architecture] = ()) -> dict[str, Architecture]:
    """Every architecture by name: the shipped families, and what plugins add or replace."""
    shipped = [Architecture(f.name, f.build) for f in FAMILIES]
    return {a.name: a for a in (*shipped, *plugins)}


def build_graph(
    name: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    options: GraphOptions,
    known: Mapping[str, Architecture],
) -> Graph:
    """The graph of a model file; UnsupportedModelError lists what is supported."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UnsupportedModelError(
            f"architecture {name!r} is not supported",
            remedy=f"supported: {', '.join(sorted(known))}" + (f"; {near[0]!r} is the nearest" if near else ""),
        )
    n_parts = metadata.get("split.count", 0)
    if n_parts not in (0, 1):  # 0: parts that were merged again
        raise UnsupportedModelError(
            f"the file is one of {n_parts} parts of a model",
            remedy="join them first, with llama.cpp's llama-gguf-split --merge",
        )
    if not tensors:
        raise ModelFileError(
            "the file holds a vocabulary but no tensors", remedy='only "hetrun tokenize" and "inspect" can use it'
        )
    return known[name].build(metadata, tensors, options)


class _DecoderBuilder:
    """Emits the ops of one model.

    Queries, keys and values stand together, then the ropes, and gate beside up: the order of ops decides how many
    segments a mixed plan has.
    """

    def __init__(
        self, family: DecoderFamily, hp: Hyperparameters, tensors: Mapping[str, Weight], options: GraphOptions
    ) -> None:
        self.family = family
        self.hp = hp
        self.tensors = tensors
        self.options = options
        self.n_ctx = _context(hp, options)
        self.ops: list[Op] = []
        self.used: set[str] = set()

    def graph(self) -> Graph:
        hp = self.hp
        table = self.weight("token_embd.weight", (hp.n_vocab, hp.n_embd))
        x = self.emit(Embedding("token_embd", table))
        if self.family.scale_embedding:
            x = self.emit(Scale("token_embd_scale", x, float(hp.n_embd) ** 0.5))
        for layer in range(hp.n_layers):
            x = self.block(f"blk.{layer}", layer, x)
        x = self.norm("output_norm", x, hp.n_embd)
        x = self.emit(SelectRows("output_rows", x))
        head = self.optional("output.weight", (hp.n_vocab, hp.n_embd)) or table
        x = self.emit(MatMul("output", x, head))
        x = self.bias("output", x)
        if hp.logit_scale != 1.0:
            x = self.emit(Scale("output_scale", x, hp.logit_scale))
        if hp.logit_soft_cap:
            self.emit(SoftCap("output_cap", x, hp.logit_soft_cap))
        self.check_all_used()
        return canonical(self.ops)

    def block(self, blk: str, layer: int, x: Value) -> Value:
        attention = self.attention(blk, layer, self.norm(f"{blk}.attn_norm", x, self.hp.n_embd))
        x = self.emit(Add(f"{blk}.attn_add", self.post_norm(f"{blk}.post_attention_norm", attention), x))
        feed_forward = self.feed_forward(blk, layer, self.norm(f"{blk}.ffn_norm", x, self.hp.n_embd))
        return self.emit(Add(f"{blk}.ffn_add", self.post_norm(f"{blk}.post_ffw_norm", feed_forward), x))

    def attention(self, blk: str, layer: int, x: Value) -> Value:
        hp = self.hp
        n_q, n_kv = hp.n_heads[layer] * hp.head_dim, hp.n_heads_kv[layer] * hp.head_dim
        q = self.matmul(f"{blk}.attn_q", x, n_q)
        k = self.matmul(f"{blk}.attn_k", x, n_kv)
        v = self.matmul(f"{blk}.attn_v", x, n_kv)
        q, k, v = self.bias(f"{blk}.attn_q", q), self.bias(f"{blk}.attn_k", k), self.bias(f"{blk}.attn_v", v)
        q, k = (
            self.post_norm(f"{blk}.attn_q_norm", q, hp.head_dim),
            self.post_norm(f"{blk}.attn_k_norm", k, hp.head_dim),
        )
        q, k = self.rope(f"{blk}.attn_q_rope", q), self.rope(f"{blk}.attn_k_rope", k)
        kv = self.kv_spec(f"{blk}.kv", layer)
        y = self.emit(Attention(f"{blk}.attn", q, k, v, kv, hp.attention_scale, hp.attention_soft_cap))
        return self.bias(f"{blk}.attn_output", self.matmul(f"{blk}.attn_output", y, hp.n_embd))

    def feed_forward(self, blk: str, layer: int, x: Value) -> Value:
        n_ff = self.hp.n_ff[layer]
        gate = self.matmul(f"{blk}.ffn_gate", x, n_ff)
        up = self.matmul(f"{blk}.ffn_up", x, n_ff)
        gate, up = self.bias(f"{blk}.ffn_gate", gate), self.bias(f"{blk}.ffn_up", up)
        y = self.emit(GatedActivation(f"{blk}.ffn_act", gate, up, self.family.activation))
        return self.bias(f"{blk}.ffn_down", self.matmul(f"{blk}.ffn_down", y, self.hp.n_embd))

    def kv_spec(self, name: str, layer: int) -> KvSpec:
        hp, options = self.hp, self.options
        window, sink = options.window, options.sink
        if hp.window:
            if window:
                raise UsageError(
                    f"an attention window of {window} tokens for a model that has its own, of {hp.window}",
                    remedy="leave the window out",
                )
            window = hp.window
        if window + sink >= self.n_ctx:  # which is full attention, and needs no slack
            window = sink = 0
        slack = max(options.max_tokens, options.max_rollback) - 1 if window else 0
        return KvSpec(
            name, options.n_slots, self.n_ctx, hp.n_heads_kv[layer], hp.head_dim, options.kv_format,
            sink=sink, window=window, slack=slack,
        )  # fmt: skip

    def emit(self, op: Op) -> Value:
        self.ops.append(op)
        return op.output

    def matmul(self, name: str, x: Value, n_out: int) -> Value:
        return self.emit(MatMul(name, x, self.weight(f"{name}.weight", (n_out, x.width))))

    def bias(self, name: str, x: Value) -> Value:
        weight = self.optional(f"{name}.bias", (x.width,))
        return x if weight is None else self.emit(Bias(f"{name}_bias", x, weight))

    def norm(self, name: str, x: Value, width: int) -> Value:
        return self.emit(RmsNorm(name, x, self.weight(f"{name}.weight", (width,)), self.hp.norm_eps))

    def post_norm(self, name: str, x: Value, width: int | None = None) -> Value:
        """A norm that only some models have."""
        weight = self.optional(f"{name}.weight", (width or x.width,))
        return x if weight is None else self.emit(RmsNorm(name, x, weight, self.hp.norm_eps))

    def rope(self, name: str, x: Value) -> Value:
        rope = self.hp.rope
        return self.emit(Rope(name, x, self.hp.head_dim, self.family.rope_layout, rope.frequencies, rope.magnitude))

    def weight(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self.optional(name, shape)
        if weight is None:
            near = difflib.get_close_matches(name, self.tensors, n=3)
            hint = f"the file has {', '.join(near)}" if near else "the file may be damaged or of another architecture"
            raise UnsupportedModelError(
                f"tensor {name} {list(shape)} is missing for architecture {self.family.name}", remedy=hint
            )
        return weight

    def optional(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        weight = self.tensors.get(name)
        if weight is None:
            return None
        if weight.shape != shape:
            raise UnsupportedModelError(
                f"tensor {name} is {list(weight.shape)}, but the metadata asks for {list(shape)}",
                remedy="the file's metadata and tensors disagree: convert it again or pull another copy",
            )
        self.used.add(name)
        return weight

    def check_all_used(self) -> None:
        """A tensor that the graph does not use means a model that hetrun would run wrongly."""
        unused = [
            n
            for n in self.tensors
            if n not in self.used and n != "rope_freqs.weight" and not any(r in n for r in _REDUNDANT_TENSORS)
        ]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise UnsupportedModelError(
                f"architecture {self.family.name} with tensors {', '.join(unused[:3])}{more} is not supported",
                remedy="this variant of the model needs ops that hetrun does not build yet",
            )


def _context(hp: Hyperparameters, options: GraphOptions) -> int:
    n_ctx = options.n_ctx or min(hp.n_ctx_train, _DEFAULT_MAX_CTX)
    if n_ctx > hp.n_ctx_train:
        raise ContextError(
            f"a context of {n_ctx} tokens is longer than the {hp.n_ctx_train} that the model was trained for",
            remedy=f"use --ctx {hp.n_ctx_train} or less",
        )
    return n_ctx
