"""The canonical op vocabulary: what a transformer step is made of, with shapes, FLOPs and bytes.

An op is a frozen dataclass whose fields are its inputs (`Value`), constants (`Weight`) and attributes. It makes
exactly one value, which bears the op's name; the shape rule is the constructor, so a malformed op cannot exist
(`GraphError`). Values are float32 matrices [rows, width], row-major; rows is the number of tokens of the batch, or
of its outputs. What each op means is defined by `hetrun.reference`; how ops are fused is each device's own business.

    op.py         `Value`, `Workload`, and `Op`, which all share
    kv.py         the KV cache
    matrix.py     embedding, matmul
    vector.py     norm, bias, activation, sums, choice of rows
    attention.py  rope, attention
    experts.py    the choice of experts, and their sum
"""

from hetrun.ops.attention import Attention, Rope
from hetrun.ops.experts import Experts, Route
from hetrun.ops.kv import KV_FORMAT_BITS, KvSpec
from hetrun.ops.matrix import Embedding, MatMul
from hetrun.ops.op import VALUE_BYTES, Op, Rows, Unary, Value, Workload
from hetrun.ops.vector import FUNCTIONS, Add, Bias, Function, GatedActivation, RmsNorm, Scale, SelectRows, SoftCap

__all__ = [
    "FUNCTIONS", "KV_FORMAT_BITS", "OP_TYPES", "VALUE_BYTES", "Add", "Attention", "Bias", "Embedding", "Experts",
    "Function", "GatedActivation", "KvSpec", "MatMul", "Op", "RmsNorm", "Rope", "Route", "Rows", "Scale", "SelectRows",
    "SoftCap", "Unary", "Value", "Workload",
]  # fmt: skip

OP_TYPES: dict[str, type[Op]] = {
    t.kind: t
    for t in (
        Embedding, RmsNorm, MatMul, Bias, Rope, Attention, GatedActivation, Route, Experts, Add, Scale, SoftCap,
        SelectRows,
    )
}  # fmt: skip
