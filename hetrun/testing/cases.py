"""The op cases: every op kind x tensor type x ragged shapes, each with an id that replays it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hetrun.device import Batch, Segment
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
    Rows,
    Scale,
    SelectRows,
    SoftCap,
    Value,
    Workload,
)
from hetrun.tensor import ALL_TYPES, Weight

FLOATS = ("F32", "F16", "BF16")
BLOCKS_32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
BLOCKS_256 = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
GROUPS_64 = ("W2S24", "W2")
RARE_TYPES = (
    *("IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
)

# tokens x n_in x n_out: one to many tokens, rows that no vector width divides, columns in whole blocks but no more.
_SHAPES = {
    **dict.fromkeys(FLOATS, ((1, 576, 192), (2, 33, 67), (3, 1536, 33), (7, 577, 33), (33, 100, 35), (33, 77, 1))),
    **dict.fromkeys(BLOCKS_32, ((1, 576, 192), (2, 32, 67), (3, 1536, 33), (7, 576, 192), (33, 96, 35), (33, 64, 1))),
    **dict.fromkeys(
        BLOCKS_256, ((1, 256, 192), (2, 512, 67), (3, 1536, 33), (7, 768, 192), (33, 256, 35), (33, 512, 1))
    ),
    **dict.fromkeys(GROUPS_64, ((1, 576, 192), (2, 64, 67), (3, 1536, 33), (7, 576, 192), (33, 192, 35), (33, 128, 1))),
    **dict.fromkeys(RARE_TYPES, ((3, 512, 67),)),
}

SPARE_ROWS = 3  # rows of a buffer beyond the batch, which must stay as they were


@dataclass(frozen=True)
class OpCase:
    """One op on one batch. id: as in the test's name.   spread: standard deviation of the inputs."""

    id: str
    op: Op
    batch: Batch
    spread: float = 1.0

    @cached_property
    def workload(self) -> Workload:
        n_seqs = len(set(self.batch.slots)) or 1
        return Workload(self.batch.n_tokens, max(self.batch.positions, default=0), n_seqs, self.batch.n_outputs)

    @cached_property
    def segment(self) -> Segment:
        return segment_of(self.id, (self.op,), (self.op.output,), self.batch)

    def inputs(self) -> Mapping[str, NDArray[np.float32]]:
        return random_inputs(self.segment, self.batch, self.spread)


def segment_of(name: str, ops: tuple[Op, ...], outputs: tuple[Value, ...], batch: Batch) -> Segment:
    """A segment of `ops` with spare rows; its inputs are what the ops read and do not make."""
    made = {op.name for op in ops}
    inputs = {v.name: v for op in ops for v in op.inputs if v.name not in made}
    return Segment(
        name, ops, tuple(inputs.values()), outputs, batch.n_tokens + SPARE_ROWS, batch.n_outputs + SPARE_ROWS
    )


def random_inputs(segment: Segment, batch: Batch, spread: float = 1.0) -> dict[str, NDArray[np.float32]]:
    """Gaussian values for each input, the same for the same segment.   Each [rows, width] float32."""
    rng = np.random.default_rng(zlib.crc32(segment.name.encode()))
    values = {v.name: rng.normal(0.0, spread, (batch.rows(v.rows), v.width)).astype(np.float32) for v in segment.inputs}
    for op in segment.ops:
        if isinstance(op, Experts) and op.routes.name in values:
            values[op.routes.name] = _few(values[op.routes.name], op.n_used)
    return values


def _few(scores: NDArray[np.float32], n_used: int) -> NDArray[np.float32]:
    """The n_used largest of each row as shares of one, and zeros. Every third row uses one less."""
    kept = np.zeros_like(scores)
    for row, (to, values) in enumerate(zip(kept, np.abs(scores), strict=True)):
        chosen = np.argsort(-values)[: max(1, n_used - (row % 3 == 2))]
        to[chosen] = values[chosen] / values[chosen].sum()
    return kept


def weight(name: str, type_name: str, *shape: int) -> Weight:
    return Weight(f"{name}.weight", ALL_TYPES[type_name], shape)


def prompt(n_tokens: int, slot: int = 0, start: int = 0, outputs: tuple[int, ...] | None = None) -> Batch:
    """A chunk of one sequence. outputs: the last row where nothing is given."""
    rows = range(n_tokens)
    wanted = outputs if outputs is not None else tuple(rows)[-1:]
    return Batch.of([7 * i % 31 for i in rows], [start + i for i in rows], [slot] * n_tokens, wanted)


def op_cases() -> list[OpCase]:
    """All cases, the same list in every run."""
    return [*_matmul(), *_embedding(), *_elementwise(), *_norm(), *_rope(), *_experts(), *_attention()]


def _matmul() -> Iterator[OpCase]:
    for type_name, shapes in _SHAPES.items():
        for n_tokens, n_in, n_out in shapes:
            op = MatMul("blk.0.ffn_up", Value("x", n_in), weight("blk.0.ffn_up", type_name, n_out, n_in))
            yield OpCase(f"matmul-{type_name}-{n_tokens}x{n_in}x{n_out}", op, prompt(n_tokens))
    for type_name, n_in in (("F32", 96), ("Q8_0", 96), ("Q4_1", 576), ("Q6_K", 256)):
        op = MatMul("output", Value("x", n_in, "outputs"), weight("output", type_name, 131, n_in))
        yield OpCase(f"matmul-{type_name}-outputs-3of7x{n_in}x131", op, prompt(7, outputs=(1, 4, 6)))


def _embedding() -> Iterator[OpCase]:
    for type_name in (*FLOATS, *BLOCKS_32, *BLOCKS_256, *GROUPS_64):
        width = 256 if type_name in BLOCKS_256 else 576
        op = Embedding("token_embd", weight("token_embd", type_name, 31, width))
        yield OpCase(f"embedding-{type_name}-7x{width}", op, prompt(7))


def _elementwise() -> Iterator[OpCase]:
    for n_tokens, width in ((1, 576), (3, 35), (33, 192)):
        x, y = Value("x", width), Value("y", width)
        shape = f"{n_tokens}x{width}"
        batch = prompt(n_tokens)
        yield OpCase(f"add-{shape}", Add("blk.0.ffn_out", x, y), batch)
        yield OpCase(f"scale-{shape}", Scale("scaled", x, 0.37), batch)
        yield OpCase(f"soft_cap-{shape}", SoftCap("capped", x, 30.0), batch, spread=20.0)
        yield OpCase(
            f"bias-F32-{shape}", Bias("blk.0.attn_q_bias", x, weight("blk.0.attn_q_bias", "F32", width)), batch
        )
        for function in ("silu", "gelu"):
            yield OpCase(
                f"gated_activation-{function}-{shape}",
                GatedActivation("blk.0.ffn_act", x, y, function),
                batch,
                spread=4.0,
            )
    yield OpCase("add-outputs-3of7x35", Add("sum", _outputs("x", 35), _outputs("y", 35)), prompt(7, outputs=(0, 1, 5)))
    for n_tokens, outputs in ((1, (0,)), (7, (1, 4, 6)), (33, tuple(range(33))), (5, (2,))):
        op = SelectRows("last", Value("x", 35))
        yield OpCase(f"select_rows-{len(outputs)}of{n_tokens}x35", op, prompt(n_tokens, outputs=outputs))


def _outputs(name: str, width: int) -> Value:
    rows: Rows = "outputs"
    return Value(name, width, rows)


def _norm() -> Iterator[OpCase]:
    for n_tokens, width, group in ((1, 576, 576), (7, 576, 576), (3, 35, 35), (33, 192, 192), (5, 256, 64)):
        op = RmsNorm("blk.0.attn_norm", Value("x", width), weight("blk.0.attn_norm", "F32", group), 1e-5)
        yield OpCase(f"rms_norm-F32-{n_tokens}x{width}by{group}", op, prompt(n_tokens))
    tiny = RmsNorm("blk.0.attn_norm", Value("x", 64), weight("blk.0.attn_norm", "F32", 64), 1e-2)
    yield OpCase("rms_norm-F32-eps-3x64by64", tiny, prompt(3), spread=0.05)


def frequencies(head_dim: int, n_pairs: int | None = None, base: float = 10000.0) -> tuple[float, ...]:
    return tuple(base ** (-2 * i / head_dim) for i in range(head_dim // 2 if n_pairs is None else n_pairs))


def _rope() -> Iterator[OpCase]:
    several = Batch.of([1] * 6, [3, 4000, 9, 4001, 10, 0], [0, 1, 2, 1, 2, 3], [5])
    for layout in ("interleaved", "half"):
        for name, n_heads, head_dim, n_pairs, magnitude, last, batch in (
            ("1x9x64", 9, 64, 32, 1.0, None, prompt(1, start=5)),
            ("7x3x64", 3, 64, 32, 1.0, None, prompt(7, start=2)),
            ("7x2x80-partial", 2, 80, 16, 1.0, None, prompt(7)),
            ("7x2x64-magnitude", 2, 64, 32, 1.19, None, prompt(7, start=1)),
            ("6x3x32-slots", 3, 32, 16, 1.0, None, several),
            ("7x2x64-bounded", 2, 64, 32, 1.0, 3, prompt(7)),
        ):
            x = Value("x", n_heads * head_dim)
            op = Rope("blk.0.attn_q_rope", x, head_dim, layout, frequencies(head_dim, n_pairs), magnitude, last)
            yield OpCase(f"rope-{layout}-{name}", op, batch)


def _experts() -> Iterator[OpCase]:
    for n_tokens, n_experts, n_used in ((1, 8, 2), (7, 8, 2), (7, 5, 5), (33, 60, 4)):
        for name, normalise, factor in (("", True, 1.0), ("-raw", False, 2.5)):
            op = Route("blk.0.ffn_route", Value("scores", n_experts), n_used, normalise, factor)
            yield OpCase(f"route{name}-{n_used}of{n_experts}-{n_tokens}", op, prompt(n_tokens), spread=2.0)
    equal = Route("blk.0.ffn_route", Value("scores", 8), 3)
    yield OpCase("route-equal-3of8-7", equal, prompt(7), spread=0.0)
    for type_name, n_in, n_ff, n_out in (
        ("F32", 33, 17, 35),
        ("F16", 64, 48, 64),
        ("Q8_0", 96, 64, 67),
        ("Q4_0", 64, 160, 64),
        ("Q4_K", 256, 256, 64),
        ("Q6_K", 256, 512, 33),
    ):
        for n_tokens in (1, 7, 33):
            yield OpCase(
                f"experts-{type_name}-{n_tokens}x{n_in}x{n_ff}",
                experts_op(type_name, 6, 2, n_in, n_ff, n_out, "silu" if n_tokens != 33 else "gelu"),
                prompt(n_tokens),
            )
    mixed = replace(experts_op("Q8_0", 4, 1, 64, 32, 64, "silu"), down=weight("blk.0.ffn_down_exps", "F16", 4, 64, 32))
    yield OpCase("experts-Q8_0-F16-7x64x32", mixed, prompt(7))


def experts_op(
    type_name: str, n_experts: int, n_used: int, n_in: int, n_ff: int, n_out: int, function: Literal["silu", "gelu"]
) -> Experts:
    gate, up = (weight(f"blk.0.ffn_{n}_exps", type_name, n_experts, n_ff, n_in) for n in ("gate", "up"))
    down = weight("blk.0.ffn_down_exps", type_name, n_experts, n_out, n_ff)
    return Experts("blk.0.ffn_exps", Value("x", n_in), Value("routes", n_experts), n_used, gate, up, down, function)


@dataclass(frozen=True)
class Heads:
    """Shape of an attention op."""

    n_heads: int = 4
    n_heads_kv: int = 2
    head_dim: int = 32
    scale: float | None = None
    soft_cap: float = 0.0
    q_sink: bool = False
    kv: Mapping[str, int] = field(default_factory=dict)


def attention_op(heads: Heads, format: str, name: str = "blk.0.attn", n_ctx: int = 64, n_slots: int = 4) -> Attention:
    kv = KvSpec(f"{name}_kv", n_slots, n_ctx, heads.n_heads_kv, heads.head_dim, format, **heads.kv)
    scale = heads.head_dim**-0.5 if heads.scale is None else heads.scale
    q, q_sink = (Value(name, heads.n_heads * heads.head_dim) for name in ("q", "q_sink"))
    k, v = Value("k", kv.width), Value("v", kv.width)
    return Attention(name, q, k, v, kv, scale, heads.soft_cap, q_sink if heads.q_sink else None)


def _attention() -> Iterator[OpCase]:
    shapes = {
        "9h3kv64d": Heads(9, 3, 64),
        "4h4kv32d": Heads(4, 4, 32),
        "8h1kv128d": Heads(8, 1, 128),
        "4h1kv256d": Heads(4, 1, 256),
        "4h2kv32d-scale": Heads(scale=0.5),
        "4h2kv32d-soft_cap": Heads(scale=1.0, soft_cap=5.0),
        "4h2kv32d-window": Heads(kv={"window": 5, "slack": 40}),
        "4h2kv32d-sink": Heads(kv={"window": 5, "sink": 2, "slack": 40}),
        "4h2kv32d-q_sink": Heads(q_sink=True, kv={"window": 5, "sink": 2, "slack": 40}),
    }
    for format in ("f32", "f16", "q8_0", "kv4", "kv4h"):
        for name, heads in shapes.items():
            for n_tokens in (1, 7, 33) if name == "9h3kv64d" else (7,):
                op = attention_op(heads, format)
                yield OpCase(f"attention-{format}-{name}-{n_tokens}", op, prompt(n_tokens))
