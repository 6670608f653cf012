"""Chooses the next token. The work over the vocabulary is native (`kernels/core/sample.cpp`): in Python it would
cost more than a small model's whole step."""

from __future__ import annotations

import ctypes
import math
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from hetrun.errors import DeviceError, UsageError
from hetrun.resources import resource_path


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults take the most likely one.

    temperature: 0 for the most likely token.   top_k: keep the k most likely (0: all).   top_p: keep the most likely
    that together reach p.   min_p: keep those at least min_p times as likely as the first.   repeat_penalty: divide the
    logits of the last `repeat_last_n` tokens by it.   seed: None for a random one. Filters apply in the order
    penalty, top-k, top-p, min-p, temperature.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 1 << 30),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 0.01, 100.0),
            ("repeat_last_n", 0, 1 << 20),
            ("seed", -(1 << 63), (1 << 64) - 1),
        ):
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                option = name.replace("_", "-")
                raise UsageError(f"{option} must be from {low} to {high}, not {value}", remedy=f"change --{option}")


class _CSampling(ctypes.Structure):
    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repeat_penalty", ctypes.c_float),
        ("top_k", ctypes.c_int32),
    )


class Sampler:
    """Draws tokens one after another; equal settings, seed and logits give equal tokens.

    seed: the one in use, random where the settings name none.
    """

    def __init__(self, settings: Sampling, prompt: Iterable[int] = ()) -> None:
        self.seed = _random_seed() if settings.seed is None else settings.seed
        self._settings = _CSampling(
            settings.temperature, settings.top_p, settings.min_p, settings.repeat_penalty, settings.top_k
        )
        self._recent: deque[int] = deque(prompt, maxlen=settings.repeat_last_n)
        self._state = ctypes.c_uint64(self.seed & 0xFFFFFFFFFFFFFFFF)
        self._sample = _native_sample()

    @property
    def takes_best(self) -> bool:
        """Whether the most likely token is taken, and nothing drawn."""
        return not self._settings.temperature > 0

    def choose(self, logits: memoryview[float]) -> int:
        """The next token from logits, float32 [n_vocab], writable memory. DeviceError where none of them is a
        number.
        """
        token = self.draw(logits)
        self.keep(token)
        return token

    def keep(self, token: int) -> None:
        """Counts a token as chosen."""
        self._recent.append(token)

    def draw(self, logits: memoryview[float]) -> int:
        """As `choose`, but the token is not counted yet."""
        recent = (ctypes.c_int32 * len(self._recent))(*self._recent)
        token = self._sample(
            ctypes.addressof(ctypes.c_float.from_buffer(logits)),
            len(logits),
            ctypes.byref(self._settings),
            recent,
            len(self._recent),
            ctypes.byref(self._state),
        )
        if token < 0:
            raise DeviceError(
                "every logit is NaN", remedy='the model file or a device is faulty: "hetrun devices" checks each'
            )
        return int(token)


def masked(
    logits: memoryview[float], mask: ctypes.Array[ctypes.c_uint32], n_bits: int, out: ctypes.Array[ctypes.c_float]
) -> memoryview[float]:
    """The logits of the tokens whose bit is set, and NaN, which no sampler chooses, for all others.

    logits: float32 [n_vocab], writable memory.   mask: the lowest bit of each word first.   n_bits: tokens beyond them
    are refused.   out: [n_vocab] of memory, which the result is a view of.
    """
    address = ctypes.addressof(ctypes.c_float.from_buffer(logits))
    _native_mask()(address, len(logits), ctypes.addressof(mask), n_bits, ctypes.addressof(out))
    return memoryview(out).cast("B").cast("f")


@cache
def _native_mask() -> ctypes._NamedFuncPointer:
    function = _library().hetrun_core_mask
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    return function


@cache
def _native_sample() -> ctypes._NamedFuncPointer:
    function = _library().hetrun_core_sample
    function.restype = ctypes.c_int32
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(_CSampling), ctypes.POINTER(ctypes.c_int32), ctypes.c_int32,
        ctypes.POINTER(ctypes.c_uint64),
    )  # fmt: skip
    return function


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(resource_path("hetrun/_native/libhetrun_core.so")))


def _random_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")
