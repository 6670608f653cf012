"""Architectures: metadata and tensors of a GGUF file -> Graph. The shipped families, and how plugins add others."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hetrun.errors import ModelFileError, UnsupportedModelError
from hetrun.graph.graph import Graph
from hetrun.model.decoder import DecoderBuilder, DecoderFamily
from hetrun.model.header import Tensors
from hetrun.model.options import GraphOptions, RopeExtension
from hetrun.tensor import Weight

__all__ = [
    "FAMILIES", "Architecture", "DecoderBuilder", "DecoderFamily", "GraphOptions", "RopeExtension", "Tensors",
    "architectures", "build_graph",
]  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What `hetrun_architectures` returns: a name (`general.architecture`) and a pure function to a Graph.

    `DecoderFamily(...).build` is such a function.
    """

    name: str
    build: Callable[[Mapping[str, Any], Tensors, GraphOptions], Graph]


_HEAD_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")
_NORMS_AFTER = ("post_attention_norm.weight", "post_ffw_norm.weight")

# What llama.cpp takes for granted where a file leaves a key out stands in `defaults`.
FAMILIES = (
    DecoderFamily("llama", rope_layout="interleaved"),  # 1 to 3.3, TinyLlama, SmolLM 1 and 2, Mistral, Mixtral
    DecoderFamily("smollm3", rope_layout="interleaved", rope_skips=4),
    DecoderFamily("granite", rope_layout="interleaved", divide_logits=True),
    DecoderFamily("qwen2", needs=("attn_q.bias", "attn_k.bias", "attn_v.bias")),
    DecoderFamily("qwen3", needs=_HEAD_NORMS),
    DecoderFamily("qwen3moe", needs=_HEAD_NORMS),
    DecoderFamily("phi3", needs=("attn_qkv.weight", "ffn_up.weight")),
    DecoderFamily("olmo2", norms_before=False, needs=_HEAD_NORMS),
    DecoderFamily("gemma", activation="gelu", scale_embedding=True),
    DecoderFamily(
        "gemma2", activation="gelu", scale_embedding=True, wide_layers=46, needs=_NORMS_AFTER,
        defaults={
            "attention.sliding_window": 4096, "attention.sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        },
    ),
    DecoderFamily(
        "gemma3", activation="gelu", scale_embedding=True, wide_layers=62, needs=_NORMS_AFTER + _HEAD_NORMS,
        defaults={"attention.sliding_window_pattern": 6, "rope.freq_base_swa": 10000.0},
    ),
)  # fmt: skip


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
    blocks: Callable[[str], memoryview] | None = None,
) -> Graph:
    """The graph of a model file; UnsupportedModelError lists what is supported.

    blocks: raw blocks of a tensor by name, for graphs that depend on values (factors of rope frequencies).
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UnsupportedModelError(
            f"architecture {name!r} is not supported",
            remedy=f"supported: {', '.join(sorted(known))}" + (f"; {near[0]!r} is the nearest" if near else ""),
        )
    if not tensors:
        raise ModelFileError(
            "the file holds a vocabulary but no tensors", remedy='only "hetrun tokenize" and "inspect" can use it'
        )
    return known[name].build(metadata, Tensors(tensors, blocks), options)
