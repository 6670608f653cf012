"""Decoder-only transformers: a family is data (`DecoderFamily`), and one builder serves them all.

What a file may or may not have (biases, norms of queries and keys, norms after a block, fused tensors, an output head
of its own, experts) is read from its tensors.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal

from hetrun.errors import ModelFileError, UnsupportedModelError, UsageError
from hetrun.graph.graph import Graph, canonical
from hetrun.model.header import Keys, Tensors
from hetrun.model.hyperparameters import ExpertSizes, Hyperparameters
from hetrun.model.options import GraphOptions
from hetrun.model.rope import FACTOR_TENSORS
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    Experts,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Route,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)  # fmt: skip
from hetrun.tensor import Weight

# Tables that some converters leave in the file although they follow from the metadata.
_REDUNDANT_TENSORS = (".attn_rot_embd", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class DecoderFamily:
    """A family of decoder-only transformers with gated feed-forward blocks.

    rope_layout: which elements of a head rotate together, as the file's weights are ordered.
    scale_embedding: multiply embeddings by sqrt(n_embd).   divide_logits: `logit_scale` divides.
    norms_before: norms stand before attention and feed-forward (after them: where the file has tensors for it).
    rope_skips: every n-th layer does not rotate (0: all do).
    wide_layers: a model of so many layers scales its scores by sqrt(n_embd / n_heads), not by sqrt(head_dim).
    needs: tensors of every layer that other families may do without.
    defaults: values of metadata keys that files may leave out.   builder: what makes the graph.
    """

    name: str
    rope_layout: Literal["interleaved", "half"] = "half"
    activation: Literal["silu", "gelu"] = "silu"
    scale_embedding: bool = False
    divide_logits: bool = False
    norms_before: bool = True
    rope_skips: int = 0
    wide_layers: int = 0
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    builder: type[DecoderBuilder] | None = None

    def build(self, metadata: Mapping[str, Any], tensors: Tensors, options: GraphOptions) -> Graph:
        """UnsupportedModelError and ModelFileError name the tensor or key that does not fit."""
        hp = Hyperparameters.read(Keys(self.name, metadata, self.defaults), tensors, options)
        if options.extension:
            warnings.warn(
                f"{options.extension} extends the {hp.n_ctx_train} tokens that the model was trained for: "
                "answers get worse, the more the longer",
                stacklevel=2,
            )
        return (self.builder or DecoderBuilder)(self, self._refined(hp), tensors, options).graph()

    def _refined(self, hp: Hyperparameters) -> Hyperparameters:
        """With what the family knows beside the metadata."""
        if self.scale_embedding:
            hp = replace(hp, embedding_scale=float(hp.n_embd) ** 0.5)
        if self.divide_logits:
            hp = replace(hp, logit_scale=1.0 / hp.logit_scale)
        if self.wide_layers == hp.n_layers:
            hp = replace(hp, attention_scale=(hp.n_embd / hp.n_heads[0]) ** -0.5)
        return hp


class DecoderBuilder:
    """Emits the ops of one model.

    Queries, keys and values stand together, then the ropes, and gate beside up: the order of ops decides how many
    segments a mixed plan has.
    """

    ignored: ClassVar[tuple[str, ...]] = FACTOR_TENSORS

    def __init__(self, family: DecoderFamily, hp: Hyperparameters, tensors: Tensors, options: GraphOptions) -> None:
        self.family = family
        self.hp = hp
        self.tensors = tensors
        self.options = options
        self.ops: list[Op] = []
        self.used: set[str] = set()
        self.in_layers = {*family.needs, *filter(None, map(_in_layer, tensors))}

    def graph(self) -> Graph:
        hp = self.hp
        table = self.weight("token_embd.weight", (hp.n_vocab, hp.n_embd))
        x = self.emit(Embedding("token_embd", table))
        x = self.scaled("token_embd_scale", x, hp.embedding_scale)
        for layer in range(hp.n_layers):
            x = self.block(f"blk.{layer}", layer, x)
        x = self.norm("output_norm", x, hp.n_embd)
        x = self.emit(SelectRows("output_rows", x))
        head = self.optional("output.weight", (hp.n_vocab, hp.n_embd)) or table
        x = self.emit(MatMul("output", x, head))
        x = self.bias("output", x)
        x = self.scaled("output_scale", x, hp.logit_scale)
        if hp.logit_soft_cap:
            self.emit(SoftCap("output_cap", x, hp.logit_soft_cap))
        self.check_all_used()
        return canonical(self.ops)

    def block(self, blk: str, layer: int, x: Value) -> Value:
        y = self.attention(blk, layer, self.norm_before(f"{blk}.attn_norm", x))
        x = self.residual(f"{blk}.attn", self.post_norm(f"{blk}.post_attention_norm", y), x)
        y = self.feed_forward(blk, layer, self.norm_before(f"{blk}.ffn_norm", x))
        return self.residual(f"{blk}.ffn", self.post_norm(f"{blk}.post_ffw_norm", y), x)

    def residual(self, name: str, y: Value, x: Value) -> Value:
        return self.emit(Add(f"{name}_add", self.scaled(f"{name}_residual_scale", y, self.hp.residual_scale), x))

    def attention(self, blk: str, layer: int, x: Value) -> Value:
        hp = self.hp
        n_q, n_kv = hp.n_heads[layer] * hp.head_dim, hp.n_heads_kv[layer] * hp.head_dim
        rows = {"attn_q": n_q, "attn_k": n_kv, "attn_v": n_kv}
        q, k, v = self.matmuls(blk, "attn_qkv", rows, x)
        q, k = self.head_norm(f"{blk}.attn_q_norm", q), self.head_norm(f"{blk}.attn_k_norm", k)
        kv = self.kv_spec(f"{blk}.kv", layer)
        turned = self.rope(f"{blk}.attn_q_rope", layer, q)
        k = self.rope(f"{blk}.attn_k_rope", layer, k)
        q_sink = None
        if kv.sink and turned is not q:
            q_sink = self.rope(f"{blk}.attn_q_sink_rope", layer, q, max_position=kv.sink + kv.window - 1)
        attention = Attention(f"{blk}.attn", turned, k, v, kv, hp.attention_scale, hp.attention_soft_cap, q_sink)
        y = self.emit(attention)
        return self.bias(f"{blk}.attn_output", self.matmul(f"{blk}.attn_output", y, hp.n_embd))

    def feed_forward(self, blk: str, layer: int, x: Value) -> Value:
        dense = any(f"{blk}.{name}.weight" in self.tensors for name in ("ffn_gate", "ffn_up", "ffn_down"))
        if self.hp.experts and not dense:
            return self.expert_feed_forward(blk, self.hp.experts, x)
        n_ff = self.hp.n_ff[layer]
        fused = "ffn_up" if f"{blk}.ffn_gate.weight" not in self.tensors else "ffn_gate_up"
        gate, up = self.matmuls(blk, fused, {"ffn_gate": n_ff, "ffn_up": n_ff}, x)
        y = self.emit(GatedActivation(f"{blk}.ffn_act", gate, up, self.family.activation))
        return self.bias(f"{blk}.ffn_down", self.matmul(f"{blk}.ffn_down", y, self.hp.n_embd))

    def expert_feed_forward(self, blk: str, sizes: ExpertSizes, x: Value) -> Value:
        scores = self.matmul(f"{blk}.ffn_gate_inp", x, sizes.n_experts)
        routes = self.emit(Route(f"{blk}.ffn_route", scores, sizes.n_used, sizes.normalise, sizes.factor))
        widths = {"gate": (sizes.n_ff, x.width), "up": (sizes.n_ff, x.width), "down": (self.hp.n_embd, sizes.n_ff)}
        gate, up, down = (
            self.weight(f"{blk}.ffn_{part}_exps.weight", (sizes.n_experts, *shape)) for part, shape in widths.items()
        )
        return self.emit(Experts(f"{blk}.ffn_exps", x, routes, sizes.n_used, gate, up, down, self.family.activation))

    def kv_spec(self, name: str, layer: int) -> KvSpec:
        hp, options = self.hp, self.options
        window, sink = options.window, options.sink
        if any(hp.windows):
            if window:
                raise UsageError(
                    f"an attention window of {window} tokens for a model that has its own, of {max(hp.windows)}",
                    remedy="leave the window out",
                )
            window = hp.windows[layer]
        if window + sink >= hp.n_ctx:  # which is full attention, and needs no slack
            window = sink = 0
        slack = max(options.max_tokens, options.max_rollback) - 1 if window else 0
        return KvSpec(
            name, options.n_slots, hp.n_ctx, hp.n_heads_kv[layer], hp.head_dim, options.kv_format,
            sink=sink, window=window, slack=slack,
        )  # fmt: skip

    def emit(self, op: Op) -> Value:
        self.ops.append(op)
        return op.output

    def scaled(self, name: str, x: Value, factor: float) -> Value:
        return x if factor == 1.0 else self.emit(Scale(name, x, factor))

    def matmul(self, name: str, x: Value, n_out: int) -> Value:
        return self.emit(MatMul(name, x, self.weight(f"{name}.weight", (n_out, x.width))))

    def matmuls(self, blk: str, fused: str, rows: Mapping[str, int], x: Value) -> list[Value]:
        """Products of one input, each with its bias.   rows: of each matrix, by name. Where the file has the tensor
        `fused`, which holds all of these rows one after the other, each is a part of it.
        """
        source = f"{blk}.{fused}"
        first = dict(zip(rows, accumulate(rows.values(), initial=0), strict=False))
        whole = self.is_fused(source, rows)
        if whole:
            self.weight(f"{source}.weight", (sum(rows.values()), x.width))

        def part(name: str, kind: str, shape: tuple[int, ...]) -> Weight | None:
            own = f"{blk}.{name}.{kind}"
            if not whole:
                if kind == "bias":
                    return self.optional(own, shape)
                of_others = f"{fused}.{kind}" in self.in_layers and f"{name}.{kind}" not in self.in_layers
                if of_others and f"{source}.{kind}" not in self.tensors:
                    raise self.missing(f"{source}.{kind}", (sum(rows.values()), *shape[1:]))
                return self.weight(own, shape)
            tensor = self.optional(f"{source}.{kind}", (sum(rows.values()), *shape[1:]))
            return None if tensor is None else Weight(own, tensor.type, shape, tensor.name, first[name])

        values = []
        for name, n_out in rows.items():
            matrix = part(name, "weight", (n_out, x.width))
            assert matrix is not None
            values.append(self.emit(MatMul(f"{blk}.{name}", x, matrix)))
        for i, (name, n_out) in enumerate(rows.items()):
            vector = part(name, "bias", (n_out,))
            if vector is not None:
                values[i] = self.emit(Bias(f"{blk}.{name}_bias", values[i], vector))
        return values

    def is_fused(self, source: str, rows: Mapping[str, int]) -> bool:
        tensor = self.tensors.get(f"{source}.weight")
        if tensor is None:
            return False
        own = rows.get(source.rpartition(".")[2])  # one of the parts has the name of the whole
        return own is None or tensor.shape[0] != own

    def bias(self, name: str, x: Value) -> Value:
        weight = self.optional(f"{name}.bias", (x.width,))
        return x if weight is None else self.emit(Bias(f"{name}_bias", x, weight))

    def norm(self, name: str, x: Value, width: int) -> Value:
        return self.emit(RmsNorm(name, x, self.weight(f"{name}.weight", (width,)), self.hp.norm_eps))

    def norm_before(self, name: str, x: Value) -> Value:
        return self.norm(name, x, x.width) if self.family.norms_before else x

    def post_norm(self, name: str, x: Value) -> Value:
        """A norm that only some models have; those without norms before their blocks must."""
        if not self.family.norms_before:
            return self.norm(name, x, x.width)
        weight = self.optional(f"{name}.weight", (x.width,))
        return x if weight is None else self.emit(RmsNorm(name, x, weight, self.hp.norm_eps))

    def head_norm(self, name: str, x: Value) -> Value:
        """A norm of each head, or of all at once, where the file has one."""
        found = self.tensors.get(f"{name}.weight")
        width = x.width if found and found.shape == (x.width,) else self.hp.head_dim
        weight = self.optional(f"{name}.weight", (width,))
        return x if weight is None else self.emit(RmsNorm(name, x, weight, self.hp.norm_eps))

    def rope(self, name: str, layer: int, x: Value, max_position: int | None = None) -> Value:
        skips = self.family.rope_skips
        if skips and (layer + 1) % skips == 0:
            return x
        rope, layout = self.hp.ropes[layer], self.family.rope_layout
        return self.emit(Rope(name, x, self.hp.head_dim, layout, rope.frequencies, rope.magnitude, max_position))

    def weight(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self.optional(name, shape)
        if weight is None:
            raise self.missing(name, shape)
        return weight

    def missing(self, name: str, shape: tuple[int, ...]) -> UnsupportedModelError:
        near = difflib.get_close_matches(name, self.tensors, n=3)
        hint = f"the file has {', '.join(near)}" if near else "the file may be damaged or of another architecture"
        return UnsupportedModelError(
            f"tensor {name} {list(shape)} is missing for architecture {self.family.name}", remedy=hint
        )

    def optional(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        """None where neither the family needs the tensor nor another layer has it."""
        weight = self.tensors.get(name)
        if weight is None:
            if _in_layer(name) in self.in_layers:
                raise self.missing(name, shape)
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
            if n not in self.used and n not in self.ignored and not any(r in n for r in _REDUNDANT_TENSORS)
        ]
        if not unused:
            return
        head, _, rest = unused[0].partition(".")
        number = rest.partition(".")[0]
        if head == "blk" and number.isdigit() and int(number) >= self.hp.n_layers:
            raise ModelFileError(
                f"{self.hp.n_layers} layers, but there is a tensor {unused[0]}", field=f"{self.family.name}.block_count"
            )
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise UnsupportedModelError(
            f"architecture {self.family.name} with tensors {', '.join(unused[:3])}{more} is not supported",
            remedy="this variant of the model needs ops that hetrun does not build yet",
        )


def _in_layer(name: str) -> str | None:
    """A tensor's name within its layer; None for one that is of no layer."""
    head, _, rest = name.partition(".")
    return rest.partition(".")[2] if head == "blk" else None
