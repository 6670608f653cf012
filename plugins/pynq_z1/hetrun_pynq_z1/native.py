"""libhetrun_pynq_z1.so by ctypes: packing, launches, and the engine compiled for this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from hetrun.errors import HetrunError
from hetrun.native import first_problem
from hetrun.resources import load_library

ABI = 5
LIBRARY = "hetrun_pynq_z1/_native/libhetrun_pynq_z1.so"

READ = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
WRITE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
CACHE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)


class Seam(ctypes.Structure):
    """How a launch reaches a board: functions for registers and caches, what they are given, and the file descriptor
    of the engine's interrupt (-1: the launch polls).
    """

    _fields_ = [
        ("context", ctypes.c_void_p),
        ("read", READ),
        ("write", WRITE),
        ("flush", CACHE),
        ("invalidate", CACHE),
        ("interrupt", ctypes.c_int32),
    ]


class Window(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("address", ctypes.c_uint32), ("nbytes", ctypes.c_uint32)]


class Matmul(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_uint32),
        ("n_rows", ctypes.c_uint32),
        ("n_columns", ctypes.c_uint32),
        ("input", ctypes.c_uint32),
        ("weights", ctypes.c_uint32),
        ("out", ctypes.c_uint32),
        ("out_width", ctypes.c_uint32),
        ("first_row", ctypes.c_uint32),
        ("rows_are_outputs", ctypes.c_uint32),
        ("wave", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
    ]


class Input(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("address", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("rows_are_outputs", ctypes.c_uint32),
    ]


class Gated(ctypes.Structure):
    """An activation that the host works out."""

    _fields_ = [
        ("gate", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("gate_address", ctypes.c_uint32),
        ("up_address", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("rows_are_outputs", ctypes.c_uint32),
        ("wave", ctypes.c_uint32),
    ]


class Streamed(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint32), ("nbytes", ctypes.c_uint32), ("stream", ctypes.c_void_p)]


class Staging(ctypes.Structure):
    _fields_ = [("area", Window), ("weights", ctypes.POINTER(Streamed)), ("n_weights", ctypes.c_uint32)]


class Arrays:
    """What a segment's launches are told: the same for every run."""

    def __init__(
        self,
        matmuls: Sequence[Matmul],
        inputs: Sequence[Input],
        gated: Sequence[Gated],
        streamed: Sequence[Streamed] = (),
    ) -> None:
        self._matmuls = (Matmul * max(1, len(matmuls)))(*matmuls)
        self._inputs = (Input * max(1, len(inputs)))(*inputs)
        self._gated = (Gated * max(1, len(gated)))(*gated)
        self._streamed = (Streamed * len(streamed))(*streamed)
        self._counts = len(matmuls), len(inputs), len(gated)

    def staging(self, area: Window) -> Staging:
        return Staging(area, self._streamed, len(self._streamed))

    @property
    def arguments(self) -> tuple[object, ...]:
        """Of hetrun_pynq_run: each array and its length."""
        n_matmuls, n_inputs, n_gated = self._counts
        return self._matmuls, n_matmuls, self._inputs, n_inputs, self._gated, n_gated

    def window_bytes(self, max_rows: int) -> int:
        """Bytes of a window that serves runs of up to so many rows."""
        return int(library().hetrun_pynq_window_bytes(*self.arguments[:4], max_rows))


class Report(ctypes.Structure):
    _fields_ = [
        ("busy_cycles", ctypes.c_uint64),
        ("stall_cycles", ctypes.c_uint64),
        ("n_descriptors", ctypes.c_uint64),
        ("n_launches", ctypes.c_uint64),
        ("copied_bytes", ctypes.c_uint64),
        ("status", ctypes.c_uint32),
    ]


class Timing(ctypes.Structure):
    """Of a matmul, by the timing model."""

    _fields_ = [
        ("cycles", ctypes.c_uint64),
        ("busy_cycles", ctypes.c_uint64),
        ("memory_stalls", ctypes.c_uint64),
        ("lane_stalls", ctypes.c_uint64),
        ("n_descriptors", ctypes.c_uint64),
    ]


class Design(ctypes.Structure):
    """Parameters of a timing."""

    _fields_ = [
        ("clock_hz", ctypes.c_uint32),
        ("lanes", ctypes.c_uint32),
        ("ports", ctypes.c_uint32),
        ("fifo_words", ctypes.c_uint32),
        ("outstanding", ctypes.c_uint32),
        ("burst_words", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("rows", ctypes.c_uint32),
        ("ddr_permille", ctypes.c_uint32),
    ]


class SecdaTiming(ctypes.Structure):
    """Of a matmul, by the model of the published design."""

    _fields_ = [
        ("tile_rows", ctypes.c_uint64),
        ("n_tiles", ctypes.c_uint64),
        ("compute_cycles", ctypes.c_uint64),
        ("input_words", ctypes.c_uint64),
        ("weight_words", ctypes.c_uint64),
        ("copy_s", ctypes.c_double),
        ("dma_s", ctypes.c_double),
        ("compute_s", ctypes.c_double),
        ("call_s", ctypes.c_double),
    ]


OK, NO_ROOM, TIMEOUT, ENGINE_ERROR, NO_INTERRUPT = range(5)


@cache
def library() -> ctypes.CDLL:
    """The native library. HetrunError where it is not installed, DeviceError where it does not load or has another ABI.

    HETRUN_PYNQ_Z1_LIBRARY in the environment names another build of it.
    """
    u32, u64, i32, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_void_p
    matmuls, inputs, gated = ctypes.POINTER(Matmul), ctypes.POINTER(Input), ctypes.POINTER(Gated)
    seam, window, staging = ctypes.POINTER(Seam), ctypes.POINTER(Window), ctypes.POINTER(Staging)
    report = ctypes.POINTER(Report)
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "hetrun_pynq_stream_bytes": (u64, [u32, u64, u64]),
        "hetrun_pynq_pack": (None, [u32, u64, u64, pointer, pointer]),
        "hetrun_pynq_quantize": (None, [pointer, u64, u64, u32, pointer, pointer]),
        "hetrun_pynq_window_bytes": (u64, [matmuls, u32, inputs, u32, u32]),
        "hetrun_pynq_run": (
            i32,
            [seam, window, matmuls, u32, inputs, u32, gated, u32, u32, u32, staging, ctypes.c_double, report],
        ),
        "hetrun_pynq_staged_rows": (u32, [u32, u32, u32]),
        "hetrun_pynq_copy_uncached": (i32, [pointer, pointer, u64]),
        "hetrun_pynq_mmio_read": (u32, [pointer, u32]),
        "hetrun_pynq_mmio_write": (None, [pointer, u32, u32]),
        "hetrun_pynq_matmul_timing": (None, [u32, u32, u32, u32, ctypes.POINTER(Timing)]),
        "hetrun_pynq_header_design": (None, [ctypes.POINTER(Design)]),
        "hetrun_pynq_design_timing": (None, [ctypes.POINTER(Design), u32, u32, u32, u32, u32, ctypes.POINTER(Timing)]),
        "hetrun_pynq_secda_matmul": (None, [u32, u32, u32, u32, u32, u32, ctypes.POINTER(SecdaTiming)]),
        "hetrun_pynq_csim_create": (pointer, [pointer, u64]),
        "hetrun_pynq_csim_threads": (None, [pointer, u32]),
        "hetrun_pynq_csim_destroy": (None, [pointer]),
        "hetrun_pynq_csim_read": (u32, [pointer, u32]),
        "hetrun_pynq_csim_write": (None, [pointer, u32, u32]),
        "hetrun_pynq_csim_cache": (None, [pointer, u32, u32]),
    }
    return load_library(LIBRARY, "HETRUN_PYNQ_Z1_LIBRARY", "hetrun_pynq_abi", ABI, prototypes)


def library_problem() -> HetrunError | None:
    """Why the library cannot be used, or None."""
    return first_problem(library)
