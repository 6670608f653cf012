"""The native step table: kinds, flags and types as `kernels/include/hetrun_cpu.h` numbers them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from hetrun.tensor import ALL_TYPES, Weight


class Kind(IntEnum):
    EMBED = 0
    ROPE_TABLE = 1
    PREPARE = 2
    MATMUL = 3
    NORM = 4
    ROPE = 5
    KV_STORE = 6
    ATTEND = 7
    GATED = 8
    ADD = 9
    BIAS = 10
    SCALE = 11
    SOFT_CAP = 12
    SELECT = 13
    ROUTE = 14
    EXPERTS_UP = 15
    EXPERTS_DOWN = 16


class Flag(IntFlag):
    NONE = 0
    BARRIER = 1
    BARRIER_IF_SHARED = 2
    PREPARE_INT8 = 4
    PREPARE_FLOAT = 8
    ROPE_HALF = 16
    ROUTE_NORMALISE = 32


FUNCTIONS = {"silu": 0, "gelu": 1}
KV_FORMATS = {"f32": 0, "f16": 1, "q8_0": 2, "kv4": 3, "kv4h": 4}

FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
QUANTISED_TYPES = frozenset(
    (
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"),
        *("W2S24", "W2"),
    )
)
DEQUANTISED_TYPES = frozenset(
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "NVFP4"),
)
"""Types that no kernel reads: the gguf package dequantises them when a segment is loaded."""


EXPANDED_TYPES = {"W2S24": "W2", "TQ1_0": "TQ2_0"}
"""Types whose packed form is that of another one, which takes more bytes (kernels/cpu/pack.h)."""


def as_stored(weight: Weight) -> Weight:
    """The weight in the type that memory holds it in: F16 for types that are dequantised (dequantised.py says why)."""
    if weight.type.name in DEQUANTISED_TYPES:
        return Weight(weight.name, ALL_TYPES["F16"], weight.shape)
    if weight.type.name in EXPANDED_TYPES:
        return Weight(weight.name, ALL_TYPES[EXPANDED_TYPES[weight.type.name]], weight.shape)
    return weight


PANEL_TOKENS = 16
"""The scratch of a PREPARE has memory for rows in multiples of this (kPreparedRows in kernels/cpu/kernels.h)."""


def prepared_width(width: int, int8: bool, floats: bool) -> int:
    """Floats that a row of `width` activations takes once prepared, its share of a panel included
    (PreparedLayout in kernels/cpu/kernels.h).
    """
    nbytes = 0
    if int8:
        nbytes += _round_up(width, 64) + 8 * 4 * _round_up(width // 32, 16) + 64 * (width // 32)
    if floats:
        nbytes += 4 * _round_up(width, 16) + 2 * _round_up(width, 32)
    return nbytes // 4


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


@dataclass(frozen=True)
class Step:
    """One native step; values, weights, states and rope tables by name, None where it has none.

    inputs, weights, biases and ropes are the pairs of the same names in `struct hetrun_step` (there `rope`).
    n_used: experts of a row.
    ops: names of the ops that it does or helps to do; none for what serves all of a segment (rope tables).
    """

    kind: Kind
    out: str | None = None
    inputs: tuple[str | None, str | None] = (None, None)
    weights: tuple[Weight | None, Weight | None] = (None, None)
    biases: tuple[Weight | None, Weight | None] = (None, None)
    state: str | None = None
    ropes: tuple[int | None, int | None] = (None, None)
    flags: Flag = Flag.NONE
    head_dim: int = 0
    n_used: int = 0
    function: int = 0
    f0: float = 0.0
    f1: float = 0.0
    ops: tuple[str, ...] = ()


_STEP = struct.Struct("<II10iIIffI")


def pack(step: Step, values: dict[str, int], weights: dict[str, int], states: dict[str, int]) -> bytes:
    """The step as `struct hetrun_step`, given the index of each name."""

    def value(name: str | None) -> int:
        return -1 if name is None else values[name]

    def weight(w: Weight | None) -> int:
        return -1 if w is None else weights[w.name]

    return _STEP.pack(
        step.kind,
        step.flags,
        value(step.inputs[0]),
        value(step.inputs[1]),
        value(step.out),
        weight(step.weights[0]),
        weight(step.weights[1]),
        weight(step.biases[0]),
        weight(step.biases[1]),
        -1 if step.state is None else states[step.state],
        *(-1 if rope is None else rope for rope in step.ropes),
        step.head_dim,
        step.function,
        step.f0,
        step.f1,
        step.n_used,
    )
