"""What a KV cache means: which cells hold which positions, and how each format rounds."""

from __future__ import annotations

import numpy as np

from hetrun.errors import DeviceError
from hetrun.ops import KvSpec
from hetrun.reference.arrays import F32Array, I32Array
from hetrun.reference.program import Q8_0_BLOCK

STORED_AS = {"f32": np.float32, "f16": np.float16, "q8_0": np.float32, "kv4": np.float32, "kv4h": np.float32}


def round_to_format(x: F32Array, kv_format: str) -> F32Array:
    """The float32 values that remain of `x` once it was stored.   x: [..., head_dim]; for q8_0 whole blocks of 32.

    f16: to the nearest even, overflow to inf.   q8_0: codes are rounded half away from zero with the float32 scale,
    then multiplied with that scale rounded to float16; a NaN or inf makes its whole block NaN.
    kv4: codes of 4 bits between the least and the greatest element of the head, one scale and one minimum for each
    head, both rounded to float16 before the codes are chosen; a NaN or inf makes its whole head NaN.
    kv4h: as kv4, between two Hadamard transforms. What is stored is the transform of the key (or value); as it is
    orthogonal, a device may leave keys so and transform queries, and the weighted sum of values, instead.
    """
    if kv_format == "f32":
        return x
    with np.errstate(all="ignore"):
        if kv_format == "f16":
            return x.astype(np.float16).astype(np.float32)
        if kv_format == "q8_0":
            blocks = x.reshape(*x.shape[:-1], x.shape[-1] // Q8_0_BLOCK, Q8_0_BLOCK)
            scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
            magnitude = np.abs(blocks * inverse)
            whole = np.floor(magnitude)
            codes = np.copysign(whole + np.floor(2 * (magnitude - whole)), blocks)
            return (codes * scale.astype(np.float16).astype(np.float32)).reshape(x.shape)
        if kv_format == "kv4":
            return _round_to_4_bits(x)
        if kv_format == "kv4h":
            return hadamard(_round_to_4_bits(hadamard(x)))
    raise DeviceError(f"the reference has no KV format {kv_format!r}", remedy=f"it has {', '.join(STORED_AS)}")


def _round_to_4_bits(x: F32Array) -> F32Array:
    least, greatest = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    scale = ((greatest - least) / np.float32(15)).astype(np.float16).astype(np.float32)
    minimum = least.astype(np.float16).astype(np.float32)
    inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    codes = np.floor(np.clip((x - minimum) * inverse, 0, 15) + np.float32(0.5))
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    return np.where(finite, codes * scale + minimum, np.float32(np.nan))


def hadamard(x: F32Array) -> F32Array:
    """x H / sqrt(n), H the Hadamard matrix in the order of Sylvester: its own inverse.

    x: [..., n], n a power of two.
    """
    n, apart = x.shape[-1], 1
    while apart < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * apart), 2, apart)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        apart *= 2
    return x * np.float32(1 / np.sqrt(n))


class KvCache:
    """Keys and values of one KvSpec, all slots.

    Remembers which position each cell holds, so that no query reads a key that was never written or is overwritten.
    """

    def __init__(self, kv: KvSpec) -> None:
        shape = (kv.n_slots, kv.n_cells, kv.n_heads_kv, kv.head_dim)
        self.kv = kv
        self._keys = np.zeros(shape, STORED_AS[kv.format])
        self._values = np.zeros(shape, STORED_AS[kv.format])
        self._held = np.full((kv.n_slots, kv.n_cells), -1, np.int32)
        identity = kv.n_cells == kv.n_ctx
        self._cell = np.arange(kv.n_ctx) if identity else np.array([kv.cell(p) for p in range(kv.n_ctx)])

    def write(self, positions: I32Array, slots: I32Array, keys: F32Array, values: F32Array) -> None:
        """Stores one key and value a token.   keys, values: [n_tokens, n_heads_kv * head_dim]."""
        shape = (len(positions), self.kv.n_heads_kv, self.kv.head_dim)
        cells = self._cell[positions]
        self._keys[slots, cells] = round_to_format(keys.reshape(shape), self.kv.format)
        self._values[slots, cells] = round_to_format(values.reshape(shape), self.kv.format)
        self._held[slots, cells] = positions

    def read(self, slot: int, positions: I32Array) -> tuple[F32Array, F32Array]:
        """Keys and values at those positions, each float32 [n_positions, n_heads_kv, head_dim].

        DeviceError where a position is not in the cache.
        """
        cells = self._cell[positions]
        missing = positions[self._held[slot, cells] != positions]
        if len(missing):
            raise DeviceError(
                f"{self.kv.name}: position {missing[0]} of slot {slot} is not in the cache",
                remedy="positions of a slot ascend without gaps, and slack is at least the tokens of a chunk less one",
            )
        return self._keys[slot, cells].astype(np.float32), self._values[slot, cells].astype(np.float32)

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        """Makes the first n_tokens positions of dst_slot those of src_slot. DeviceError beyond the cache."""
        for slot in (src_slot, dst_slot):
            if not 0 <= slot < self.kv.n_slots:
                raise DeviceError(f"{self.kv.name}: slot {slot} of {self.kv.n_slots}")
        if not 0 <= n_tokens <= self.kv.n_ctx:
            raise DeviceError(f"{self.kv.name}: {n_tokens} tokens of a context of {self.kv.n_ctx}")
        if src_slot == dst_slot:
            return
        held = self._held[src_slot]
        self._keys[dst_slot] = self._keys[src_slot]
        self._values[dst_slot] = self._values[src_slot]
        self._held[dst_slot] = np.where(held < n_tokens, held, -1)
