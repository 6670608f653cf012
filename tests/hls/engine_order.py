"""The engine's arithmetic in NumPy, from its specification: codes by the gguf package, sums in the defined order."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SUPER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
TYPES = (*SUPER, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def random_blocks(rng: np.random.Generator, name: str, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """GGUF rows with any codes and scales; only the halves are kept finite and of a usual size."""
    elements, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows * columns // elements, nbytes), dtype=np.uint8)
    for offset in halves(name):
        values = (rng.uniform(-0.02, 0.02, len(blocks))).astype("<f2")
        values[0] = np.float16(3e-7)  # a subnormal half
        blocks[:, offset : offset + 2] = values.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def halves(name: str) -> tuple[int, ...]:
    """Where d and, of types that have it, the minimum stand in a block."""
    return {
        "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
        "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    }[name]  # fmt: skip


def quantised(x: Floats, block: int, padded: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """int8 codes [tokens, padded] and scales [tokens, padded / block], in float32 arithmetic."""
    x = np.pad(x, ((0, 0), (0, padded - x.shape[1]))).reshape(len(x), -1, block)
    largest = np.abs(x).max(axis=2)
    finite = np.isfinite(x).all(axis=2)
    usable = finite & (largest >= np.float32(1e-35))
    with np.errstate(all="ignore"):
        inverse = np.where(usable, np.float32(127) / largest, np.float32(0)).astype(np.float32)
        codes = np.where(usable[..., None], np.rint(x * inverse[..., None]), 0).astype(np.int64)
    unusable = np.where(finite, np.float32(0), np.float32(np.nan))
    return codes.reshape(len(x), -1), np.where(usable, largest / np.float32(127), unusable).astype(np.float32)


def multiply(name: str, blocks: npt.NDArray[np.uint8], x: Floats) -> Floats:
    """y [tokens, rows] as the engine defines it."""
    return Matrix(name, blocks).multiply(x)


class Matrix:
    """A weight whose blocks are taken apart once.

    The integers come from the gguf package's floats: with d and m set to one (or zero), what it dequantises is
    scale * code (or minimum), an integer. d, m [blocks, rows]; codes, minima [blocks, columns of a block, rows].
    """

    def __init__(self, name: str, blocks: npt.NDArray[np.uint8]) -> None:
        self.name = name
        self.elements, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        self.columns = blocks.shape[1] // nbytes * self.elements
        blocks = blocks.reshape(len(blocks), -1, nbytes)
        with_d, with_m = halves(name)[0], halves(name)[1:]
        self.d = _half(blocks, with_d)
        self.codes = _dequantised(name, blocks, {with_d: 1.0, **{offset: 0.0 for offset in with_m}})
        self.m = _half(blocks, with_m[0]) if with_m else None
        if with_m:
            minima = _dequantised(name, blocks, {with_d: 0.0, with_m[0]: 1.0})
            self.minima = minima[:, ::16] * np.int16(-1 if name in SUPER else 1)  # one for sixteen columns
            assert np.array_equal(np.repeat(minima[:, ::16], 16, axis=1), minima)

    def multiply(self, x: Floats) -> Floats:
        """y [tokens, rows] as the engine defines it."""
        name, elements, count = self.name, self.elements, len(self.d)
        padded = self.columns if name in SUPER else -(-self.columns // 64) * 64
        codes, scales = quantised(x, elements, padded)
        codes = codes[:, : self.columns].reshape(len(x), count, elements).swapaxes(0, 1)
        xd = scales.T[:count, :, None]
        terms = flushed(flushed(self.d[:, None] * xd) * _products(codes, self.codes))
        if self.m is not None:
            sums = codes.reshape(count, len(x), -1, 16).sum(axis=3)
            least = flushed(flushed(self.m[:, None] * xd) * _products(sums, self.minima))
        n_sums = 1 if name in SUPER else 2
        parts: list[Floats] = []
        for b in range(count):
            part = b % n_sums
            if b < n_sums:
                parts.append(terms[b])
            else:
                parts[part] = flushed(parts[part] + terms[b])
            if self.m is not None:
                parts[part] = flushed(parts[part] - least[b] if name in SUPER else parts[part] + least[b])
        return parts[0] if n_sums == 1 else flushed(parts[0] + (parts[1] if count > 1 else np.float32(0)))


def _products(x: npt.NDArray[np.int64], weights: npt.NDArray[np.int16]) -> Floats:
    """x [blocks, tokens, n] times weights [blocks, n, rows], rounded once: the sums are exact in their type."""
    bound = 127 * 16 * int(np.abs(weights).max(initial=0)) * weights.shape[1]
    exact = np.float32 if bound < 1 << 24 else np.float64
    return np.matmul(x.astype(exact), weights.astype(exact)).astype(np.float32) + np.float32(0)  # no zero is negative


# 2^(-i / 256), 24 bits below the point.
POWERS = np.rint(np.exp2(24 - np.arange(256) / 256)).astype(np.int64)


def exp_of_minus(x: Floats) -> Floats:
    """exp(-x) for x >= 0 by the integers that kernels/fabric/activation.h defines; zero from 2^-125 on, and for NaN."""
    z = flushed((x * np.float32(np.log2(np.e))).astype(np.float32))
    small = z < 125  # False for NaN
    # Any power of two below 125 times 2^23 is exact in float64, and the fraction is cut off.
    fixed = np.floor(np.where(small, z, 0).astype(np.float64) * 2**23).astype(np.int64)
    whole, power = fixed >> 23, POWERS[fixed >> 15 & 255]
    w = (fixed & 0x7FFF) * 45426 >> 14
    less = w - ((w >> 2) ** 2 >> 22)
    mantissa = power - (power * less >> 25)
    return np.where(small, np.ldexp(mantissa.astype(np.float64), -24 - whole), 0).astype(np.float32)


def silu_times(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up as the engine defines it."""
    with np.errstate(invalid="ignore", over="ignore"):
        t = exp_of_minus(np.abs(gate))
        dividend = np.where(np.signbit(gate), flushed(gate * t), gate)
        return flushed(flushed(dividend / (np.float32(1) + t)) * up)


def flushed(x: Floats) -> Floats:
    """Subnormal results become zero."""
    subnormal = np.abs(x) < np.finfo(np.float32).tiny
    return np.where(subnormal, np.copysign(np.float32(0), x), x) if subnormal.any() else x


def _half(blocks: npt.NDArray[np.uint8], offset: int) -> Floats:
    return blocks[:, :, offset : offset + 2].copy().view("<f2")[..., 0].astype(np.float32).T.copy()


def _dequantised(name: str, blocks: npt.NDArray[np.uint8], set_to: dict[int, float]) -> npt.NDArray[np.int16]:
    changed = blocks.copy()
    for offset, value in set_to.items():
        changed[:, :, offset : offset + 2] = np.array([value], "<f2").view(np.uint8)
    rows, count, nbytes = changed.shape
    values = gguf.quants.dequantize(changed.reshape(rows, count * nbytes), gguf.GGMLQuantizationType[name])
    integers = np.rint(values).astype(np.int16)
    assert np.array_equal(integers, values)
    return integers.reshape(rows, count, -1).transpose(1, 2, 0).copy()
