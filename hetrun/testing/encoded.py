"""Our own encodings by the letter of docs/compression.md, in plain Python integers: the oracle of fast decoders."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import combinations

GROUP = 64


def decoded_row(type_name: str, row: bytes) -> list[float]:
    """The values of one row, exact: an integer times the row's float32.   row: whole groups, then four bytes."""
    scale = struct.unpack("<f", row[-4:])[0]
    decode, size = {"W2S24": (_w2s24, 16), "W2": (_w2, 18)}[type_name]
    levels: list[int] = []
    for start in range(0, len(row) - 4, size):
        levels += decode(int.from_bytes(row[start : start + size], "little"))
    return [level * scale for level in levels]


def levels_of_beat(beat: bytes) -> list[list[int]]:
    """A 64-byte beat of four groups of W2S24: the integers (scale times level) of four rows by 64 columns."""
    return [list(_w2s24(int.from_bytes(beat[i : i + 16], "little"))) for i in range(0, 64, 16)]


def _w2s24(group: int) -> Iterator[int]:
    """128 bits: 16 patterns of 3, 32 values of 2, scale of 14, zero point of 2, from the lowest bit on."""
    scale, zero = group >> 112 & 0x3FFF, group >> 126
    pairs = list(combinations(range(4), 2))
    values = iter([group >> (48 + 2 * k) & 3 for k in range(32)])
    for four in range(16):
        pattern = group >> (3 * four) & 7
        two = [next(values), next(values)]
        for position in range(4):
            kept = pattern < 6 and position in pairs[pattern]
            yield scale * (two[pairs[pattern].index(position)] - zero) if kept else 0


def _w2(group: int) -> Iterator[int]:
    """144 bits: 64 values of 2, scale of 14, zero point of 2."""
    scale, zero = group >> 128 & 0x3FFF, group >> 142
    for k in range(64):
        yield scale * ((group >> (2 * k) & 3) - zero)
