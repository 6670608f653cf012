"""Times of the engine, by the cycle model of its design and of the card's HBM (kernels/alveo_u280/timing)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from typing import Any

from hetrun.resources import load_library
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.instruction import Instruction
from hetrun_alveo_u280.native import LIBRARY

BASIS = "simulated:alveo-u280 cycle model"
ABI = 1


class _Design(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32)
        for name in (
            "clock_hz", "channels", "lanes", "fifo_beats", "outstanding", "burst_beats", "pass_tokens", "vector_floats",
            "stall_factor", "memory_factor",
        )
    ]  # fmt: skip


class _Timing(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cycles", "weight_beats", "kv_beats", "memory_stalls", "vector_cycles", "n_passes")
    ]


class _Reads(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_uint32)
            for name in ("n_masters", "shift", "burst_bytes", "n_bursts", "outstanding", "port_clock_hz")
        ),
        ("stride", ctypes.c_uint64),
    ]


class _Rate(ctypes.Structure):
    _fields_ = [("bytes_per_s", ctypes.c_double), ("latency_s", ctypes.c_double)]


class _Accllm(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("pruned", "two_bit", "kv4", "packed", "n_past")]


@cache
def _library() -> ctypes.CDLL:
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    design, timing = ctypes.POINTER(_Design), ctypes.POINTER(_Timing)
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "hetrun_u280_header_design": (None, [design]),
        "hetrun_u280_step_timing": (ctypes.c_int32, [design, pointer, u32, pointer, u32, timing, pointer]),
        "hetrun_u280_timing_weight_beats": (u64, [design, u32, u64, u64]),
        "hetrun_u280_read_rate": (None, [ctypes.POINTER(_Reads), ctypes.POINTER(_Rate)]),
        "hetrun_u280_flightllm_token": (ctypes.c_double, [u32]),
        "hetrun_u280_accllm_token": (ctypes.c_double, [ctypes.POINTER(_Accllm)]),
    }
    return load_library(LIBRARY, "HETRUN_ALVEO_U280_LIBRARY", "hetrun_u280_timing_abi", ABI, prototypes)


@dataclass(frozen=True)
class Design:
    """What the cycle model needs to know of an engine.

    channels: pseudo-channels with a reader and lanes.   lanes: products of a channel a cycle.   fifo_beats: of 64
    bytes, that each reader holds.   outstanding: bursts that each has under way, of burst_beats.   pass_tokens: rows of
    a pass over the weights.   vector_floats: a cycle, of what is done with a row between the matrices.   stall_factor:
    how many times as long that takes as in the design (what HLS makes of it is not known).   memory_factor: how many
    times as fast as the card's the HBM is; 1 but for finding what waits for it.
    """

    clock_hz: int
    channels: int
    lanes: int
    fifo_beats: int
    outstanding: int
    burst_beats: int
    pass_tokens: int
    vector_floats: int
    stall_factor: int
    memory_factor: int

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Design:
        """The header's design, with the fields that `numbers` has."""
        return _with(tuple(int(numbers.get(name, 0)) for name in _FIELDS))

    def native(self) -> _Design:
        return _Design(*astuple(self))


_FIELDS = tuple(f.name for f in fields(Design))


@cache
def _with(numbers: tuple[int, ...]) -> Design:
    """The header's design with those of the numbers, in the order of the fields, that are not 0."""
    return replace(header_design(), **{name: n for name, n in zip(_FIELDS, numbers, strict=True) if n >= 1})


@cache
def header_design() -> Design:
    """The design that hls/engine.h describes."""
    found = _Design()
    _library().hetrun_u280_header_design(ctypes.byref(found))
    return Design(*(getattr(found, f.name) for f in fields(Design)))


@dataclass(frozen=True)
class Row:
    """A row of a step.   output: its number among those whose logits are wanted, or -1."""

    position: int
    slot: int = 0
    output: int = -1
    token: int = 0


@dataclass(frozen=True)
class StepTiming:
    """Cycles of the fabric for a step; the launch is apart.

    of_instruction: what each adds, from the end of the one before to its own.   weight_beats, kv_beats: read, all
    channels.   memory_stalls: lanes waited for beats, mean of the channels.   vector_cycles: work on rows between the
    matrices.
    """

    cycles: int
    of_instruction: tuple[int, ...]
    weight_beats: int
    kv_beats: int
    memory_stalls: int
    vector_cycles: int
    n_passes: int


def step_timing(program: Sequence[Instruction], rows: Sequence[Row], design: Design | None = None) -> StepTiming:
    """Of a program with its weights and KV one after the other in HBM. ValueError for what the engine would refuse."""
    design = design or header_design()
    data = _encoded(tuple(program), design)
    record = definition().records["Row"]
    table = b"".join(record.pack(vars(row)) for row in rows)
    cycles_of = (ctypes.c_uint64 * len(program))()
    found = _Timing()
    arguments = (ctypes.byref(design.native()), data, len(program), table, len(rows), ctypes.byref(found), cycles_of)
    if not _library().hetrun_u280_step_timing(*arguments):
        raise ValueError(f"a step of {len(program)} instructions and {len(rows)} rows that {design} does not take")
    return StepTiming(
        found.cycles,
        tuple(cycles_of),
        found.weight_beats,
        found.kv_beats,
        found.memory_stalls,
        found.vector_cycles,
        found.n_passes,
    )


_ALIGNMENT_BEATS = 64


def _encoded(program: tuple[Instruction, ...], design: Design) -> bytes:
    """With addresses: nothing is shared but what has one name."""
    places: dict[str, int] = {}
    free, data = 0, b""
    for instruction in program:
        numbers = instruction.numbers
        if instruction.hbm is not None and instruction.hbm not in places:
            places[instruction.hbm] = free
            beats = _kv_beats(numbers, design) if instruction.op == "ATTEND" else _weight_beats(numbers, design)
            free += -(-beats // _ALIGNMENT_BEATS) * _ALIGNMENT_BEATS
        data += instruction.encode(places.get(instruction.hbm or "", 0), 1 if instruction.ddr else 0)
    return data


def _weight_beats(numbers: Mapping[str, float], design: Design) -> int:
    n = (int(numbers[name]) for name in ("format", "n_rows", "n_columns"))
    return int(_library().hetrun_u280_timing_weight_beats(ctypes.byref(design.native()), *n))


def _kv_beats(numbers: Mapping[str, float], design: Design) -> int:
    """Of every channel (hls/engine.h, KV4)."""
    heads, cells, block = int(numbers["n_heads_kv"]), int(numbers["n_cells"]), definition().numbers["KV_BLOCK"]
    apart = max(1, design.channels // heads)
    regions, places = -(-heads * apart // design.channels), -(-cells // apart)
    block_beats = 4 + 2 * block * -(-int(numbers["head_dim"]) // 128)
    return int(numbers["n_slots"]) * regions * -(-places // block) * block_beats


@dataclass(frozen=True)
class Reads:
    """Masters that read HBM alike: master i reads pseudo-channel (i + shift) % 32, n_bursts of burst_bytes that are
    `stride` bytes apart, `outstanding` at a time.   port_clock_hz: of their ports, 64 bytes a clock.
    """

    n_masters: int = 32
    shift: int = 0
    burst_bytes: int = 512
    n_bursts: int = 4096
    outstanding: int = 8
    port_clock_hz: int = 250_000_000
    stride: int = 512


def read_rate(reads: Reads) -> tuple[float, float]:
    """(bytes a second of all masters, mean seconds of a burst)."""
    found = _Rate()
    _library().hetrun_u280_read_rate(ctypes.byref(_Reads(*astuple(reads))), ctypes.byref(found))
    return found.bytes_per_s, found.latency_s


def flightllm_seconds(n_past: int) -> float:
    """A decoded token of Llama-2-7B on FlightLLM's U280 engine (kernels/alveo_u280/timing/published.h)."""
    return float(_library().hetrun_u280_flightllm_token(n_past))


def accllm_seconds(
    n_past: int, pruned: bool = True, two_bit: bool = True, kv4: bool = True, packed: bool = True
) -> float:
    """The same on AccLLM's, with some of its measures."""
    measures = _Accllm(pruned, two_bit, kv4, packed, n_past)
    return float(_library().hetrun_u280_accllm_token(ctypes.byref(measures)))
