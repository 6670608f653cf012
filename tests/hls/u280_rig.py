"""Programs for the U280 engine, written by hand, over memories of this process."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetrun.resources import load_library
from hetrun.tensor import ENCODED_TYPES, TENSOR_TYPES

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "kernels/alveo_u280/hls/engine.h"
LIBRARY = "hetrun_alveo_u280/_native/libhetrun_alveo_u280.so"

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_WORDS = (
    "op", "rows", "flags", "format", "a", "b", "c", "dst", "n", "n_rows", "n_columns", "group", "hbm", "ddr", "stride",
    "n_pairs", "f0", "n_heads", "n_heads_kv", "head_dim", "n_slots", "n_cells", "n_ctx", "sink", "window", "d",
    "max_position", "next_rows", "next_format",
)  # fmt: skip
INSTRUCTION = np.dtype([(name, "<f4" if name == "f0" else "<u4") for name in _WORDS] + [("reserved", "<u4", 3)])
REPORT = np.dtype(
    [(n, "<u4") for n in ("version", "status", "instruction", "n_passes")]
    + [(n, "<u8") for n in ("cycles", "weight_beats", "kv_beats", "stall_cycles")]
    + [("reserved", "<u4", 4)]
)


@cache
def numbers() -> dict[str, int]:
    found = re.findall(r"^#define HETRUN_U280_(\w+) (\d+)", HEADER.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}


@cache
def library() -> ctypes.CDLL:
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    prototypes = {
        "hetrun_u280_channel_beats": (u64, [u32, u64, u64]),
        "hetrun_u280_format": (u32, [u32]),
        "hetrun_u280_pack": (None, [u32, u64, u64, pointer, u32, pointer]),
        "hetrun_u280_kv_beats": (u64, [u32] * 4),
        "hetrun_u280_card_create": (pointer, [pointer, u64, pointer, u64, u32]),
        "hetrun_u280_card_destroy": (None, [pointer]),
        "hetrun_u280_card_run": (None, [pointer, pointer]),
    }
    return load_library(LIBRARY, "HETRUN_ALVEO_U280_LIBRARY", "hetrun_u280_abi", 1, prototypes)


def type_number(name: str) -> int:
    return (TENSOR_TYPES.get(name) or ENCODED_TYPES[name]).id


def aligned(n_bytes: int) -> Bytes:
    raw = np.zeros(n_bytes + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + n_bytes]


@dataclass(frozen=True)
class Packed:
    """A weight in the HBM: what an instruction says of it."""

    format: int
    n_rows: int
    n_columns: int
    hbm: int


class Card:
    """Memories that fill from their beginning, and the engine over them."""

    def __init__(self, channel_beats: int = 1 << 14, ddr_beats: int = 1 << 14, threads: int = 1) -> None:
        self.channels = [aligned(64 * channel_beats) for _ in range(32)]
        self.ddr = aligned(64 * ddr_beats)
        self.hbm_used, self.ddr_used = 0, 2  # the Report is at beat 1
        pointers = (ctypes.c_void_p * 32)(*[c.ctypes.data for c in self.channels])
        self._card = library().hetrun_u280_card_create(
            pointers, 64 * channel_beats, self.ddr.ctypes.data, 64 * ddr_beats, threads
        )
        assert self._card

    def close(self) -> None:
        library().hetrun_u280_card_destroy(self._card)

    def __enter__(self) -> Card:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put_weight(self, name: str, rows: Bytes, n_columns: int) -> Packed:
        number, blocks = type_number(name), np.ascontiguousarray(rows)
        beats = library().hetrun_u280_channel_beats(number, len(rows), n_columns)
        assert beats
        first = self.take_hbm(beats)
        for c, channel in enumerate(self.channels):
            target = channel[64 * first :].ctypes.data
            library().hetrun_u280_pack(number, len(rows), n_columns, blocks.ctypes.data, c, target)
        return Packed(library().hetrun_u280_format(number), len(rows), n_columns, first)

    def take_hbm(self, beats: int) -> int:
        first = self.hbm_used
        self.hbm_used += beats
        assert 64 * self.hbm_used <= len(self.channels[0])
        return first

    def take_ddr(self, n_bytes: int) -> int:
        first = self.ddr_used
        self.ddr_used += -(-n_bytes // 64)
        assert 64 * self.ddr_used <= len(self.ddr)
        return first

    def put_ddr(self, x: npt.NDArray[np.generic]) -> int:
        """Beat of DDR at which the array now is."""
        data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        first = self.take_ddr(len(data))
        self.ddr[64 * first : 64 * first + len(data)] = data
        return first

    def floats(self, beat: int, rows: int, stride: int, n: int) -> Floats:
        return self.ddr[64 * beat :][: 4 * rows * stride].view("<f4").reshape(rows, stride)[:, :n].copy()

    def run(
        self,
        program: Sequence[npt.NDArray[np.void]],
        rows: Sequence[tuple[int, int, int, int]],
        version: int | None = None,
    ) -> np.void:
        """rows: (token, position, slot, output) of each. An END is added."""
        words = np.concatenate([*program, instruction("END")])
        used = self.ddr_used
        at, table = self.put_ddr(words), self.put_ddr(np.array(rows, "<i4").reshape(-1, 4))
        one = rows[0] if len(rows) == 1 else (-7, -7, -7, -7)
        scalars = dict(zip(("TOKEN", "POSITION", "SLOT", "OUTPUT"), one, strict=True))
        if version is not None:
            scalars["VERSION"] = version
        self.ddr_used = used
        return self.launch(PROGRAM=at, ROWS=table, N_TOKENS=len(rows), **scalars)

    def launch(self, **scalars: int) -> np.void:
        """The Report at beat 1."""
        args = np.zeros(numbers()["ARGS"], np.int32)
        for name, value in {"VERSION": numbers()["VERSION"], "REPORT": 1, **scalars}.items():
            args[numbers()[f"ARG_{name}"]] = value
        library().hetrun_u280_card_run(self._card, args.ctypes.data)
        return self.ddr[64:128].copy().view(REPORT)[0]


def instruction(op: str, weight: Packed | None = None, **fields: float) -> npt.NDArray[np.void]:
    made = np.zeros(1, INSTRUCTION)
    made["op"] = numbers()[f"OP_{op}"]
    if weight is not None:
        fields |= {name: getattr(weight, name) for name in ("format", "n_rows", "n_columns", "hbm")}
    for name, value in fields.items():
        made[name] = value
    return made


def status(report: np.void) -> str:
    by_number = {value: name[7:] for name, value in numbers().items() if name.startswith("STATUS_")}
    return by_number[int(report["status"])]


def tokens(n: int, slot: int = 0, first: int = 0) -> list[tuple[int, int, int, int]]:
    """n rows of one sequence, the last of which is an output."""
    return [(0, first + i, slot, 0 if i == n - 1 else -1) for i in range(n)]


def random_floats(rng: np.random.Generator, *shape: int) -> Floats:
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3, (shape[0], 1))
    return (x * np.exp2(rng.integers(-6, 3, shape))).astype(np.float32)


def same(x: Floats, expected: Floats) -> bool:
    """The same bits; any NaN is as good as another."""
    nan = np.isnan(expected)
    return bool(
        np.array_equal(np.isnan(x), nan) and np.array_equal(x[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    )
