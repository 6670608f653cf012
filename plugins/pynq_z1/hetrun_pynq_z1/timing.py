"""Times of the engine, by the cycle-level model of its source and of the board's memory (kernels/pynq_z1/timing)."""

from __future__ import annotations

import ctypes
from functools import cache

from hetrun.ops import MatMul
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.definition import definition

BASIS = "simulated:pynq-z1 cycle model"


@cache
def matmul_cycles(format_number: int, n_rows: int, n_columns: int, n_tokens: int) -> native.Timing:
    """Cycles of the fabric for one matmul, from an idle engine on, all its descriptors."""
    timing = native.Timing()
    native.library().hetrun_pynq_matmul_timing(format_number, n_rows, n_columns, n_tokens, ctypes.byref(timing))
    return timing


def matmul_seconds(op: MatMul, n_tokens: int) -> float:
    """Time in the fabric; starting the engine is apart."""
    known = definition()
    timing = matmul_cycles(known.formats[op.weight.type.name], *op.weight.shape, n_tokens)
    return float(timing.cycles) / known.numbers["CLOCK_HZ"]


@cache
def secda_matmul(
    n_rows: int, n_blocks: int, n_tokens: int, block_words: int, copied: bool, clock_hz: int
) -> native.SecdaTiming:
    """A matmul on the published design (SECDA-LLM).

    n_blocks: super-blocks of a row.   block_words: 32-bit words of one.   copied: weights lie beyond the CMA window.
    """
    timing = native.SecdaTiming()
    native.library().hetrun_pynq_secda_matmul(
        n_rows, n_blocks, n_tokens, block_words, copied, clock_hz, ctypes.byref(timing)
    )
    return timing
