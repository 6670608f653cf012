"""Launches of the U280 engine: what it reports, and what it refuses without touching anything."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import u280_order
from u280_order import Weight, random_rows
from u280_rig import Card, instruction, numbers, random_floats, same, status, tokens

BLOCKS = random_rows(np.random.default_rng(1), "Q4_0", 70, 64)


def weight_of(card: Card):  # type: ignore[no-untyped-def]
    return card.put_weight("Q4_0", BLOCKS, 64)


GOOD: dict[str, dict[str, float]] = {
    "LOAD": {"dst": 0, "n": 64, "ddr": 8, "stride": 64},
    "STORE": {"a": 0, "n": 64, "ddr": 8, "stride": 64},
    "NORM": {"a": 0, "dst": 64, "n": 64, "group": 32, "ddr": 8},
    "QUANTIZE": {"a": 0, "n": 64},
    "BIAS": {"a": 0, "dst": 0, "n": 64, "ddr": 8},
    "ADD": {"a": 0, "b": 64, "dst": 128, "n": 64},
    "SCALE": {"a": 0, "dst": 0, "n": 64, "f0": 2.0},
    "GATE": {"a": 0, "b": 64, "dst": 128, "n": 64},
    "ROPE": {"a": 0, "dst": 0, "n": 64, "group": 32, "n_pairs": 16, "ddr": 8, "stride": 32, "max_position": 1 << 20},
    "ATTEND": {
        "a": 0, "b": 128, "c": 192, "dst": 256, "f0": 1.0, "n_heads": 4, "n_heads_kv": 2, "head_dim": 32, "n_slots": 2,
        "n_cells": 24, "n_ctx": 100, "sink": 2, "window": 12, "hbm": 1000,
    },
    "SELECT": {"a": 0, "dst": 0, "n": 64},
    "EMBED": {"dst": 0},
    "MATMUL": {"dst": 256},
}  # fmt: skip
WEIGHTED = ("EMBED", "MATMUL")
BIG = (1 << 32) - 16

BAD = [
    *[(op, {name: value}) for op, name in (
        ("LOAD", "dst"), ("STORE", "a"), ("NORM", "a"), ("NORM", "dst"), ("QUANTIZE", "a"), ("BIAS", "a"),
        ("BIAS", "dst"), ("ADD", "a"), ("ADD", "b"), ("ADD", "dst"), ("SCALE", "dst"), ("GATE", "b"), ("ROPE", "a"),
        ("ROPE", "dst"), ("ATTEND", "a"), ("ATTEND", "b"), ("ATTEND", "c"), ("ATTEND", "d"), ("ATTEND", "dst"),
        ("SELECT", "a"),
        ("SELECT", "dst"), ("EMBED", "dst"), ("MATMUL", "dst"),
    ) for value in (65536 - 16, 8, 48, BIG)],
    *[(op, {"n": value}) for value in (65552, BIG, (1 << 32) - 1) for op in (
        "LOAD", "STORE", "NORM", "QUANTIZE", "BIAS", "ADD", "SCALE", "GATE", "ROPE", "SELECT")],
    *[(op, {"ddr": value}) for op in ("LOAD", "STORE", "NORM", "BIAS", "MATMUL") for value in (1 << 14, BIG)],
    ("QUANTIZE", {"n": 0}), ("QUANTIZE", {"n": 16385}),
    ("NORM", {"group": 0}), ("NORM", {"group": 48}), ("NORM", {"n": 63, "group": 21}),
    ("NORM", {"n": 65536, "group": 65536, "dst": 0}),
    ("LOAD", {"stride": 63}), ("STORE", {"stride": 0}), ("LOAD", {"stride": BIG}),
    ("ROPE", {"group": 0}), ("ROPE", {"group": 48}), ("ROPE", {"n_pairs": 0}), ("ROPE", {"n_pairs": 17}),
    ("ATTEND", {"head_dim": 0}), ("ATTEND", {"head_dim": 258}), ("ATTEND", {"head_dim": 31}),
    ("ATTEND", {"head_dim": 34, "flags": 2}), ("ATTEND", {"n_heads": 0}), ("ATTEND", {"n_heads": 3}),
    ("ATTEND", {"n_heads": 34}), ("ATTEND", {"n_heads": 130}),
    ("ATTEND", {"n_heads_kv": 0}), ("ATTEND", {"n_heads_kv": 8}),
    ("ATTEND", {"n_slots": 0}),
    ("ATTEND", {"n_slots": BIG}), ("ATTEND", {"n_cells": 0}), ("ATTEND", {"n_cells": 8193, "n_ctx": 9000}),
    ("ATTEND", {"n_heads": 100, "n_heads_kv": 20, "head_dim": 2, "n_cells": 7000, "n_ctx": 7000, "n_slots": 1}),
    ("ATTEND", {"n_ctx": 23}), ("ATTEND", {"n_ctx": BIG}), ("ATTEND", {"window": 0}), ("ATTEND", {"window": 23}),
    ("ATTEND", {"window": BIG}), ("ATTEND", {"sink": 24}), ("ATTEND", {"sink": BIG}), ("ATTEND", {"hbm": BIG}),
    ("ATTEND", {"hbm": 1 << 14}),
    *[(op, fields) for op in WEIGHTED for fields in (
        {"n_rows": 0}, {"n_rows": BIG}, {"n_columns": 0}, {"n_columns": 16385}, {"n_columns": BIG}, {"hbm": 1 << 14},
        {"hbm": BIG})],
    ("MATMUL", {"n_columns": 32}), ("MATMUL", {"ddr": 8, "stride": 69}), ("MATMUL", {"flags": 12}),
    *[("MATMUL", {"flags": flag, "b": b}) for flag in (4, 8) for b in (65536 - 16, 8, BIG)],
    *[("MATMUL", {"flags": flag, "ddr": 8, "stride": 70}) for flag in (4, 8)],
]  # fmt: skip


def made(card: Card, op: str, **fields: float) -> np.ndarray:
    given = instruction(op, weight_of(card) if op in WEIGHTED else None, **GOOD[op])
    for name, value in fields.items():
        given[name] = value
    return given


def before(op: str) -> list[np.ndarray]:
    return [instruction("QUANTIZE", a=0, n=64)] if op == "MATMUL" else []


@pytest.mark.parametrize("op", GOOD)
def test_the_instructions_that_the_others_spoil_are_good(op: str) -> None:
    with Card() as card:
        assert status(card.run([*before(op), made(card, op)], tokens(3))) == "OK"


@pytest.mark.parametrize(
    ("op", "fields"), BAD, ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items())
)
def test_what_the_engine_cannot_do_is_refused_and_harms_nothing(op: str, fields: dict[str, float]) -> None:
    with Card() as card:
        program = [*before(op), made(card, op, **fields), instruction("STORE", a=0, n=64, ddr=40, stride=64)]
        held = [channel.copy() for channel in card.channels]
        report = card.run(program, tokens(3))
        assert status(report) == "BAD_SHAPE"
        assert report["instruction"] == len(before(op)) and report["n_passes"] == 0
        assert all(np.array_equal(a, b) for a, b in zip(held, card.channels, strict=True))
        assert not card.ddr[40 * 64 : 60 * 64].any()  # the STORE behind it did not run


def test_ops_formats_tokens_and_positions_that_there_are_not() -> None:
    with Card() as card:
        n_ops, n_formats = numbers()["OPS"], numbers()["FORMATS"]
        for op in (n_ops, 0xFFFFFFFF):
            bad = instruction("END")
            bad["op"] = op
            assert status(card.run([bad], tokens(1))) == "BAD_OP"
        for op in GOOD:
            bad = made(card, op)
            bad["rows"] = 2
            assert status(card.run([*before(op), bad], tokens(1))) == "BAD_OP", op
        for op in ("EMBED", "ROPE", "ATTEND"):
            assert status(card.run([made(card, op, rows=1)], tokens(1))) == "BAD_OP", op
        for op in WEIGHTED:
            assert status(card.run([*before(op), made(card, op, format=n_formats)], tokens(1))) == "BAD_FORMAT"
        for token in (-1, 70, 1 << 30):
            assert status(card.run([made(card, "EMBED")], [(token, 0, 0, -1)])) == "BAD_TOKEN"
            assert status(card.run([made(card, "EMBED")], [(0, 0, 0, -1), (token, 1, 0, -1)])) == "BAD_TOKEN"
        for position in (-1, 100, 1 << 30):
            assert status(card.run([made(card, "ATTEND")], [(0, position, 0, -1)])) == "BAD_POSITION"
        for slot in (-1, 2):
            assert status(card.run([made(card, "ATTEND")], [(0, 0, slot, -1)])) == "BAD_POSITION"
        assert status(card.run([made(card, "ATTEND")], [(0, 3, 0, -1), (0, 3, 0, -1)])) == "BAD_POSITION"
        for position in (-1, 1 << 30):
            assert status(card.run([made(card, "ROPE")], [(0, position, 0, -1)])) == "BAD_POSITION"
        assert status(card.run([made(card, "ROPE", stride=31)], tokens(1))) == "BAD_POSITION"
        assert status(card.run([], tokens(1), version=2)) == "BAD_VERSION"
        output_beyond = [(0, 0, 0, 1 << 20)]
        assert status(card.run([made(card, "STORE", rows=1)], output_beyond)) == "BAD_SHAPE"
        # A matmul of rows that were not quantised.
        good = [instruction("QUANTIZE", a=0, n=64, rows=1), made(card, "MATMUL")]
        assert status(card.run(good, tokens(1))) == "BAD_SHAPE"
        assert status(card.run([made(card, "MATMUL")], tokens(1))) == "BAD_SHAPE"


def test_a_launch_of_no_rows_does_nothing() -> None:
    with Card() as card:
        report = card.run([made(card, "SCALE")], [])
        assert status(report) == "OK" and report["n_passes"] == 0 and report["version"] == numbers()["VERSION"]


def test_a_program_without_an_end_or_beyond_the_memory_is_refused() -> None:
    with Card(ddr_beats=64) as card:
        scale = made(card, "SCALE", n=16)
        card.ddr[64 * 10 :] = np.tile(scale.view(np.uint8), 27)
        for program in (10, 63, 64, -1, 1 << 30):
            report = card.launch(PROGRAM=program, N_TOKENS=1)
            assert status(report) == "BAD_SHAPE", program
        for rows in (63, -1, 1 << 30):
            assert status(card.launch(PROGRAM=2, ROWS=rows, N_TOKENS=9)) == "BAD_SHAPE"
        for n_tokens in (-1, 8 * numbers()["MAX_PASSES"] + 1):
            assert status(card.launch(PROGRAM=2, ROWS=3, N_TOKENS=n_tokens)) == "BAD_SHAPE"
        held = card.ddr.copy()
        for report_at in (64, -1, 1 << 30):
            card.launch(REPORT=report_at, PROGRAM=2)
            assert np.array_equal(card.ddr, held)


def test_any_words_are_a_program_that_ends() -> None:
    """Random instructions and rows: a status, and nothing written beyond the memories (under a sanitizer too)."""
    rng = np.random.default_rng(12)
    seen = set()
    with Card(1 << 12, 1 << 12) as card:
        for i in range(400):
            op = list(GOOD)[i % len(GOOD)]
            given = made(card, op)
            card.hbm_used = 0
            for name in rng.choice(given.dtype.names[1:-1], 3, replace=False):
                scale = int(rng.integers(1, 32))
                given[name] = rng.integers(0, 1 << scale) if name != "f0" else rng.standard_normal()
            rows = [tuple(map(int, rng.integers(-1, 40, 4))) for _ in range(int(rng.integers(1, 20)))]
            seen.add(status(card.run([*before(op), given], rows)))
    assert seen == {"OK", "BAD_OP", "BAD_FORMAT", "BAD_SHAPE", "BAD_TOKEN", "BAD_POSITION"}


@pytest.mark.parametrize("threads", [1, 2, 5, 40])
def test_threads_share_the_channels_and_change_no_bit(threads: int) -> None:
    rng = np.random.default_rng(9)
    blocks = random_rows(rng, "Q4_1", 1200, 576)
    x = random_floats(rng, 3, 576)
    expected = u280_order.matmul(Weight.of("Q4_1", blocks), x)
    with Card(threads=threads) as card:
        weight, source, target = card.put_weight("Q4_1", blocks, 576), card.put_ddr(x), card.take_ddr(4 * 3 * 1200)
        load = instruction("LOAD", dst=0, n=576, ddr=source, stride=576)
        program = [load, instruction("QUANTIZE", a=0, n=576), instruction("MATMUL", weight, ddr=target, stride=1200)]
        for _ in range(20):
            assert status(card.run(program, tokens(3))) == "OK"
            assert same(card.floats(target, 3, 1200, 1200), expected)


def test_the_report_counts_what_was_read() -> None:
    with Card() as card:
        report = card.run([*before("MATMUL"), made(card, "MATMUL")], tokens(11))
        assert report["n_passes"] == 2 and report["kv_beats"] == 0
        assert report["weight_beats"] == 2 * 32 * (1 + 2 + 1)  # row scales, two beats of values, their scales
        report = card.run([made(card, "ATTEND")], [(0, 20, 0, -1)])
        # Two heads of sixteen channels. The own cell's two beats of scales; of 13 older cells that are seen, in as many
        # channels, 4 beats of scales, a key and a value each.
        assert report["kv_beats"] == 2 * (2 + 13 * (4 + 2))
