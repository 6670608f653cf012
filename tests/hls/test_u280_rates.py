"""The cycle model is of the source: what its loops take, counted as they run, is what the model says.

HETRUN_FABRIC_COUNT counts the iterations of every pipelined loop, times its interval. Depths of pipelines, and the ways
between memories and processes, are the model's alone: differences of two cases have none of them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import builds
import u280_order
import u280_rig
from u280_rig import Card, instruction, status

from hetrun_alveo_u280.instruction import Instruction, Place
from hetrun_alveo_u280.timing import Row, StepTiming, header_design, step_timing

HERE, ENGINE = Path(__file__).parent, builds.KERNELS / "alveo_u280"
FAST_MEMORY = replace(header_design(), memory_factor=100)


@dataclass(frozen=True)
class Counted:
    """Cycles of the vector process's loops, and of a channel's lanes."""

    vector: int
    lanes: int


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """Processes side by side, each with its count."""
    flags = ("-DHETRUN_FABRIC_BOUNDED", "-DHETRUN_FABRIC_COUNT", '-DHETRUN_U280_FAST="../host/fast.h"')
    target = tmp_path_factory.mktemp("counting") / "counting.so"
    builds.compiled(target, [ENGINE / "host/pack.cpp", HERE / "u280_linked.cpp"], *flags)
    with pytest.MonkeyPatch.context() as patch:
        u280_rig.library.cache_clear()
        patch.setenv("HETRUN_ALVEO_U280_LIBRARY", str(target))
        yield u280_rig.library()
    u280_rig.library.cache_clear()


Numbers = Mapping[str, int]
WEIGHTS = {"W2S24": 0, "W2": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 4, "Q6_K": 5}  # and the numbers of their formats


def counted(
    library: ctypes.CDLL, op: str, numbers: Numbers, rows: int, position: int = 0, weight: str | None = None
) -> Counted:
    library.hetrun_u280_counted.restype = ctypes.c_uint64
    table = [(0, position if op == "ATTEND" else i, i if op == "ATTEND" else 0, i) for i in range(rows)]
    with Card(1 << 15, 1 << 15) as card:
        place = {"ddr": card.take_ddr(1 << 18)} if op in ("LOAD", "STORE", "NORM", "BIAS", "ROPE") else {}
        program, packed = [instruction(op, **numbers, **place)], None
        if weight is not None:
            shape = numbers["n_rows"], numbers["n_columns"]
            packed = card.put_weight(weight, u280_order.random_rows(np.random.default_rng(1), weight, *shape), shape[1])
            more = {k: v for k, v in numbers.items() if k not in ("n_rows", "n_columns")}
            program = [instruction("QUANTIZE", a=0, n=shape[1]), instruction(op, packed, **more)]
        assert status(card.run(program, table)) == "OK"
    return Counted(library.hetrun_u280_counted(0), library.hetrun_u280_counted(1))


def modelled(op: str, numbers: Numbers, rows: int, position: int = 0, weight: str | None = None) -> StepTiming:
    table = [
        Row(position=position if op == "ATTEND" else i, slot=i if op == "ATTEND" else 0, output=i) for i in range(rows)
    ]
    if weight is not None:
        fields = {**numbers, "format": WEIGHTS[weight]}
        ops = [Instruction("QUANTIZE", (), {"n": numbers["n_columns"]}), Instruction(op, (), fields, "w")]
        return step_timing(ops, table, FAST_MEMORY)
    place = (Place.VALUE, "x") if op in ("LOAD", "STORE", "NORM", "BIAS", "ROPE") else None
    return step_timing([Instruction(op, (), numbers, "kv" if op == "ATTEND" else None, place)], table, FAST_MEMORY)


WIDE: dict[str, dict[str, int]] = {
    "LOAD": {"stride": 8192}, "STORE": {"stride": 8192}, "NORM": {"group": 0, "dst": 8192}, "QUANTIZE": {},
    "BIAS": {}, "ADD": {"b": 8192}, "SCALE": {}, "GATE": {"b": 8192}, "SELECT": {},
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("op", WIDE)
def test_ops_of_rows_take_what_the_model_says(counting: ctypes.CDLL, op: str, rows: int) -> None:
    def of(n: int) -> dict[str, int]:
        return {**WIDE[op], "n": n, **({"group": n} if op == "NORM" else {})}

    counts = [counted(counting, op, of(n), rows).vector for n in (2048, 6144)]
    model = [modelled(op, of(n), rows).vector_cycles for n in (2048, 6144)]
    assert counts[1] - counts[0] == model[1] - model[0] > 0


@pytest.mark.parametrize(
    ("group", "n_pairs", "flags"), [(128, 64, 1), (64, 32, 1), (128, 64, 0), (256, 128, 1), (128, 32, 1)]
)
def test_rotations_take_what_the_model_says(counting: ctypes.CDLL, group: int, n_pairs: int, flags: int) -> None:
    def of(heads: int) -> dict[str, int]:
        n = group * heads
        return {"n": n, "group": group, "n_pairs": n_pairs, "flags": flags, "stride": 256, "max_position": 9}

    counts = [counted(counting, "ROPE", of(heads), 3).vector for heads in (2, 10)]
    model = [modelled("ROPE", of(heads), 3).vector_cycles for heads in (2, 10)]
    assert counts[1] - counts[0] == model[1] - model[0] > 0


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_matmuls_take_what_the_model_says(counting: ctypes.CDLL, name: str, rows: int) -> None:
    """Lanes: no iteration between the blocks of rows but for beats."""
    counts, model = [], []
    for n_rows in (1024, 3072):
        shape = {"n_rows": n_rows, "n_columns": 2304, "dst": 4096}
        counts.append(counted(counting, "MATMUL", shape, rows, weight=name).lanes)
        model.append(modelled("MATMUL", shape, rows, weight=name).cycles)
    assert counts[1] - counts[0] == model[1] - model[0] > 0


HEADS = {"llama": (32, 32, 128), "grouped": (32, 8, 128), "few": (9, 3, 64), "wide": (8, 4, 256)}


def attention(heads: tuple[int, int, int], rows: int, n_cells: int = 2048) -> dict[str, int]:
    n, kv, size = heads
    where = {"a": 0, "d": 0, "b": 8192, "c": 16384, "dst": 24576}
    return {
        **where,
        "n_heads": n,
        "n_heads_kv": kv,
        "head_dim": size,
        "n_slots": rows,
        "n_cells": n_cells,
        "n_ctx": n_cells,
    }


# Two shapes whose loops are as many, and whose cells lie in as many channels.
PAIRS = {
    "longer": ((32, 32, 64), (32, 32, 128)),
    "longer-grouped": ((32, 8, 64), (32, 8, 128)),
    "longer-few": ((9, 3, 64), (9, 3, 128)),
    "longer-groups": ((40, 40, 64), (40, 40, 128)),
    "more-queries": ((16, 8, 128), (32, 8, 128)),
    "more-of-few": ((4, 2, 256), (12, 2, 256)),
}


# Heads twice as long are rotated by one loop more.
FLAGS_OF_PAIRS = [(pair, flags) for pair in PAIRS for flags in (0, 2) if not (flags and pair.startswith("longer"))]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("pair", "flags"), FLAGS_OF_PAIRS)
def test_the_vector_process_s_part_of_attention_takes_what_the_model_says(
    counting: ctypes.CDLL, pair: str, rows: int, flags: int
) -> None:
    counts, model = [], []
    for heads in PAIRS[pair]:
        shape = {**attention(heads, rows, 256), "flags": flags}
        counts.append(counted(counting, "ATTEND", shape, rows, 200).vector)
        model.append(modelled("ATTEND", shape, rows, 200).vector_cycles)
    assert counts[1] - counts[0] == model[1] - model[0] > 0
    assert 0 < model[0] - counts[0] < 600 + (400 + 200 * flags) * rows  # depths


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("heads", HEADS)
def test_attention_in_the_lanes_takes_what_the_model_says(counting: ctypes.CDLL, heads: str, rows: int) -> None:
    shape = attention(HEADS[heads], rows)
    counts = [counted(counting, "ATTEND", shape, rows, p).lanes for p in (1023, 2047)]
    model = [modelled("ATTEND", shape, rows, p).cycles for p in (1023, 2047)]
    assert counts[1] - counts[0] == pytest.approx(model[1] - model[0], rel=0.02)
