"""Shape rules, FLOPs and bytes of the op vocabulary, against hand-computed numbers."""

from __future__ import annotations

import pytest

from hetrun.errors import GraphError
from hetrun.ops import (
    OP_TYPES,
    Add,
    Attention,
    Embedding,
    GatedActivation,
    KvSpec,
    MatMul,
    RmsNorm,
    Rope,
    SelectRows,
    SoftCap,
    Value,
    Workload,
)
from hetrun.tensor import TENSOR_TYPES, Weight

F32, Q4_0 = TENSOR_TYPES["F32"], TENSOR_TYPES["Q4_0"]


def attention(kv: KvSpec, n_heads: int = 4) -> Attention:
    kv_value = Value("k", kv.width)
    return Attention("blk.3.attn", Value("q", n_heads * kv.head_dim), kv_value, Value("v", kv.width), kv, scale=0.1)


def test_matmul_costs_two_flops_a_weight_and_token_and_reads_its_blocks_once():
    op = MatMul("blk.1.ffn_up", Value("x", 64), Weight("w", Q4_0, (96, 64)))
    workload = Workload(n_tokens=5, n_past=0)
    assert op.output == Value("blk.1.ffn_up", 96)
    assert op.flops(workload) == 2 * 5 * 96 * 64
    assert op.weight_bytes(workload) == 96 * (64 // 32) * 18
    assert op.activation_bytes(workload) == 4 * 5 * (64 + 96)
    assert op.layer == 1


def test_embedding_reads_only_the_rows_of_the_batch():
    op = Embedding("token_embd", Weight("t", Q4_0, (1000, 64)))
    assert op.weight_bytes(Workload(3, 0)) == 3 * 2 * 18
    assert op.layer is None


def test_rows_follow_the_input():
    rows = SelectRows("rows", Value("x", 8))
    assert rows.output == Value("rows", 8, "outputs")
    head = MatMul("output", rows.output, Weight("w", F32, (10, 8)))
    assert head.output == Value("output", 10, "outputs")
    assert head.flops(Workload(n_tokens=100, n_past=0, n_outputs=2)) == 2 * 2 * 80


@pytest.mark.parametrize(
    ("kv", "n_past", "n_tokens", "visible"),
    [
        (KvSpec("kv", 1, 100, 2, 8), 0, 1, 1),
        (KvSpec("kv", 1, 100, 2, 8), 10, 1, 11),
        (KvSpec("kv", 1, 100, 2, 8), 0, 4, 1 + 2 + 3 + 4),
        (KvSpec("kv", 1, 100, 2, 8, window=4, slack=3), 50, 1, 4),
        (KvSpec("kv", 1, 100, 2, 8, sink=2, window=4, slack=3), 50, 1, 6),
    ],
)
def test_attention_flops_count_visible_pairs(kv, n_past, n_tokens, visible):
    op = attention(kv)
    assert op.flops(Workload(n_tokens, n_past)) == 4 * op.q.width * visible


def test_kv_bytes_grow_with_the_window_not_the_context():
    windowed = attention(KvSpec("kv", 1, 10_000, 2, 8, sink=2, window=64, slack=15))
    assert windowed.kv_bytes(Workload(1, 200)) == windowed.kv_bytes(Workload(1, 9000))
    full = attention(KvSpec("kv", 1, 10_000, 2, 8))
    assert full.kv_bytes(Workload(1, 9000)) > 40 * full.kv_bytes(Workload(1, 200))


def test_ring_never_reuses_a_cell_that_a_query_of_the_same_chunk_sees():
    kv = KvSpec("kv", 1, 1000, 1, 8, sink=3, window=8, slack=4)
    for start in range(0, 200, 5):
        chunk = range(start, start + 5)  # slack + 1 tokens at once, all written before any is answered
        held = {kv.cell(p): p for p in range(chunk[-1] + 1)}
        for query in chunk:
            seen = [j for j in range(query + 1) if j < kv.sink or j > query - kv.window]
            assert [held[kv.cell(j)] for j in seen] == seen
            assert kv.n_visible(query) == len(seen)


def test_signature_is_equal_for_the_same_op_of_other_layers():
    def up(layer, width):
        return MatMul(f"blk.{layer}.ffn_up", Value(f"x{layer}", width), Weight(f"w{layer}", Q4_0, (96, width)))

    assert up(0, 64).signature == up(7, 64).signature
    assert up(0, 64).signature != up(0, 32).signature
    spec = [attention(KvSpec(f"blk.{i}.kv", 1, 100, 2, 8)) for i in (1, 2)]
    assert spec[0].signature == spec[1].signature


@pytest.mark.parametrize(
    "make",
    [
        lambda: MatMul("m", Value("x", 64), Weight("w", F32, (8, 63))),
        lambda: MatMul("m", Value("x", 64), Weight("w", F32, (64,))),
        lambda: RmsNorm("n", Value("x", 64), Weight("w", F32, (48,)), 1e-5),
        lambda: Add("a", Value("x", 64), Value("y", 32)),
        lambda: Add("a", Value("x", 64), Value("y", 64, "outputs")),
        lambda: GatedActivation("g", Value("x", 64), Value("y", 64), "relu"),
        lambda: Rope("r", Value("x", 60), 16, "half", (1.0,)),
        lambda: Rope("r", Value("x", 64), 16, "half", (1.0,) * 9),
        lambda: Rope("r", Value("x", 64), 16, "spiral", (1.0,)),
        lambda: SelectRows("s", Value("x", 64, "outputs")),
        lambda: SoftCap("s", Value("x", 64), 0.0),
        lambda: attention(KvSpec("kv", 1, 10, 3, 8), n_heads=4),
        lambda: KvSpec("kv", 0, 10, 2, 8),
        lambda: KvSpec("kv", 1, 10, 2, 8, window=-1),
    ],
)
def test_a_malformed_op_cannot_exist(make):
    with pytest.raises(GraphError, match=r"^\w+"):
        make()


def test_every_kind_is_listed_once():
    assert all(kind == op.kind for kind, op in OP_TYPES.items())


@pytest.mark.parametrize(("format", "nbytes"), [("f32", 256), ("f16", 128), ("q8_0", 68), ("kv4", 36), ("kv4h", 36)])
def test_a_kv_format_takes_the_bytes_that_it_says(format: str, nbytes: int) -> None:
    """Of one head of 64: for kv4, 64 codes of 4 bits, a scale and a minimum in float16."""
    kv = KvSpec("kv", n_slots=2, n_ctx=10, n_heads_kv=3, head_dim=64, format=format)
    assert kv.token_bytes() == 2 * 3 * nbytes
    assert kv.nbytes == 2 * 10 * 2 * 3 * nbytes
