"""A whole small transformer block as a list of ops, to be cut into the runs that a device accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hetrun.device import Batch, Segment
from hetrun.ops import (
    Add,
    Attention,
    Embedding,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    SelectRows,
    Workload,
)
from hetrun.testing.cases import frequencies, prompt, segment_of, weight

_N_VOCAB, _N_HEADS, _N_HEADS_KV, _HEAD_DIM = 31, 4, 2, 64
_N_EMBD, _N_FF = _N_HEADS * _HEAD_DIM, 512


@dataclass(frozen=True)
class Layer:
    """A block whose matrices have one type. id: the type and the number of tokens."""

    id: str
    segment: Segment
    batch: Batch

    @property
    def workload(self) -> Workload:
        return Workload(self.batch.n_tokens, 0, 1, self.batch.n_outputs)

    def runs(self, accepts: Callable[[Op], bool]) -> list[Segment]:
        """Maximal runs of accepted ops."""
        found: list[list[Op]] = [[]]
        for op in self.segment.ops:
            if accepts(op):
                found[-1].append(op)
            elif found[-1]:
                found.append([])
        return [self._segment(tuple(ops)) for ops in found if ops]

    def _segment(self, ops: tuple[Op, ...]) -> Segment:
        read_elsewhere = {v.name for op in self.segment.ops if op not in ops for v in op.inputs}
        last = self.segment.ops[-1]
        outputs = tuple(op.output for op in ops if op.name in read_elsewhere or op == last)
        return segment_of(f"{ops[0].name}..{ops[-1].name}", ops, outputs, self.batch)


def _block(type_name: str) -> tuple[Op, ...]:
    def matmul(name: str, x: Op, n_out: int) -> MatMul:
        return MatMul(f"blk.0.{name}", x.output, weight(f"blk.0.{name}", type_name, n_out, x.output.width))

    def norm(name: str, x: Op) -> RmsNorm:
        return RmsNorm(name, x.output, weight(name, "F32", x.output.width), 1e-5)

    def rope(x: Op) -> Rope:
        return Rope(f"{x.name}_rope", x.output, _HEAD_DIM, "interleaved", frequencies(_HEAD_DIM))

    embedding = Embedding("token_embd", weight("token_embd", type_name, _N_VOCAB, _N_EMBD))
    attn_norm = norm("blk.0.attn_norm", embedding)
    q, k, v = (matmul(f"attn_{n}", attn_norm, h * _HEAD_DIM) for n, h in (("q", 4), ("k", 2), ("v", 2)))
    q_rope, k_rope = rope(q), rope(k)
    kv = KvSpec("blk.0.attn_kv", 2, 32, _N_HEADS_KV, _HEAD_DIM)
    attn = Attention("blk.0.attn", q_rope.output, k_rope.output, v.output, kv, _HEAD_DIM**-0.5)
    attn_output = matmul("attn_output", attn, _N_EMBD)
    attn_sum = Add("blk.0.attn_sum", embedding.output, attn_output.output)
    ffn_norm = norm("blk.0.ffn_norm", attn_sum)
    gate, up = matmul("ffn_gate", ffn_norm, _N_FF), matmul("ffn_up", ffn_norm, _N_FF)
    act = GatedActivation("blk.0.ffn_act", gate.output, up.output)
    down = matmul("ffn_down", act, _N_EMBD)
    ffn_sum = Add("blk.0.ffn_sum", attn_sum.output, down.output)
    last = SelectRows("last", ffn_sum.output)
    output_norm = norm("output_norm", last)
    # Tied with the embedding: one weight that two ops of a run share.
    output = MatMul("output", output_norm.output, embedding.weight)
    return (
        embedding, attn_norm, q, k, v, q_rope, k_rope, attn, attn_output, attn_sum,
        ffn_norm, gate, up, act, down, ffn_sum, last, output_norm, output,
    )  # fmt: skip


def _layer(type_name: str, batch: Batch) -> Layer:
    ops = _block(type_name)
    return Layer(f"{type_name}-{batch.n_tokens}", segment_of("block", ops, (ops[-1].output,), batch), batch)


LAYERS = tuple(
    _layer(type_name, batch)
    for type_name in ("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q3_K", "Q4_K", "Q6_K")
    for batch in (prompt(1), prompt(7, outputs=(2, 6)))
)
