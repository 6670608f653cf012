"""libhetrun_cpu.so by ctypes: loading, prototypes, and status codes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from hetrun.errors import AllocationError, DeviceError, HetrunError
from hetrun.native import first_problem
from hetrun.resources import load_library

ABI = 6
LIBRARY = "hetrun_cpu/_native/libhetrun_cpu.so"
ISA_NAMES = ("generic", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm", "avx512_bf16", "amx")


class Batch(ctypes.Structure):
    _fields_ = [
        ("tokens", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("n_tokens", ctypes.c_uint64),
        ("n_outputs", ctypes.c_uint64),
    ]


class Report(ctypes.Structure):
    _fields_ = [
        ("seconds", ctypes.c_double),
        ("detail", ctypes.c_uint64),
        ("step_s", ctypes.c_uint64),
    ]


class Weight(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("n_rows", ctypes.c_uint64),
        ("n_columns", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("packed", ctypes.c_uint64),
    ]


WEIGHT_OF_FILE = 1
"""Flag of a weight in a mapped file."""


class Spec(ctypes.Structure):
    _fields_ = [
        ("steps", ctypes.c_char_p),
        ("values", ctypes.c_char_p),
        ("weights", ctypes.POINTER(Weight)),
        ("ropes", ctypes.c_char_p),
        ("frequencies", ctypes.POINTER(ctypes.c_double)),
        ("states", ctypes.POINTER(ctypes.c_void_p)),
        ("n_steps", ctypes.c_uint32),
        ("n_values", ctypes.c_uint32),
        ("n_weights", ctypes.c_uint32),
        ("n_ropes", ctypes.c_uint32),
        ("n_frequencies", ctypes.c_uint32),
        ("n_states", ctypes.c_uint32),
        ("max_tokens", ctypes.c_uint64),
        ("max_outputs", ctypes.c_uint64),
        ("arena_bytes", ctypes.c_uint64),
    ]


@cache
def library() -> ctypes.CDLL:
    """The native library. HetrunError where it is not installed, DeviceError where it does not load or has another ABI.

    HETRUN_CPU_LIBRARY in the environment names another build of it.
    """
    u32, u64, i32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32
    pointer, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "hetrun_cpu_isa_mask": (u32, []),
        "hetrun_cpu_device_create": (i32, [u32, i32, out]),
        "hetrun_cpu_device_destroy": (None, [pointer]),
        "hetrun_cpu_state_create": (i32, [ctypes.POINTER(u64), out]),
        "hetrun_cpu_state_copy": (i32, [pointer, u64, u64, u64]),
        "hetrun_cpu_state_destroy": (None, [pointer]),
        "hetrun_cpu_pack_create": (i32, [pointer, ctypes.POINTER(Weight), u64, out]),
        "hetrun_cpu_pack_destroy": (None, [pointer]),
        "hetrun_cpu_program_create": (i32, [pointer, ctypes.POINTER(Spec), ctypes.POINTER(u64), out]),
        "hetrun_cpu_program_destroy": (None, [pointer]),
        "hetrun_cpu_run": (i32, [pointer, ctypes.POINTER(Batch), ctypes.POINTER(Report)]),
        "hetrun_cpu_quantize": (i32, [pointer, pointer, u64, pointer, pointer]),
    }
    return load_library(LIBRARY, "HETRUN_CPU_LIBRARY", "hetrun_cpu_abi", ABI, prototypes)


def isa_names() -> tuple[str, ...]:
    """Instruction sets that this machine and the library both have, slowest first."""
    mask = library().hetrun_cpu_isa_mask()
    return tuple(name for i, name in enumerate(ISA_NAMES) if mask >> i & 1)


def library_problem() -> HetrunError | None:
    """Why the library cannot be used, or None."""
    return first_problem(library)


_NO_MEMORY = 1
_REASONS = {
    2: "the system refused to start a thread",
    3: "this machine lacks the instruction set asked for",
    4: "step {detail} of the program contradicts itself",
    5: "more tokens or outputs than the segment was compiled for",
    6: "token {detail} of the batch has an id outside the vocabulary",
    7: "token {detail} of the batch has a position that is beyond the context or does not follow its slot's last one",
    8: "token {detail} of the batch has a slot that the KV cache does not have",
    9: "output {detail} of the batch does not name a later token than the one before",
    10: "token {detail} of the batch makes its chunk longer than the slack of the windowed KV cache",
    11: "an argument is out of range",
}


def check(status: int, subject: str, detail: int = 0) -> None:
    """Raises what a status of the library means: AllocationError or DeviceError."""
    if status == 0:
        return
    if status == _NO_MEMORY:
        raise AllocationError(f"{subject}: no memory left", remedy="use a shorter context or fewer sequences")
    raise DeviceError(f"{subject}: {_REASONS.get(status, f'status {status}').format(detail=detail)}")
