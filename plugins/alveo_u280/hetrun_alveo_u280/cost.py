"""What an op takes inside a run, worked out from the cycle model: what `estimate` says.

Readers run ahead of the lanes, across ops, so that what an op adds to a step depends on its neighbours. For each op two
times are simulated: `alone`, with memory that never makes it wait, and `streamed`, between ops like itself. A matrix of
few rows waits for HBM, less what its readers have fetched during the work between matrices; of that, a matrix is
credited its share of a layer's (the layer that a matrix of its size would belong to). So the ops of a step add up to
the step, within 5%. Not where one or two rows attend with many queries a KV head over long contexts and the weights are
wide: there the readers fetch weights meanwhile, which no op knows (11% too much for TinyLlama in Q8_0 behind 1,900
tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from hetrun.device import Batch, Cost, Segment
from hetrun.ops import (
    Add,
    Attention,
    Embedding,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    SelectRows,
    Workload,
)
from hetrun.resources import resource_path
from hetrun.toml_table import read_toml
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.instruction import Instruction
from hetrun_alveo_u280.timing import Design, Row, header_design, step_timing
from hetrun_alveo_u280.weights import format_of

_PROFILE = "hetrun/configs/devices/alveo-u280.toml"
_COPIES = 3  # of an instruction, one after the other: the last finds the engine as a run of such ops leaves it
_ENDLESS = 100  # Design.memory_factor of a memory that nobody waits for


@cache
def launch_cost() -> Cost:
    """One start of the kernel and the wait for it, as the profile alveo-u280 has it."""
    launch = read_toml(resource_path(_PROFILE))["launch_s"]
    return Cost(float(launch["value"]), str(launch["basis"]))


@cache
def idle_watts() -> float:
    """Of the board while others work, as the profile alveo-u280 has it."""
    return float(read_toml(resource_path(_PROFILE))["model"]["idle_watts"]["value"])


def op_seconds(op: Op, workload: Workload, design: Design | None = None) -> float:
    """Inside a run; the launch is apart. Rounding for the matrices that follow is its maker's: of a norm of whole rows,
    an attention, an activation.
    """
    return _seconds(_Priced(op.signature, workload, design or header_design(), op))


@dataclass(frozen=True)
class _Priced:
    """op: any of those with the signature."""

    signature: tuple[object, ...]
    workload: Workload
    design: Design
    op: Op = field(compare=False)


@lru_cache(maxsize=1024)
def _seconds(priced: _Priced) -> float:
    """Once for all layers, which are alike."""
    op, workload, design = priced.op, priced.workload, priced.design
    n_rows = workload.rows(op.output.rows)
    if n_rows == 0:
        return 0.0
    width, cycles = op.output.width, 0.0
    for rows, n_passes in _passes(n_rows, design):
        match op:
            case MatMul(weight=weight):
                number = format_of(weight.type)
                assert number is not None, f"{weight.name}: the engine does not read {weight.type}"
                cycles += n_passes * _matmul(number, *weight.shape, rows, design)
            case Embedding(weight=weight):
                number = format_of(weight.type)
                assert number is not None, f"{weight.name}: the engine does not read {weight.type}"
                numbers = (("format", number), ("n_rows", weight.shape[0]), ("n_columns", weight.shape[1]))
                cycles += n_passes * _copies("EMBED", numbers, rows, design)
            case RmsNorm(weight=weight) if weight.shape[0] == width:
                cycles += n_passes * (_norm(width, width, rows, design) + _round(width, rows, _shared(design)))
            case RmsNorm(weight=weight):
                cycles += n_passes * _norm(width, weight.shape[0], rows, design)
            case GatedActivation():  # while the results of a matrix come
                gated = _vector("GATE", width, rows, design) - _lanes(width, 3 * width // 8, rows, design)
                cycles += n_passes * (max(0, gated) + _round(width, rows, _shared(design)))
            case Rope():  # while the last matrix of a value is multiplied
                rotated = _rope(width, op.head_dim, len(op.frequencies), rows, design)
                cycles += n_passes * max(0, rotated - _lanes(width, width, rows, design))
            case Add():  # while the results of a matrix come
                pass
            case Attention():
                cycles += n_passes * _round(width, rows, _shared(design))
            case SelectRows():
                cycles += n_passes * _vector("SELECT", width, rows, design)
            case _:
                cycles += n_passes * _vector("SCALE", width, rows, design)
    if isinstance(op, Attention):
        own_queries = op.q_sink is not None
        cycles += _attention(op.n_heads, _without_name(op.kv), own_queries, _rows(workload), design)
    return cycles / design.clock_hz


def run_seconds(segment: Segment, batch: Batch, design: Design | None = None) -> float:
    """Of a segment's run on a batch, the launch apart: the sum of its ops'."""
    n_seqs = len(set(batch.slots)) or 1
    first = min(batch.positions, default=0)
    workload = Workload(batch.n_tokens, first, n_seqs, batch.n_outputs)
    return sum(op_seconds(op, workload, design) for op in segment.ops)


def _passes(n_rows: int, design: Design) -> list[tuple[int, int]]:
    """(rows of a pass, passes of so many)."""
    whole, rest = divmod(n_rows, design.pass_tokens)
    return [(rows, n) for rows, n in ((design.pass_tokens, whole), (rest, 1)) if rows and n]


def _rows(workload: Workload) -> tuple[Row, ...]:
    n_seqs = max(1, workload.n_seqs)
    of_each = max(1, workload.n_tokens // n_seqs)
    return tuple(Row(workload.n_past + i, slot) for slot in range(n_seqs) for i in range(of_each))


def _without_name(kv: KvSpec) -> KvSpec:
    return replace(kv, name="")


@cache
def _copies(op: str, numbers: tuple[tuple[str, float], ...], n_rows: int, design: Design, hbm: str | None = "w") -> int:
    """Cycles of an instruction among others like it."""
    program = [Instruction(op, (), dict(numbers), f"{hbm}{i}" if hbm else None) for i in range(_COPIES)]
    return step_timing(program, [Row(0) for _ in range(n_rows)], design).of_instruction[-1]


def _norm(n: int, group: int, n_rows: int, design: Design) -> int:
    return _copies("NORM", (("n", n), ("group", group)), n_rows, _shared(design), None)


def _rope(n: int, head_dim: int, n_pairs: int, n_rows: int, design: Design) -> int:
    numbers = (("n", n), ("group", head_dim), ("n_pairs", n_pairs))
    return _copies("ROPE", numbers, n_rows, _shared(design), None)


def _lanes(n_out: int, n_in: int, n_rows: int, design: Design) -> float:
    """Of a matrix in the lanes alone. Its format is not known here: between W2S24's and Q4_0's, twice as many."""
    numbers = (("format", definition().numbers["FORMAT_S4"]), ("n_rows", n_out), ("n_columns", max(1, n_in)))
    return 0.75 * _copies("MATMUL", numbers, n_rows, replace(_shared(design), memory_factor=_ENDLESS))


def _vector(op: str, n: int, n_rows: int, design: Design) -> int:
    return _copies(op, (("n", n),), n_rows, _shared(design), None)


@cache
def _round(n: int, n_rows: int, design: Design) -> int:
    """What lies between a value and the first results of matrices that read it: codes, and until the lanes are full.

    Those of a Q4_0 matrix; other formats differ by some cycles.
    """
    rows = [Row(0) for _ in range(n_rows)]
    number, n_out = definition().numbers["FORMAT_S4"], 16 * design.channels
    matrix = Instruction("MATMUL", (), {"format": number, "n_rows": n_out, "n_columns": n}, "w")
    program = [Instruction("QUANTIZE", (), {"n": n}), matrix] * _COPIES
    endless = replace(design, memory_factor=_ENDLESS)
    pair = sum(step_timing(program, rows, endless).of_instruction[-2:])
    numbers = (("format", number), ("n_rows", n_out), ("n_columns", n))
    return pair - _copies("MATMUL", numbers, n_rows, endless)


@cache
def _shared(design: Design) -> Design:
    """As far as the vector process knows it: designs of a sweep share what does not depend on readers and lanes."""
    header = header_design()
    return replace(
        header, clock_hz=design.clock_hz, vector_floats=design.vector_floats, stall_factor=design.stall_factor
    )


@cache
def _matmul(number: int, n_out: int, n_in: int, n_rows: int, design: Design) -> float:
    numbers = (("format", number), ("n_rows", n_out), ("n_columns", n_in))
    # Designs of a sweep share what has no part in it.
    of_matrix = replace(design, pass_tokens=n_rows, vector_floats=header_design().vector_floats)
    endless = replace(of_matrix, memory_factor=_ENDLESS, fifo_beats=header_design().fifo_beats)
    alone = _copies("MATMUL", numbers, n_rows, endless)
    streamed = _copies("MATMUL", numbers, 1, replace(of_matrix, pass_tokens=1))
    n_embd = min(n_out, n_in)
    share = n_out * n_in / (12 * n_embd * n_embd)
    credit = min(share * _between(n_embd, n_rows, _shared(design)), _ahead_cycles(design))
    return max(alone, streamed - credit)


_SHORT = 128  # cells of a context


@cache
def _between(n_embd: int, n_rows: int, design: Design) -> float:
    """Cycles of a layer in which no weights move. It has 12 n_embd^2 weights, its intermediate size is 8/3 n_embd."""
    n_ff = 8 * n_embd // 3
    rounded = 3 * _round(n_embd, n_rows, design) + _round(n_ff, n_rows, design)
    head_dim = min(128, n_embd)
    n_heads = max(1, n_embd // head_dim)
    kv = KvSpec("", 1, _SHORT + n_rows, max(1, n_heads // 4), head_dim, "kv4")
    attention = _attention(kv.n_heads_kv * 4, kv, False, tuple(Row(_SHORT + i) for i in range(n_rows)), design)
    return attention + rounded + 2 * _norm(n_embd, n_embd, n_rows, design)


def _ahead_cycles(design: Design) -> float:
    """That the readers of full FIFOs are ahead of lanes that wait for nothing else."""
    of_beat = definition().numbers["BEAT_BYTES"] / _CHANNEL_BYTES_PER_S * design.clock_hz / design.memory_factor
    return design.fifo_beats * max(1.0, of_beat)


_CHANNEL_BYTES_PER_S = 13.27e9  # measured: arXiv 2005.04324


@cache
def _attention(n_heads: int, kv: KvSpec, own_queries: bool, rows: Sequence[Row], design: Design) -> float:
    numbers = {
        "n_heads": n_heads,
        "n_heads_kv": kv.n_heads_kv,
        "head_dim": kv.head_dim,
        "n_slots": kv.n_slots,
        "n_cells": kv.n_cells,
        "n_ctx": kv.n_ctx,
        "sink": kv.sink,
        "window": kv.window,
        "d": 16 if own_queries else 0,
    }
    program = [Instruction("ATTEND", (), numbers, "kv") for _ in range(_COPIES)]

    def last(of: Design) -> int:
        return step_timing(program, rows, of).of_instruction[-1]

    streamed = last(design)
    if min(len(rows), design.pass_tokens) <= 2:
        return streamed
    # Matrices of more rows leave HBM the time to fill the FIFOs before each attention.
    n_passes = -(-len(rows) // design.pass_tokens)
    return max(last(replace(design, memory_factor=_ENDLESS)), streamed - n_passes * _ahead_cycles(design))
