"""Rotary embeddings: the metadata's base and scaling -> one frequency for each rotated pair.

Every kind of scaling comes down to frequencies, and a magnitude, that are known when the graph is built, so devices
know nothing of kinds. Names of keys and tensors, and what they mean, are llama.cpp's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetrun.errors import ModelFileError, UnsupportedModelError, UsageError
from hetrun.model.header import Keys, Tensors
from hetrun.model.options import RopeExtension

FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""What frequencies are divided by, one factor a pair: of any context (llama 3), or of long and short ones (phi 3)."""

KINDS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class RopeTable:
    """frequencies: radians a position for each rotated pair.   magnitude: factor on rotated elements."""

    frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class _Scaling:
    """kind: of `KINDS`.   n_ctx_original: tokens that the unscaled model was trained for."""

    kind: str
    factor: float
    n_ctx_original: int


def rope_table(
    keys: Keys, head_dim: int, n_ctx: int, n_ctx_train: int, tensors: Tensors, extension: RopeExtension | None = None
) -> RopeTable:
    """The table of the model's base and scaling, or of its extension.   n_ctx: tokens that a sequence may reach."""
    n_rot = _rotated(keys, head_dim)
    plain = _plain(_base(keys, "rope.freq_base", 10000.0), n_rot)
    scaling = _scaling(keys, n_ctx_train, extension)
    factors = _factors(n_rot // 2, n_ctx, scaling, tensors)
    plain = tuple(f / factor for f, factor in zip(plain, factors, strict=True))
    magnitude = keys.positive("rope.scaling.attn_factor", default=1.0)
    if scaling.kind == "yarn":
        return _yarn(keys, plain, scaling, magnitude)
    factor = scaling.factor if scaling.kind == "linear" else 1.0
    return RopeTable(tuple(f / factor for f in plain), magnitude)


def local_rope_table(keys: Keys, head_dim: int) -> RopeTable:
    """The table of layers with a window, where these have a base of their own. Scaling is for long contexts alone."""
    return RopeTable(_plain(_base(keys, "rope.freq_base_swa"), _rotated(keys, head_dim)))


def n_ctx_original(keys: Keys, n_ctx_train: int) -> int:
    """Tokens that the model was trained for before its context was extended."""
    return keys.size("rope.scaling.original_context_length", default=n_ctx_train)


def _rotated(keys: Keys, head_dim: int) -> int:
    n_rot = keys.size("rope.dimension_count", default=head_dim)
    if n_rot > head_dim or n_rot % 2:
        raise ModelFileError(
            f"{n_rot} rotated elements in a head of {head_dim}", field=keys.name("rope.dimension_count")
        )
    return n_rot


def _base(keys: Keys, key: str, default: float | None = None) -> float:
    base = keys.positive(key, default=default)
    if base <= 1.0:
        raise ModelFileError(f"expected a base above 1, found {base}", field=keys.name(key))
    return base


def _plain(base: float, n_rot: int) -> tuple[float, ...]:
    return tuple(base ** (-2.0 * i / n_rot) for i in range(n_rot // 2))


def _scaling(keys: Keys, n_ctx_train: int, extension: RopeExtension | None) -> _Scaling:
    old_factor = keys.positive("rope.scale_linear", default=1.0)  # before GGUF named kinds
    factor = keys.positive("rope.scaling.factor", default=old_factor)
    kind = str(keys.value("rope.scaling.type", "none" if factor == 1.0 else "linear"))
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"{keys.name('rope.scaling.type')}: rope scaling {kind!r} is not supported",
            remedy=f"supported: {', '.join(KINDS)}",
        )
    if extension is None:
        return _Scaling(kind, factor, n_ctx_original(keys, n_ctx_train))
    if kind != "none":
        raise UsageError(
            f"rope scaling {extension} for a model that has its own, {kind}:{factor:g}",
            remedy="leave --rope-scaling out",
        )
    return _Scaling(extension.kind, extension.factor, n_ctx_train)


def _factors(n_pairs: int, n_ctx: int, scaling: _Scaling, tensors: Tensors) -> tuple[float, ...]:
    every, long, short = FACTOR_TENSORS
    name = every
    if scaling.kind == "longrope" or long in tensors or short in tensors:
        name = long if n_ctx > scaling.n_ctx_original else short
        if name not in tensors:
            raise UnsupportedModelError(
                f"tensor {name} {[n_pairs]} is missing for {n_ctx} tokens", remedy="the file may be damaged"
            )
    elif name not in tensors:
        return (1.0,) * n_pairs
    found = {other: tensors.floats(other, n_pairs) for other in FACTOR_TENSORS if other in tensors}
    for other, factors in found.items():
        if not all(math.isfinite(f) and f > 0 for f in factors):
            raise ModelFileError("expected positive factors", field=f"tensor {other}")
    return found[name]


def _yarn(keys: Keys, plain: tuple[float, ...], scaling: _Scaling, magnitude: float) -> RopeTable:
    """Pairs that turn often within the original context stay; those that turn less than once are stretched; a ramp
    lies between. https://arxiv.org/abs/2309.00071, equations 17 to 25.
    """
    base = _base(keys, "rope.freq_base", 10000.0)
    n_rot, n_ctx = 2 * len(plain), scaling.n_ctx_original

    def pair_that_turns(times: float) -> float:
        return n_rot * math.log(n_ctx / (times * 2.0 * math.pi)) / (2.0 * math.log(base))

    fast = keys.positive("rope.scaling.yarn_beta_fast", default=32.0)
    slow = keys.positive("rope.scaling.yarn_beta_slow", default=1.0)
    low = max(0.0, math.floor(pair_that_turns(fast)))
    high = min(n_rot - 1.0, math.ceil(pair_that_turns(slow)))
    share = keys.number("rope.scaling.yarn_ext_factor", default=1.0)

    def mixed(pair: int, frequency: float) -> float:
        ramp = 1.0 - min(1.0, max(0.0, (pair - low) / max(0.001, high - low)))
        kept = ramp * share
        return frequency / scaling.factor * (1.0 - kept) + frequency * kept

    magnitude *= keys.positive("rope.scaling.yarn_attn_factor", default=1.0)
    if share:
        magnitude *= 1.0 + 0.1 * math.log(scaling.factor)
    return RopeTable(tuple(mixed(i, f) for i, f in enumerate(plain)), magnitude)
