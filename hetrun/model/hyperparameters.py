"""Hyperparameters of a decoder from GGUF metadata, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetrun.errors import ModelFileError, UnsupportedModelError
from hetrun.tensor import Weight

_LIMIT = 1 << 24  # no dimension of a real model comes near


@dataclass(frozen=True)
class RopeTable:
    """frequencies: radians a position for each rotated pair.   magnitude: factor on rotated elements."""

    frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes of a decoder. Per-layer values are tuples of n_layers entries.

    window: keys that a query sees (0: all).   *_soft_cap: 0 for none.
    """

    n_layers: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_heads: tuple[int, ...]
    n_heads_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    head_dim: int
    norm_eps: float
    rope: RopeTable
    attention_scale: float
    window: int = 0
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    logit_scale: float = 1.0

    @classmethod
    def read(cls, arch: str, metadata: Mapping[str, Any], tensors: Mapping[str, Weight]) -> Hyperparameters:
        """ModelFileError names the key that is missing or makes no sense."""
        keys = _Keys(arch, metadata)
        n_layers = keys.size("block_count")
        n_embd = keys.size("embedding_length")
        n_heads = keys.per_layer("attention.head_count", n_layers)
        n_heads_kv = keys.per_layer("attention.head_count_kv", n_layers, default=n_heads)
        for q, kv in zip(n_heads, n_heads_kv, strict=True):
            if q % kv:
                raise ModelFileError(
                    f"{q} query heads are no multiple of {kv} KV heads", field=keys.name("attention.head_count_kv")
                )
        head_dim = keys.size("attention.key_length", default=n_embd // n_heads[0])
        if keys.size("attention.value_length", default=head_dim) != head_dim:
            raise UnsupportedModelError("keys and values of different length are not supported")
        n_vocab = tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else keys.size("vocab_size")
        return cls(
            n_layers=n_layers,
            n_embd=n_embd,
            n_vocab=n_vocab,
            n_ctx_train=keys.size("context_length"),
            n_heads=n_heads,
            n_heads_kv=n_heads_kv,
            n_ff=keys.per_layer("feed_forward_length", n_layers),
            head_dim=head_dim,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rope=_rope_table(keys, head_dim, tensors),
            attention_scale=keys.number("attention.scale", default=1.0 / math.sqrt(head_dim)),
            window=keys.size("attention.sliding_window", default=0, least=0),
            attention_soft_cap=keys.number("attn_logit_softcapping", default=0.0),
            logit_soft_cap=keys.number("final_logit_softcapping", default=0.0),
            logit_scale=keys.number("logit_scale", default=1.0),
        )


def _rope_table(keys: _Keys, head_dim: int, tensors: Mapping[str, Weight]) -> RopeTable:
    n_rot = keys.size("rope.dimension_count", default=head_dim)
    if n_rot > head_dim or n_rot % 2:
        raise ModelFileError(
            f"{n_rot} rotated elements in a head of {head_dim}", field=keys.name("rope.dimension_count")
        )
    base = keys.number("rope.freq_base", default=10000.0)
    scaling = str(
        keys.metadata.get(keys.name("rope.scaling.type"), "linear" if keys.has("rope.scale_linear") else "none")
    )
    factor = keys.number("rope.scaling.factor", default=keys.number("rope.scale_linear", default=1.0))
    if scaling not in ("none", "linear"):
        raise UnsupportedModelError(f"rope scaling {scaling!r} is not supported", remedy="supported: none, linear")
    if "rope_freqs.weight" in tensors:
        raise UnsupportedModelError("rope scaling by a tensor of factors (rope_freqs.weight) is not supported")
    if base <= 0 or factor <= 0:
        raise ModelFileError(
            f"rope base {base} and scaling factor {factor} must be positive", field=keys.name("rope.freq_base")
        )
    scale = 1.0 if scaling == "none" else 1.0 / factor
    return RopeTable(tuple(scale * base ** (-2.0 * i / n_rot) for i in range(n_rot // 2)))


class _Keys:
    """Typed, bounded access to the metadata of one architecture."""

    def __init__(self, arch: str, metadata: Mapping[str, Any]) -> None:
        self.arch = arch
        self.metadata = metadata

    def name(self, key: str) -> str:
        return f"{self.arch}.{key}"

    def has(self, key: str) -> bool:
        return self.name(key) in self.metadata

    def size(self, key: str, *, default: int | None = None, least: int = 1) -> int:
        return self._integer(key, self._get(key, default), least)

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelFileError(f"expected a finite number, found {value!r:.60}", field=self.name(key))
        return float(value)

    def per_layer(self, key: str, n_layers: int, *, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """One value for every layer; files give a number for all, or an array."""
        value = self._get(key, default)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != n_layers:
                raise ModelFileError(f"{len(value)} entries for {n_layers} layers", field=self.name(key))
            return tuple(self._integer(key, v, 1) for v in value)
        return (self._integer(key, value, 1),) * n_layers

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(self.name(key), default)
        if value is None:
            raise ModelFileError("the metadata lacks this key", field=self.name(key), remedy="convert the model again")
        return value

    def _integer(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LIMIT:
            raise ModelFileError(
                f"expected an integer from {least} to {_LIMIT}, found {value!r:.60}", field=self.name(key)
            )
        return value
