"""Validation of graphs, and the passes that make them canonical."""

from __future__ import annotations

import pytest

from hetrun.errors import GraphError
from hetrun.graph.graph import Graph, canonical, drop_identities, drop_unused, select_rows_early
from hetrun.ops import Add, Attention, Embedding, KvSpec, MatMul, RmsNorm, Scale, SelectRows, Value
from hetrun.tensor import TENSOR_TYPES, Weight

F32 = TENSOR_TYPES["F32"]


def weight(name, *shape):
    return Weight(name, F32, shape)


def layer(x, number, kv):
    """Ops of a small block: attention over x itself, then a norm, a matmul and a residual."""
    attention = Attention(f"blk.{number}.attn", x, x, x, kv, 1.0)
    norm = RmsNorm(f"blk.{number}.norm", attention.output, weight(f"n{number}", 8), 1e-5)
    down = MatMul(f"blk.{number}.down", norm.output, weight(f"w{number}", 8, 8))
    add = Add(f"blk.{number}.add", down.output, attention.output)
    return [attention, norm, down, add]


@pytest.fixture
def ops():
    embedding = Embedding("embd", weight("t", 10, 8))
    first = layer(embedding.output, 0, KvSpec("blk.0.kv", 1, 16, 2, 4))
    second = layer(first[-1].output, 1, KvSpec("blk.1.kv", 1, 16, 2, 4))
    rows = SelectRows("rows", second[-1].output)
    head = MatMul("output", rows.output, weight("head", 10, 8))
    return [embedding, *first, *second, rows, head]


def test_rows_are_selected_right_after_the_last_attention(ops):
    graph = canonical(ops)
    names = [op.name for op in graph.ops]
    assert names.index("blk.1.attn_rows") == names.index("blk.1.attn") + 1
    rows = {op.name: op.output.rows for op in graph.ops}
    assert {n for n, r in rows.items() if r == "tokens"} == {
        "embd", "blk.0.attn", "blk.0.norm", "blk.0.down", "blk.0.add", "blk.1.attn",
    }  # fmt: skip
    assert graph.output == Value("output", 10, "outputs")


def test_a_value_read_in_full_elsewhere_is_selected_once(ops):
    graph = canonical(ops)
    assert [op.name for op in graph.ops if isinstance(op, SelectRows)] == ["blk.1.attn_rows"]


def test_selecting_rows_early_twice_changes_nothing(ops):
    once = select_rows_early(tuple(ops))
    assert select_rows_early(once) == once


def test_identities_are_dropped(ops):
    scaled = Scale("one", ops[0].output, 1.0)
    shifted = [ops[0], scaled, Scale("two", scaled.output, 2.0)]
    assert drop_identities(tuple(shifted)) == (ops[0], Scale("two", ops[0].output, 2.0))


def test_unused_ops_are_dropped_but_attention_writes_the_cache(ops):
    unused = Add("unused", ops[0].output, ops[0].output)
    kept_attention = Attention("side", ops[0].output, ops[0].output, ops[0].output, KvSpec("side.kv", 1, 16, 2, 4), 1.0)
    names = [op.name for op in drop_unused((ops[0], unused, kept_attention, *ops[1:]))]
    assert "unused" not in names
    assert "side" in names


def test_weights_and_caches_are_listed_once(ops):
    graph = canonical(ops)
    assert list(graph.weights) == ["t", "n0", "w0", "n1", "w1", "head"]
    assert list(graph.kv_specs) == ["blk.0.kv", "blk.1.kv"]


def test_fingerprint_tells_shapes_apart(ops):
    other = [*ops[:-1], MatMul("output", ops[-2].output, weight("head", 11, 8))]
    assert canonical(ops).fingerprint == canonical(list(ops)).fingerprint
    assert canonical(ops).fingerprint != canonical(other).fingerprint


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda ops: [], "at least one"),
        (lambda ops: ops[1:], "no earlier op"),
        (lambda ops: [*ops[:2], *ops[1:]], "two ops"),
        (lambda ops: ops[:-2], "one row an output"),
        (lambda ops: [ops[0], RmsNorm("n", Value("embd", 16), weight("nn", 16), 1e-5), *ops[1:]], "reads"),
        (lambda ops: [*ops[:-1], MatMul("output", ops[-2].output, weight("t", 11, 8))], "differs"),
    ],
    ids=["empty", "input-missing", "name-twice", "no-output", "shape-differs", "weight-differs"],
)
def test_an_inconsistent_graph_is_refused(ops, break_it, message):
    with pytest.raises(GraphError, match=message):
        Graph(tuple(break_it(ops)))
