"""The U280 engine's arithmetic in NumPy, from hls/engine.h and the heads of vector.h, quantize.h and attend.h."""

from __future__ import annotations

from dataclasses import dataclass, field

import gguf
import numpy as np
import numpy.typing as npt
from engine_order import exp_of_minus, flushed, silu_times

from hetrun.testing.encoded import decoded_row, levels_of_beat

__all__ = ["KvCache", "Weight", "activations", "levels_of_beat", "matmul", "norm", "rope", "silu_times"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

GGUF_TYPES = ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q8_0", "Q6_K")
TYPES = ("W2S24", "W2", *GGUF_TYPES)
BLOCKS = {"W2S24": (64, 16), "W2": (64, 18)}  # columns and bytes
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (208,)}
_STEPS = 32767


def block_of(name: str) -> tuple[int, int]:
    return BLOCKS.get(name) or gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


def random_rows(rng: np.random.Generator, name: str, rows: int, columns: int) -> Bytes:
    """Rows as a file has them: any codes, usual scales."""
    elements, nbytes = block_of(name)
    blocks = rng.integers(0, 256, (rows, columns // elements, nbytes), dtype=np.uint8)
    for at in HALVES.get(name, ()):
        halves = rng.uniform(-0.02, 0.02, blocks.shape[:2]).astype("<f2")
        blocks[:, :, at : at + 2] = halves.view(np.uint8).reshape(*blocks.shape[:2], 2)
    out = blocks.reshape(rows, -1)
    if name in BLOCKS:
        scales = rng.uniform(1e-6, 1e-5, (rows, 1)).astype("<f4")
        out = np.concatenate([out, scales.view(np.uint8).reshape(rows, 4)], axis=1)
    return np.ascontiguousarray(out)


@dataclass(frozen=True)
class Weight:
    """value = row scale * integer.   integers: [rows, columns].   scales: [rows] float32."""

    integers: Integers
    scales: Floats

    @classmethod
    def of(cls, name: str, rows: Bytes) -> Weight:
        if name in BLOCKS:
            scales = rows[:, -4:].copy().view("<f4")[:, 0]
            ones = rows.copy()
            ones[:, -4:] = np.array([1.0], "<f4").view(np.uint8)
            return cls(np.array([decoded_row(name, bytes(row)) for row in ones]).astype(np.int64), scales)
        elements, nbytes = block_of(name)
        blocks = rows.reshape(len(rows), -1, nbytes)
        per = {"Q4_K": 32, "Q6_K": 16}.get(name, elements)  # columns of a scale
        scale = _half(blocks, HALVES[name][0])[..., None] * _factors(name, blocks, per)
        products = _dequantised(name, blocks, [1.0, 0.0]).reshape(*blocks.shape[:2], -1, per)
        factors = _factors(name, blocks, per)[..., None]
        codes = np.where(factors != 0, products / np.where(factors == 0, 1, factors), 0)
        least = np.zeros_like(scale)
        if len(HALVES[name]) > 1:
            minima = _dequantised(name, blocks, [0.0, 1.0]).reshape(*blocks.shape[:2], -1, per)[..., 0]
            least = _half(blocks, HALVES[name][1])[..., None] * minima
        largest = np.maximum(np.abs(scale).max(axis=(1, 2)), np.abs(least).max(axis=(1, 2)))
        step = (largest / _STEPS).astype(np.float32)
        by = np.where(step > 0, step, 1).astype(np.float64)[:, None, None]
        whole, below = (np.clip(np.rint(v / by), -_STEPS, _STEPS) * (step > 0)[:, None, None] for v in (scale, least))
        integers = whole[..., None] * codes + below[..., None]
        return cls(integers.reshape(len(rows), -1).astype(np.int64), step)

    @property
    def values(self) -> Floats:
        return flushed(self.integers.astype(np.float32) * self.scales[:, None])


def _half(blocks: Bytes, at: int) -> npt.NDArray[np.float64]:
    return blocks[:, :, at : at + 2].copy().view("<f2")[..., 0].astype(np.float64)


def _dequantised(name: str, blocks: Bytes, halves: list[float]) -> npt.NDArray[np.float64]:
    changed = blocks.copy()
    for at, value in zip(HALVES[name], halves, strict=False):
        changed[:, :, at : at + 2] = np.array([value], "<f2").view(np.uint8)
    kind = gguf.GGMLQuantizationType[name]
    return (
        gguf.quants.dequantize(changed.reshape(len(changed), -1), kind)
        .astype(np.float64)
        .reshape(*blocks.shape[:2], -1)
    )


def _factors(name: str, blocks: Bytes, per: int) -> npt.NDArray[np.float64]:
    """Integers that multiply a block's d: those of K-quants, else ones.   [rows, blocks, scales of a block]."""
    if name == "Q4_K":
        ones = blocks.copy()
        ones[:, :, 16:] = 0x11  # all codes 1
        return _dequantised(name, ones, [1.0, 0.0])[..., ::per]
    if name == "Q6_K":
        return blocks[:, :, 192:208].view(np.int8).astype(np.float64)
    return np.ones((*blocks.shape[:2], 1))


def activations(x: Floats) -> tuple[Integers, Floats]:
    """Codes times 2^exponent [rows, columns], and scales [rows]."""
    rows, n = x.shape
    blocks = np.pad(x, ((0, 0), (0, -n % 32))).reshape(rows, -1, 32)
    with np.errstate(all="ignore"):
        of_block = np.abs(blocks).max(axis=2)
        largest = of_block.max(axis=1)
        usable = np.isfinite(largest) & (largest >= np.float32(2.0**-110))
        scale = np.where(usable, largest / np.float32(127 * 128), 0).astype(np.float32)
        step = np.float32(127) * scale
        above = of_block[..., None] > step[:, None, None] * np.exp2(np.arange(7)).astype(np.float32)
        exponent = above.sum(axis=2)
        inverse = np.where(usable, np.float32(1) / scale, 0).astype(np.float32)
        scaled = inverse[:, None] * np.exp2(-exponent.astype(np.float32))
        codes = np.where(usable[:, None, None], np.rint(blocks * scaled[..., None]), 0).astype(np.int64)
    assert np.abs(codes).max(initial=0) <= 127
    shifted = codes << np.where(usable[:, None], exponent, 0)[..., None]
    not_a_number = ~np.isfinite(largest)
    return shifted.reshape(rows, -1)[:, :n], np.where(not_a_number, np.float32(np.nan), scale).astype(np.float32)


def matmul(weight: Weight, x: Floats) -> Floats:
    """y [tokens, rows]."""
    codes, scales = activations(x)
    with np.errstate(all="ignore"):
        return flushed(flushed((codes @ weight.integers.T).astype(np.float32) * weight.scales) * scales[:, None])


def _halved(x: Floats) -> Floats:
    """Rows whose halves are added until one number is left."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = flushed(x[:, :half] + x[:, half:])
    return x[:, 0]


def norm(x: Floats, weights: Floats, eps: float, group: int) -> Floats:
    out = np.empty_like(x)
    with np.errstate(all="ignore"):
        for first in range(0, x.shape[1], group):
            part = x[:, first : first + group]
            sums = np.zeros((len(x), 16), np.float32)
            squares = np.pad(flushed(part * part), ((0, 0), (0, -group % 64)))
            for k in range(0, group, 64):
                at = k // 64 % 16
                sums[:, at] = flushed(sums[:, at] + _halved(squares[:, k : k + 64]))
            mean = flushed(_halved(sums) / np.float32(group))
            factor = flushed(np.float32(1) / np.sqrt(flushed(mean + np.float32(eps))))
            out[:, first : first + group] = flushed(flushed(part * factor[:, None]) * weights)
    return out


def rope(x: Floats, cos: Floats, sin: Floats, group: int, half: bool) -> Floats:
    """cos, sin: [rows, pairs]."""
    n = cos.shape[1]
    pairs = np.arange(n)
    first, second = (pairs, pairs + n) if half else (2 * pairs, 2 * pairs + 1)
    heads = x.reshape(len(x), -1, group)
    out = heads.copy()
    a, b = heads[..., first], heads[..., second]
    c, s = cos[:, None], sin[:, None]
    out[..., first] = flushed(flushed(a * c) - flushed(b * s))
    out[..., second] = flushed(flushed(a * s) + flushed(b * c))
    return out.reshape(x.shape)


def hadamard(x: Floats) -> Floats:
    """Rows of a power of two, in Sylvester's order, one butterfly after the other."""
    n, apart = x.shape[-1], 1
    while apart < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * apart), 2, apart)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = flushed(np.stack([a + b, a - b], axis=-2).reshape(x.shape))
        apart *= 2
    return flushed(x * np.float32(1 / np.sqrt(n)))


def _query(x: Floats) -> tuple[Floats, np.float32]:
    """int8 codes and their scale."""
    most = np.abs(x).max()
    if not np.isfinite(most) or most < np.float32(1e-35):
        return np.zeros_like(x), np.float32(0 if np.isfinite(most) else np.nan)
    return np.rint(x * (np.float32(127) / most)), most / np.float32(127)


def _tree(parts: Floats) -> np.float32:
    while len(parts) > 1:
        half = len(parts) // 2
        parts = flushed(parts[:half] + parts[half:])
    return parts[0]


@dataclass
class KvCache:
    """Keys and values as the engine keeps them: codes, and a float16 scale and minimum, by slot, position and head."""

    n_heads_kv: int
    head_dim: int
    sink: int = 0
    window: int = 0
    n_cells: int = 0
    n_ctx: int = 0
    rotated: bool = False
    cells: dict[tuple[int, int], tuple[npt.NDArray[np.float64], Floats, Floats]] = field(default_factory=dict)

    def write(self, slot: int, position: int, k: Floats, v: Floats) -> None:
        x = np.stack([k, v]).reshape(2, self.n_heads_kv, self.head_dim)
        with np.errstate(all="ignore"):
            x = hadamard(x) if self.rotated else x
            least, greatest = x.min(axis=2), x.max(axis=2)
            scale = ((greatest - least) / np.float32(15)).astype(np.float16).astype(np.float32)
            minimum = (least + np.float32(0)).astype(np.float16).astype(np.float32)  # never the zero below zero
            inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
            steps = (x - minimum[..., None]) * inverse[..., None]
            codes = np.floor(np.clip(steps, 0, 15) + np.float32(0.5))
            bad = ~(np.isfinite(x).all(axis=2) & np.isfinite(scale) & np.isfinite(minimum))
        nan = np.float32(np.nan)
        codes = np.where(bad[..., None], 0, codes)
        self.cells[slot, position] = codes, np.where(bad, nan, scale), np.where(bad, nan, minimum)

    def attend(self, slot: int, position: int, q: Floats, factor: float, q_sink: Floats | None = None) -> Floats:
        """q, q_sink: [n_heads * head_dim]. Returns the same shape."""
        both = np.stack([q, q if q_sink is None else q_sink]).reshape(2, -1, self.head_dim)
        with np.errstate(all="ignore"):
            heads = (hadamard(both) if self.rotated else both).swapaxes(0, 1)
            per = len(heads) // self.n_heads_kv
            out = np.stack([self._head(slot, position, x, h // per, factor) for h, x in enumerate(heads)])
            return (hadamard(out) if self.rotated else out).reshape(-1)

    def _cell(self, position: int) -> int:
        if self.n_cells == self.n_ctx or position < self.sink:
            return position
        return self.sink + (position - self.sink) % (self.n_cells - self.sink)

    def _head(self, slot: int, position: int, queries: Floats, head: int, factor: float) -> Floats:
        """queries: the head's [2, head_dim]; the second meets sinks."""
        x = queries[0]
        coded = [_query(each) for each in queries]
        visible = [j for j in range(position + 1) if not self.window or j < self.sink or j > position - self.window]
        stripes = max(1, 32 // self.n_heads_kv)
        by_stripe = [[j for j in visible if self._cell(j) % stripes == s] for s in range(stripes)]
        codes, scales, minima = (
            [np.array([self.cells[slot, j][i][:, head] for j in own], np.float32) for own in by_stripe]
            for i in range(3)
        )
        scores, total, least, weights, nan = [], np.float32(0), np.float32(0), [], np.full_like(x, np.nan)
        for own, k, s, m in zip(by_stripe, codes, scales, minima, strict=True):
            if own:
                of_set = []
                for query, scale in coded:
                    dot = flushed(s[:, 0] * (k[:, 0] @ query).astype(np.float32))
                    offset = flushed(m[:, 0] * np.float32(query.sum()))
                    of_set.append(flushed(flushed(np.float32(factor) * scale) * flushed(dot + offset)))
                scores.append(np.where(np.array(own) < self.sink, of_set[1], of_set[0]))
            else:
                scores.append(np.zeros(0, np.float32))
        largest = np.concatenate(scores).max()
        if not np.isfinite(largest):
            return nan
        for own, mine, s, m in zip(by_stripe, scores, scales, minima, strict=True):
            if not own:
                weights.append(mine)
                continue
            p = exp_of_minus(np.abs(flushed(largest - mine)))  # zeros may be below zero
            weights.append(flushed(p * s[:, 1]))
            total = flushed(total + self._summed(p))
            least = flushed(least + self._summed(flushed(p * m[:, 1])))
        top = np.concatenate(weights).max()
        if not np.isfinite(top):
            return nan
        inverse = np.float32(4095) / top if top >= np.float32(2.0**-100) else np.float32(0)
        acc = np.zeros(len(x), np.int64)
        for own, w, v in zip(by_stripe, weights, codes, strict=True):
            if own:
                acc += np.rint(flushed(w * inverse)).astype(np.int64) @ v[:, 1].astype(np.int64)
        step = flushed(top / np.float32(4095))
        return flushed(flushed(flushed(acc.astype(np.float32) * step) + least) * flushed(np.float32(1) / total))

    @staticmethod
    def _summed(x: Floats) -> np.float32:
        parts = np.zeros(8, np.float32)
        for i, value in enumerate(x):
            parts[i % 8] = flushed(parts[i % 8 : i % 8 + 1] + value)[0]
        # ((0+4)+(2+6)) + ((1+5)+(3+7)): halves are added until one is left
        return _tree(parts)
