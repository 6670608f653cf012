"""Times of the engine, by the cycle-level model of its source and of the board's memory (kernels/pynq_z1/timing)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from functools import cache

from hetrun.device import Batch
from hetrun.ops import GatedActivation, MatMul
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.program import Fused, Launches, stream_bytes

BASIS = "simulated:pynq-z1 cycle model"

# simulated: llvm-mca cortex-a9 x 1.5, 7.3 ms for the 123,904 products silu(gate) * up of a token of TinyLlama.
HOST_ACTIVATION_S = 59e-9
HOST_BASIS = "simulated:llvm-mca cortex-a9 x 1.5"

# What explains the published design's time a token, which copies, too (benchmarks/pynq_z1.py); caches included.
COPY_BYTES_PER_S = 400e6
# analytic: registers and a wait from C; caches are in the rate of copies.
START_S = 25e-6
STREAMED_BASIS = "analytic:pynq-z1 cycle model, beside copies at 400 MB/s, an assumption"


@dataclass(frozen=True)
class Design:
    """What the cycle model needs to know of an engine and its board.

    fifo_words: 64-bit words that each read master holds.   outstanding: bursts that each has under way.   tokens: of a
    pass over the weights.   rows: of a tile, which are in flight.   ddr_permille: of the pins' rate that two ports
    sustain, 500 to 850; 750 is what UG585 section 22.3 gives.
    """

    clock_hz: int
    lanes: int
    ports: int
    fifo_words: int
    outstanding: int
    burst_words: int
    tokens: int
    rows: int
    ddr_permille: int

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Design:
        """The header's design, with the fields that `numbers` has."""
        known = {f.name: int(numbers[f.name]) for f in fields(cls) if numbers.get(f.name, 0) >= 1}
        return replace(header_design(), **known)

    def native(self) -> native.Design:
        return native.Design(*astuple(self))


@cache
def header_design() -> Design:
    """The design that hls/engine.h describes."""
    found = native.Design()
    native.library().hetrun_pynq_header_design(ctypes.byref(found))
    return Design(*(getattr(found, f.name) for f in fields(Design)))


@cache
def matmul_cycles(
    format_number: int, n_rows: int, n_columns: int, n_tokens: int, design: Design | None = None, mode: str = "WRITE"
) -> native.Timing:
    """Cycles of the fabric for one matmul, from an idle engine on, all its descriptors.

    mode: what becomes of the results, by the names of HETRUN_PYNQ_MODE_*.
    """
    timing = native.Timing()
    native.library().hetrun_pynq_design_timing(
        ctypes.byref((design or header_design()).native()),
        format_number,
        n_rows,
        n_columns,
        n_tokens,
        definition().numbers[f"MODE_{mode}"],
        ctypes.byref(timing),
    )
    return timing


def matmul_seconds(op: MatMul, n_tokens: int, design: Design | None = None, mode: str = "WRITE") -> float:
    """Time in the fabric; starting the engine is apart."""
    design = design or header_design()
    number = definition().formats[op.weight.type.name]
    # One pass is the same for every size of passes: designs of a sweep share it.
    key = replace(design, tokens=n_tokens) if n_tokens <= design.tokens else design
    return float(matmul_cycles(number, *op.weight.shape, n_tokens, key, mode).cycles) / design.clock_hz


def activation_seconds(op: GatedActivation, n_tokens: int) -> float:
    """Time of an activation that is left to the host."""
    return HOST_ACTIVATION_S * n_tokens * op.output.width


def fused_seconds(fused: Fused, n_tokens: int, design: Design) -> dict[str, float]:
    """What gate, up and activation take by name where the engine joins them: each matmul what it takes at most alone,
    and the activation what is left of both, codes of the last rows above all, which are worked out when no weights are
    read any more. Gates are not written, codes are a quarter of the floats: narrow matmuls of many tokens gain by that.
    The activation counts no more than on the host, which it would for some eight rows.
    """
    gate, up = fused.gate, fused.up
    took = {op.name: matmul_seconds(op, n_tokens, design, fused.mode(op)) for op in (gate, up)}
    matmuls = {op.name: min(took[op.name], matmul_seconds(op, n_tokens, design)) for op in (gate, up)}
    beside = max(0.0, sum(took.values()) - sum(matmuls.values()))
    return {**matmuls, fused.op.name: min(beside, activation_seconds(fused.op, n_tokens))}


def launches_seconds(launches: Launches, batch: Batch) -> float:
    """Time of a run as it is: what the engine takes, and activations that are left to the host."""
    rows = {op.name: batch.rows(op.output.rows) for op in (*launches.matmuls, *(op for _, op in launches.hosted))}
    seconds = sum(matmul_seconds(op, rows[op.name], mode=launches.mode(op)) for op in launches.matmuls if rows[op.name])
    return seconds + sum(activation_seconds(op, rows[op.name]) for _, op in launches.hosted)


def streamed_seconds(op: MatMul, n_tokens: int, staging_bytes: int, design: Design) -> float:
    """Time of a matmul whose weight passes through a staging area: a piece is copied while the engine reads the one
    before. Each piece after the first is a start of its own.
    """
    rows, columns = op.weight.shape
    number, slab = definition().formats[op.weight.type.name], definition().numbers["MAX_ROWS"]
    most = int(native.library().hetrun_pynq_staged_rows(number, columns, staging_bytes))
    if n_tokens == 0 or rows == 0 or most == 0:
        return 0.0
    slabs = [min(slab, rows - first) for first in range(0, rows, slab)]
    pieces = [min(most, n - first) for n in slabs for first in range(0, n, most)]
    row_bytes = stream_bytes(op.weight) / rows
    key = replace(design, tokens=n_tokens) if n_tokens <= design.tokens else design
    seconds = pieces[0] * row_bytes / COPY_BYTES_PER_S
    for n, following in zip(pieces, [*pieces[1:], 0], strict=True):
        engine_s = float(matmul_cycles(number, n, columns, n_tokens, key).cycles) / design.clock_hz
        seconds += max(engine_s, following * row_bytes / COPY_BYTES_PER_S)
    return seconds + (len(pieces) - 1) * START_S


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
