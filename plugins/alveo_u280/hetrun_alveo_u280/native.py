"""libhetrun_alveo_u280.so by ctypes: packing of weights, and the engine compiled for this machine."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from hetrun.errors import HetrunError
from hetrun.native import first_problem
from hetrun.resources import load_library
from hetrun_alveo_u280.definition import definition

ABI = 1
LIBRARY = "hetrun_alveo_u280/_native/libhetrun_alveo_u280.so"

NO_FORMAT = 0xFFFFFFFF


@cache
def library() -> ctypes.CDLL:
    """The native library. HetrunError where it is not installed, DeviceError where it does not load or has another ABI.

    HETRUN_ALVEO_U280_LIBRARY in the environment names another build of it.
    """
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "hetrun_u280_channel_beats": (u64, [u32, u64, u64]),
        "hetrun_u280_format": (u32, [u32]),
        "hetrun_u280_pack": (None, [u32, u64, u64, pointer, u32, pointer]),
        "hetrun_u280_kv_beats": (u64, [u32, u32, u32, u32]),
        "hetrun_u280_card_create": (pointer, [ctypes.POINTER(pointer), u64, pointer, u64, u32]),
        "hetrun_u280_card_destroy": (None, [pointer]),
        "hetrun_u280_card_run": (None, [pointer, ctypes.POINTER(ctypes.c_int32)]),
    }
    return load_library(LIBRARY, "HETRUN_ALVEO_U280_LIBRARY", "hetrun_u280_abi", ABI, prototypes)


def library_problem() -> HetrunError | None:
    """Why the library, or the header that it was made from, cannot be used, or None."""
    return first_problem(library, definition)
