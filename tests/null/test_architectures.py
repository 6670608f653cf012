"""Graphs of llama files: order of ops, and files whose metadata and tensors disagree."""

from __future__ import annotations

import math

import pytest

from hetrun.errors import ContextError, HetrunError, ModelFileError, UnsupportedModelError, UsageError
from hetrun.model.architectures import Architecture, GraphOptions, architectures, build_graph
from hetrun.ops import Attention, MatMul, Rope
from hetrun.tensor import TENSOR_TYPES, Weight

from .graphs import SIZES, llama_graph, metadata, tensors


def build(meta=None, weights=None, name="llama", options=None):
    return build_graph(name, meta or metadata(), weights or tensors(), options or GraphOptions(), architectures())


def test_a_block_has_q_k_v_together_then_the_ropes_and_gate_beside_up():
    names = [op.name.removeprefix("blk.0.") for op in llama_graph(n_layers=3).ops if op.layer == 0]
    assert names == [
        "attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_rope", "attn_k_rope", "attn", "attn_output", "attn_add",
        "ffn_norm", "ffn_gate", "ffn_up", "ffn_act", "ffn_down", "ffn_add",
    ]  # fmt: skip


def test_the_head_is_the_embedding_where_the_file_has_none():
    tied = llama_graph().ops[-1]
    assert isinstance(tied, MatMul) and tied.weight.name == "token_embd.weight"
    own = build(weights=tensors(tied=False)).ops[-1]
    assert isinstance(own, MatMul) and own.weight.name == "output.weight"


def test_biases_and_norms_of_heads_are_used_where_the_file_has_them():
    head_dim = SIZES["n_embd"] // SIZES["n_heads"]
    extra = {"attn_q.bias": (SIZES["n_embd"],), "attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
    more = {f"blk.{i}.{n}": Weight(f"blk.{i}.{n}", TENSOR_TYPES["F32"], s) for i in range(2) for n, s in extra.items()}
    names = [op.name for op in build(weights={**tensors(), **more}).ops]
    assert names.index("blk.0.attn_q_bias") < names.index("blk.0.attn_q_norm") < names.index("blk.0.attn_q_rope")


def test_rope_frequencies_follow_base_and_linear_scaling():
    def frequencies(**extra):
        graph = build(metadata(**extra))
        return next(op.frequencies for op in graph.ops if isinstance(op, Rope))

    head_dim = SIZES["n_embd"] // SIZES["n_heads"]
    plain = frequencies()
    assert plain == pytest.approx([10000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    scaled = frequencies(**{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert scaled == pytest.approx([f / 4 for f in plain])


def test_attention_scale_is_one_over_the_root_of_the_head():
    attention = next(op for op in llama_graph().ops if isinstance(op, Attention))
    assert attention.scale == pytest.approx(1 / math.sqrt(attention.kv.head_dim))


def kv_of(options, **extra):
    graph = build(metadata(**extra), options=options)
    return next(op.kv for op in graph.ops if isinstance(op, Attention))


@pytest.mark.parametrize(("sink", "window"), [(0, 256), (0, 300), (4, 252)])
def test_a_window_that_holds_the_context_is_full_attention(sink, window):
    assert kv_of(GraphOptions(n_ctx=256, window=window, sink=sink)) == kv_of(GraphOptions(n_ctx=256))


@pytest.mark.parametrize(("sink", "window"), [(-1, 8), (0, -8), (4, 0)])
def test_a_policy_that_cannot_be_is_refused(sink, window):
    with pytest.raises(UsageError, match="attention"):
        GraphOptions(window=window, sink=sink)


def test_a_model_with_a_window_of_its_own_takes_no_other():
    own = {"llama.attention.sliding_window": 32}
    assert kv_of(GraphOptions(n_ctx=256), **own).window == 32
    with pytest.raises(UsageError, match="its own, of 32"):
        kv_of(GraphOptions(n_ctx=256, window=64), **own)


def test_a_window_gets_the_slack_that_chunks_and_rollback_need():
    options = GraphOptions(n_ctx=256, window=32, sink=2, max_tokens=16, max_rollback=8)
    kv = next(iter(build(options=options).kv_specs.values()))
    assert (kv.window, kv.sink, kv.slack, kv.n_cells) == (32, 2, 15, 49)


def test_context_defaults_to_the_models_own_and_may_not_exceed_it():
    assert next(iter(build(metadata(n_ctx=300)).kv_specs.values())).n_ctx == 300
    assert next(iter(build(metadata(n_ctx=100_000)).kv_specs.values())).n_ctx == 4096
    with pytest.raises(ContextError, match=r"301.*300"):
        build(metadata(n_ctx=300), options=GraphOptions(n_ctx=301))


def test_an_unknown_architecture_is_named_with_what_is_supported():
    with pytest.raises(
        UnsupportedModelError, match=r"'lama'.*supported: gemma, .*llama.*qwen3moe.*'llama' is the nearest"
    ):
        build(name="lama")


def test_a_plugin_adds_an_architecture():
    known = architectures([Architecture("mine", architectures()["llama"].build)])
    assert build_graph("mine", metadata(), tensors(), GraphOptions(), known).ops


def without(name):
    return {k: v for k, v in tensors().items() if k != name}


def with_tensor(name, shape):
    return {**tensors(), name: Weight(name, TENSOR_TYPES["F32"], shape)}


@pytest.mark.parametrize(
    ("meta", "weights", "error", "message"),
    [
        (None, without("blk.1.ffn_up.weight"), UnsupportedModelError, r"blk\.1\.ffn_up\.weight \[96, 64\] is missing"),
        (None, with_tensor("blk.0.attn_q.weight", (64, 32)), UnsupportedModelError, r"\[64, 32\].*asks for \[64, 64\]"),
        (None, with_tensor("blk.0.ffn_gate_exps.weight", (8, 96, 64)), UnsupportedModelError, "ffn_gate_exps"),
        (None, {}, ModelFileError, "no tensors"),
        (metadata(**{"llama.block_count": 0}), None, ModelFileError, "llama.block_count"),
        (metadata(**{"llama.block_count": 1 << 40}), None, ModelFileError, "llama.block_count"),
        (metadata(**{"llama.block_count": 5000}), None, UnsupportedModelError, r"blk\.2\."),
        (metadata(**{"llama.embedding_length": "64"}), None, ModelFileError, "llama.embedding_length"),
        (metadata(**{"llama.attention.head_count_kv": 3}), None, ModelFileError, "head_count_kv"),
        (metadata(**{"llama.attention.head_count": [4, 4, 4]}), None, ModelFileError, "3 entries for 2 layers"),
        (metadata(**{"llama.attention.layer_norm_rms_epsilon": float("nan")}), None, ModelFileError, "epsilon"),
        (metadata(**{"llama.rope.scaling.type": "spiral"}), None, UnsupportedModelError, "spiral"),
        (metadata(**{"llama.rope.freq_base": -1.0}), None, ModelFileError, "positive"),
        (metadata(**{"llama.rope.dimension_count": 99}), None, ModelFileError, "dimension_count"),
        ({k: v for k, v in metadata().items() if "block_count" not in k}, None, ModelFileError, "lacks"),
        (metadata(**{"llama.attention.value_length": 8}), None, UnsupportedModelError, "different length"),
        (None, with_tensor("rope_freqs.weight", (9,)), UnsupportedModelError, r"rope_freqs.weight is F32 \[9\].*\[8\]"),
        (metadata(**{"llama.rope.scaling.type": "longrope"}), None, UnsupportedModelError, "rope_factors_short.weight"),
        (metadata(**{"llama.vocab_size": 321}), None, ModelFileError, "321 tokens.*320 rows"),
        (metadata(n_layers=1), None, ModelFileError, r"1 layers.*blk\.1\..*block_count"),
    ],
)  # fmt: skip
def test_metadata_and_tensors_that_disagree_are_named(meta, weights, error, message):
    with pytest.raises(error, match=message):
        build_graph(
            "llama", meta or metadata(), tensors() if weights is None else weights, GraphOptions(), architectures()
        )


def test_one_layer_cut_out_is_always_an_error_never_a_crash():
    for name in tensors():
        if name.startswith("blk."):
            with pytest.raises(HetrunError):
                build(weights=without(name))
