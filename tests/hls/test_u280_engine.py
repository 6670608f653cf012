"""The U280 engine's HLS source: bit-exact to its specification, op by op."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import u280_order
from u280_order import Weight, random_rows
from u280_rig import Card, Floats, instruction, numbers, random_floats, same, status, tokens

PASS = 8


def mapped(card: Card, x: Floats, *ops: np.ndarray, n_out: int | None = None, at: int = 0) -> Floats:
    """What the ops make of a value at 0 of the vector memory, found at `at`."""
    rows, n = x.shape
    n_out = n_out or n
    source, target = card.put_ddr(x), card.take_ddr(4 * rows * n_out)
    load = instruction("LOAD", dst=0, n=n, ddr=source, stride=n)
    store = instruction("STORE", a=at, n=n_out, ddr=target, stride=n_out)
    report = card.run([load, *ops, store], tokens(rows))
    assert status(report) == "OK" and report["n_passes"] == -(-rows // PASS)
    return card.floats(target, rows, n_out, n_out)


@pytest.mark.parametrize("name", u280_order.TYPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 19])
def test_a_matmul_has_the_bits_of_the_specification(name: str, rows: int) -> None:
    rng = np.random.default_rng([rows, u280_order.TYPES.index(name)])
    with Card() as card:
        for columns in (
            (256, 1536) if name.endswith("_K") else (64, 576) if name in u280_order.BLOCKS else (32, 96, 576, 1536)
        ):
            for n in (1, 45, 1100):
                blocks = random_rows(rng, name, n, columns)
                x = random_floats(rng, rows, columns)
                weight = card.put_weight(name, blocks, columns)
                ops = [instruction("QUANTIZE", a=0, n=columns), instruction("MATMUL", weight, dst=4096)]
                y = mapped(card, x, *ops, n_out=n, at=4096)
                assert same(y, u280_order.matmul(Weight.of(name, blocks), x)), (columns, n)
                card.hbm_used, card.ddr_used = 0, 2


@pytest.mark.parametrize("rows", [1, 3, 11])
@pytest.mark.parametrize("name", ["W2S24", "Q8_0"])
def test_results_meet_another_value_as_they_come(name: str, rows: int) -> None:
    """More rows than the results of all channels at once, and not whole blocks."""
    rng, columns, n = np.random.default_rng(rows), 64, 1100
    blocks, x = random_rows(rng, name, n, columns), random_floats(rng, rows, columns)
    other = random_floats(rng, rows, n)
    with Card() as card:
        weight, beat = card.put_weight(name, blocks, columns), card.put_ddr(other)
        y = u280_order.matmul(Weight.of(name, blocks), x)
        load = instruction("LOAD", dst=4096, n=n, ddr=beat, stride=n)
        with np.errstate(all="ignore"):
            made = {"ADD": u280_order.flushed(other + y), "GATE": u280_order.silu_times(other, y)}
        for flag, expected in made.items():
            for dst in (4096, 8192):  # in the place of the other, or apart
                op = instruction("MATMUL", weight, dst=dst, b=4096, flags=numbers()[f"FLAG_{flag}"])
                found = mapped(card, x, load, instruction("QUANTIZE", a=0, n=columns), op, n_out=n, at=dst)
                assert same(found, expected), (flag, dst)


@pytest.mark.parametrize("rows", [1, 11])
def test_matmuls_behind_one_another_each_have_their_weight(rows: int) -> None:
    """Of other formats and sizes, with an op between the first two."""
    rng, columns = np.random.default_rng(rows), 256
    x = random_floats(rng, rows, columns)
    shapes = {"Q4_1": 130, "W2S24": 1100, "Q6_K": 45}
    with Card() as card:
        ops = [instruction("QUANTIZE", a=0, n=columns)]
        for i, (name, n) in enumerate(shapes.items()):
            blocks = random_rows(rng, name, n, columns)
            ops.append(instruction("MATMUL", card.put_weight(name, blocks, columns), dst=4096 * (i + 1)))
            ops += [instruction("SCALE", a=4096, dst=4096, n=n, f0=1.0)] if i == 0 else []
            y = mapped(card, x, *ops, n_out=n, at=4096 * (i + 1))
            assert same(y, u280_order.matmul(Weight.of(name, blocks), x)), name


@pytest.mark.parametrize("rows", [1, 3, 8, 11])
def test_vector_ops_have_the_bits_of_the_specification(rows: int) -> None:
    rng = np.random.default_rng(rows)
    n = 192
    x, other, gain, bias = (
        random_floats(rng, rows, n),
        random_floats(rng, rows, n),
        random_floats(rng, 1, n)[0],
        random_floats(rng, 1, n)[0],
    )
    with Card() as card:
        beats = {"gain": card.put_ddr(gain), "bias": card.put_ddr(bias), "other": card.put_ddr(other)}
        load = instruction("LOAD", dst=256, n=n, ddr=beats["other"], stride=n)
        for group in (n, 64, 48):
            op = instruction("NORM", a=0, dst=512, n=n, group=group, ddr=beats["gain"], f0=1e-5)
            assert same(mapped(card, x, op, at=512), u280_order.norm(x, gain[:group], 1e-5, group)), group
        with np.errstate(all="ignore"):
            add = mapped(card, x, load, instruction("ADD", a=0, b=256, dst=512, n=n), at=512)
            assert same(add, u280_order.flushed(x + other))
            scaled = mapped(card, x, instruction("SCALE", a=0, dst=0, n=n, f0=-0.37))
            assert same(scaled, u280_order.flushed(x * np.float32(-0.37)))
            biased = mapped(card, x, instruction("BIAS", a=0, dst=512, n=n, ddr=beats["bias"]), at=512)
            assert same(biased, u280_order.flushed(x + bias))
            gated = mapped(card, x, load, instruction("GATE", a=0, b=256, dst=256, n=n), at=256)
            assert same(gated, u280_order.silu_times(x, other))


@pytest.mark.parametrize("n", [63, 1024, 2100])
def test_a_norm_of_any_width_adds_in_its_order(n: int) -> None:
    """More than sixteen sums of 64, and less than one."""
    rng = np.random.default_rng(n)
    x, gain = random_floats(rng, 2, n), random_floats(rng, 1, n)[0]
    with Card() as card:
        op = instruction("NORM", a=0, dst=4096, n=n, group=n, ddr=card.put_ddr(gain), f0=1e-6)
        assert same(mapped(card, x, op, at=4096), u280_order.norm(x, gain, 1e-6, n))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("group", "n_pairs"), [(64, 32), (96, 20), (32, 16)])
def test_rope_has_the_bits_of_the_specification(half: bool, group: int, n_pairs: int) -> None:
    rng = np.random.default_rng(group)
    x = random_floats(rng, 11, 192)
    angles = np.multiply.outer(np.arange(64), 10.0 ** -np.linspace(0, 3, n_pairs))
    table = np.zeros((64, 2 * n_pairs + 3), np.float32)  # rows may be further apart than they are long
    table[:, 0 : 2 * n_pairs : 2], table[:, 1 : 2 * n_pairs : 2] = np.cos(angles), np.sin(angles)
    with Card() as card:
        at = card.put_ddr(table)
        for dst in (0, 256):
            op = instruction("ROPE", a=0, dst=dst, n=192, group=group, n_pairs=n_pairs, ddr=at, stride=2 * n_pairs + 3)
            op["flags"], op["max_position"] = int(half), 8  # row 9 on stand at 8
            at_rows = table[np.minimum(np.arange(11), 8)]
            cos, sin = at_rows[:, 0 : 2 * n_pairs : 2], at_rows[:, 1 : 2 * n_pairs : 2]
            assert same(mapped(card, x, op, at=dst), u280_order.rope(x, cos, sin, group, half))


@pytest.mark.parametrize("name", u280_order.TYPES)
def test_an_embedding_is_the_weight_s_row(name: str) -> None:
    rng = np.random.default_rng(8)
    columns = 512 if name.endswith("_K") else 576
    blocks = random_rows(rng, name, 1100, columns)
    with Card() as card:
        weight = card.put_weight(name, blocks, columns)
        ids = [0, 1, 2, 3, 4, 127, 128, 1023, 1099, 5, 5]
        target = card.take_ddr(4 * len(ids) * columns)
        ops = [instruction("EMBED", weight, dst=0), instruction("STORE", a=0, n=columns, ddr=target, stride=columns)]
        report = card.run(ops, [(token, i, 0, -1) for i, token in enumerate(ids)])
        assert status(report) == "OK" and report["n_passes"] == 2
        assert same(card.floats(target, len(ids), columns, columns), Weight.of(name, blocks).values[ids])


@pytest.mark.parametrize("stride", [1100, 1101, 1109, 1200])
def test_results_may_go_to_the_ddr_at_any_pitch(stride: int) -> None:
    """Rows that share a beat keep what others have of it."""
    rng = np.random.default_rng(9)
    blocks, x = random_rows(rng, "Q4_0", 1100, 64), random_floats(rng, 11, 64)
    with Card() as card:
        weight, source = card.put_weight("Q4_0", blocks, 64), card.put_ddr(x)
        target = card.put_ddr(np.full((11, stride), 7, np.float32))
        load = instruction("LOAD", dst=0, n=64, ddr=source, stride=64)
        ops = [load, instruction("QUANTIZE", a=0, n=64), instruction("MATMUL", weight, ddr=target, stride=stride)]
        assert status(card.run(ops, tokens(11))) == "OK"
        y = card.floats(target, 11, stride, stride)
        assert same(np.ascontiguousarray(y[:, :1100]), u280_order.matmul(Weight.of("Q4_0", blocks), x))
        assert (y[:, 1100:] == 7).all()


@pytest.mark.parametrize("wanted", [[], [0], [10], [1, 3, 8, 9], list(range(11))])
def test_rows_that_are_wanted_are_selected_and_numbered(wanted: list[int]) -> None:
    rng = np.random.default_rng(10)
    blocks, x = random_rows(rng, "Q8_0", 40, 64), random_floats(rng, 11, 64)
    with Card() as card:
        weight, source = card.put_weight("Q8_0", blocks, 64), card.put_ddr(x)
        target = card.put_ddr(np.full((12, 40), 7, np.float32))
        rows = [(0, i, 0, wanted.index(i) if i in wanted else -1) for i in range(11)]
        of_outputs = {"rows": 1}
        ops = [
            instruction("LOAD", dst=64, n=64, ddr=source, stride=64),
            instruction("SELECT", a=64, dst=64, n=64),
            instruction("QUANTIZE", a=64, n=64, **of_outputs),
            instruction("MATMUL", weight, ddr=target, stride=40, **of_outputs),
        ]
        assert status(card.run(ops, rows)) == "OK"
        y = card.floats(target, 12, 40, 40)
        assert same(y[: len(wanted)], u280_order.matmul(Weight.of("Q8_0", blocks), x)[wanted])
        assert (y[len(wanted) :] == 7).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_no_number_gives_no_number_and_harms_no_other(bad: float) -> None:
    rng = np.random.default_rng(5)
    blocks, x = random_rows(rng, "Q8_0", 9, 96), random_floats(rng, 3, 96)
    x[1, 40] = bad
    with Card() as card:
        weight = card.put_weight("Q8_0", blocks, 96)
        y = mapped(card, x, instruction("QUANTIZE", a=0, n=96), instruction("MATMUL", weight, dst=0), n_out=9)
        assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
        assert same(y, u280_order.matmul(Weight.of("Q8_0", blocks), x))


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 2.0**-110, 1e-30, 1e30, 3e38])
def test_rows_of_any_size_are_quantised(size: float) -> None:
    rng = np.random.default_rng(6)
    blocks = random_rows(rng, "Q4_0", 8, 128)
    x = (rng.uniform(-1, 1, (2, 128)) * np.float32(size)).astype(np.float32)
    x[:, 5] = size
    with Card() as card:
        weight = card.put_weight("Q4_0", blocks, 128)
        y = mapped(card, x, instruction("QUANTIZE", a=0, n=128), instruction("MATMUL", weight, dst=0), n_out=8)
        assert same(y, u280_order.matmul(Weight.of("Q4_0", blocks), x))
        assert (y != 0).any() == (size >= 2.0**-110)


def test_blocks_of_very_different_sizes_keep_their_own_precision() -> None:
    """What one int8 scale a row would round away: a block a hundredth as large as the largest."""
    rng = np.random.default_rng(7)
    x = rng.uniform(-1, 1, (4, 256)).astype(np.float32)
    x[:, 32:] *= np.float32(0.01)
    codes, scales = u280_order.activations(x)
    error = np.abs(codes * scales[:, None] - x)
    assert error[:, 32:].max() < 0.6 * 0.01 / 127 * 2 and error[:, :32].max() < 0.6 / 127


@pytest.mark.parametrize("name", u280_order.TYPES)
@pytest.mark.parametrize("rows", [1, 2])
def test_the_extremes_of_every_field_keep_their_sums(name: str, rows: int) -> None:
    """All codes, scales and activations at their largest, in the longest rows: what the widths must hold."""
    columns = 16384
    x = np.full((rows, columns), 3.0, np.float32)
    blocks = random_rows(np.random.default_rng(6), name, 5, columns)
    with Card() as card:
        for fill in (0x00, 0xFF, 0x80, 0x7F):
            spoiled = np.full_like(blocks, fill)
            size = u280_order.block_of(name)[1]
            for at in u280_order.HALVES.get(name, ()):
                halves = spoiled[:, : spoiled.shape[1] // size * size].reshape(5, -1, size)
                halves[:, :, at : at + 2] = np.array([0.5], "<f2").view(np.uint8)
            if name in u280_order.BLOCKS:
                spoiled[:, -4:] = blocks[:, -4:]
            card.hbm_used = 0
            weight = card.put_weight(name, spoiled, columns)
            for sign in (1, -1):
                ops = [instruction("QUANTIZE", a=0, n=columns), instruction("MATMUL", weight, dst=0)]
                y = mapped(card, x * np.float32(sign), *ops, n_out=5)
                assert same(y, u280_order.matmul(Weight.of(name, spoiled), x * np.float32(sign))), (fill, sign)
                card.ddr_used = 2
