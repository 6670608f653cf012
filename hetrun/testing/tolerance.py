"""How far a result may lie from float64: bounds on the NMSE by tensor type and op, each with its reason.

A bound depends on what is computed, never on who computes it: two devices that accept an op are held to the same. The
one exception is a device that says so: of embeddings, whose values are those of the file, unless it keeps the scales of
their blocks in fewer bits (`Expectations.embeddings`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hetrun.ops import Attention, Embedding, Experts, GatedActivation, MatMul, Op

# Float32 sums of up to a few thousand terms: relative error about 1e-6, squared 1e-12; room for any order of summation.
_FLOAT32_SUM = 1e-9
# Activations rounded to the type of the weights: eps^2 / 12 is 8e-8 for F16 (2^-10) and 5e-6 for BF16 (2^-7).
_HALF_ACTIVATIONS = {"F16": 1e-6, "BF16": 3e-5}
# Activations in int8 with one scale a block of 32 to 256: measured 2.8e-5 to 1e-4 on Gaussian data (0.53% to 1.0%).
_INT8_ACTIVATIONS = 2e-4
# The same where they are products of two values, whose tails are heavier: one scale per 256, which devices use for
# super-blocks as llama.cpp does, left 2.2e-4 to 3.0e-4 on the kit's runs.
_INT8_PRODUCTS = 6e-4
# Keys and values as stored: float16 rounds by 2^-11; q8_0 has one scale per 32, as the activations above, for each.
# 4 bits over a head of 32 to 128 Gaussian elements leave 0.6% to 1.0% of their square, keys and values alike: measured
# 0.6% to 2.1% on the cases of the kit, and single rows scatter to twice that.
_KV = {"f32": 1e-8, "f16": 1e-5, "q8_0": 5e-4, "kv4": 5e-2, "kv4h": 5e-2}

# The most that a device may claim for embeddings. The scales of a row's blocks as 15-bit integers of the largest keep
# all of a row's arithmetic in integers: measured 1.3e-10 where a block has one, up to 4.5e-8 where it has a minimum.
MOST_OF_EMBEDDINGS = 1e-7

_BY_KIND = {
    "embedding": 1e-12,  # one float32 rounding of each value
    "rms_norm": 1e-10,  # a float32 sum under a square root
    "bias": 1e-12,
    "add": 1e-12,
    "scale": 1e-12,
    "rope": 1e-6,  # an angle kept in float32 is off by position * 2^-24: 2.4e-4 rad at position 4000
    "gated_activation": 1e-8,  # an exp or tanh good to 1e-4, as polynomial ones are
    "soft_cap": 1e-8,
    "select_rows": 0.0,  # a copy
    "route": 1e-8,  # an exp good to 1e-4
}


def bound(op: Op) -> float:
    """The largest NMSE of one op."""
    if isinstance(op, MatMul):
        return _of_matmul(op.weight.type.name)
    if isinstance(op, Experts):
        # Two matmuls one after the other, the second of products.
        first, second = (_of_matmul(weight.type.name) for weight in (op.gate, op.down))
        return first + (_INT8_PRODUCTS if second == _INT8_ACTIVATIONS else second)
    if isinstance(op, Attention):
        return _KV.get(op.kv.format, 5e-4)
    if isinstance(op, Embedding) and op.weight.type.name == "F32":
        return 0.0
    return _BY_KIND[op.kind]


def _of_matmul(type_name: str) -> float:
    return _FLOAT32_SUM if type_name == "F32" else _HALF_ACTIVATIONS.get(type_name, _INT8_ACTIVATIONS)


def bound_of_run(ops: Sequence[Op], block: Sequence[Op] = (), of_op: Callable[[Op], float] = bound) -> float:
    """The largest NMSE of a run of ops, each fed by the one before: their errors add up.

    block: ops that made the run's inputs.
    """
    products = {op.name for op in (*ops, *block) if isinstance(op, GatedActivation)}
    return sum(max(of_op(op), _INT8_PRODUCTS) if _reads_super_blocks(op, products) else of_op(op) for op in ops)


def _reads_super_blocks(op: Op, products: set[str]) -> bool:
    return isinstance(op, MatMul) and op.weight.type.block_size == 256 and op.x.name in products
