"""What the engine does not run, and why."""

from __future__ import annotations

from hetrun.device import KvSpec
from hetrun.ops import Attention, Bias, Embedding, GatedActivation, MatMul, Op, RmsNorm, Rope
from hetrun.tensor import Weight
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.kv import kv_beats
from hetrun_alveo_u280.vector_memory import floats_of
from hetrun_alveo_u280.weights import format_of, types, weight_beats

KINDS = frozenset((
    "add", "attention", "bias", "embedding", "gated_activation", "matmul", "rms_norm", "rope", "scale", "select_rows",
))  # fmt: skip
KV_FORMATS = ("kv4", "kv4h")


def refusal(op: Op) -> str | None:
    """Why the engine cannot run an op, or None."""
    if op.kind not in KINDS:
        return f"the engine has no {op.kind}"
    if isinstance(op, (Embedding, MatMul)):
        reason = _of_matrix(op.weight)
    elif isinstance(op, (RmsNorm, Bias)):
        reason = _of_vector(op.weight)
    elif isinstance(op, Attention):
        reason = _of_attention(op)
    elif isinstance(op, Rope):
        reason = _of_rope(op)
    elif isinstance(op, GatedActivation) and op.function != "silu":
        reason = f"the engine's activation is silu, it has no {op.function}"
    else:
        reason = None
    return reason or _of_widths(op)


def _of_matrix(weight: Weight) -> str | None:
    columns, most = weight.shape[1], definition().numbers["MAX_COLUMNS"]
    if format_of(weight.type) is None:
        return f"{weight.name} has type {weight.type}; the engine reads {', '.join(types())}"
    if columns % weight.type.block_size:
        return f"{weight.name} has rows of {columns}, no multiple of {weight.type}'s block of {weight.type.block_size}"
    if columns > most:
        return f"{weight.name} has rows of {columns}; the engine holds activations of {most}"
    return None if weight_beats(weight) else f"{weight.name} is {weight.shape}, nothing or more than the card's HBM"


def _of_vector(weight: Weight) -> str | None:
    if weight.type.name != "F32":
        return f"{weight.name} has type {weight.type}; the engine's norms and biases are F32"
    most = definition().numbers["MAX_COLUMNS"]
    return f"{weight.name} is {weight.shape[0]} long; the engine takes {most}" if weight.shape[0] > most else None


def kv_refusal(kv: KvSpec) -> str | None:
    """Why the engine cannot keep a cache, or None."""
    most = definition().under("MAX_")
    if kv.n_cells > most["CELLS"]:
        return (
            f"a cache of {kv.n_cells} tokens; the engine keeps scores of {most['CELLS']}: "
            f"--ctx {most['CELLS']}, or --attention sink=4,window=2044"
        )
    if kv.format not in KV_FORMATS:
        return f"the engine keeps keys and values in 4 bits, not as {kv.format}: --kv-type {_suited(kv)}"
    if kv.format_refusal:
        return kv.format_refusal
    if kv.n_heads_kv > most["HEADS"]:
        return _too_many_heads(kv.n_heads_kv)
    if kv.head_dim % 2 or kv.head_dim > most["HEAD_DIM"]:
        return f"heads of {kv.head_dim}; the engine takes an even size up to {most['HEAD_DIM']}"
    return None if kv_beats(kv) else f"a cache of {kv.n_slots} x {kv.n_cells} tokens is more than the card's HBM"


def _of_attention(op: Attention) -> str | None:
    if reason := kv_refusal(op.kv):
        return reason
    if op.soft_cap:
        return "the engine's attention has no cap on scores"
    most = definition().under("MAX_")
    if op.n_heads > most["HEADS"]:
        return _too_many_heads(op.n_heads)
    queries = op.n_heads // op.kv.n_heads_kv
    if queries * -(-op.kv.head_dim // 128) > most["QUERIES"]:
        return f"{queries} queries of a KV head of {op.kv.head_dim}; the engine takes {most['QUERIES']} of up to 128"
    cells = -(-op.kv.n_cells // max(1, definition().numbers["CHANNELS"] // op.kv.n_heads_kv))
    if cells * queries > most["SCORES"]:
        return (
            f"{cells} cells of a KV head in a channel, {queries} queries each; the engine keeps {most['SCORES']} scores"
        )
    return None


def _too_many_heads(n_heads: int) -> str:
    return f"{n_heads} heads; the engine takes up to {definition().numbers['MAX_HEADS']}"


def _suited(kv: KvSpec) -> str:
    """The format for heads of this size: the rotation, which keeps more of them, needs a power of two."""
    return "kv4h" if kv.head_dim & (kv.head_dim - 1) == 0 else "kv4"


def _of_rope(op: Rope) -> str | None:
    most = definition().numbers["MAX_HEAD_DIM"]
    if op.head_dim > most:
        return f"heads of {op.head_dim}; the engine rotates up to {most}"
    return None if op.frequencies else "a rope of no pairs"


def _of_widths(op: Op) -> str | None:
    """What a matrix gives may go to DDR, all other values meet in the vector memory."""
    most = definition().numbers["VECTOR_FLOATS"]
    n_floats = floats_of(op.inputs if isinstance(op, MatMul) else (*op.inputs, op.output))
    if n_floats > most:
        return f"its values take {n_floats} floats a row; the engine's vector memory holds {most}"
    return None
