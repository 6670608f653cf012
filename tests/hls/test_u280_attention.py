"""The U280 engine's attention over its 4-bit cache: bit-exact to its specification, and near the reference."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from u280_order import KvCache
from u280_rig import Card, Floats, instruction, library, random_floats, same, status

from hetrun.reference.kv import hadamard
from hetrun.reference.ops import attend, visible_positions


def attention(
    card: Card,
    cache: KvCache,
    n_slots: int,
    values: tuple[Floats, Floats, Floats, Floats],
    rows: list[tuple[int, int, int, int]],
    at: int,
    factor: float,
) -> tuple[Floats, np.void]:
    """values: queries, keys, values, and the queries that sinks meet."""
    own = values[3] is not values[0]
    n = values[0].shape[1]
    sources = [card.put_ddr(x) for x in values]
    target = card.take_ddr(4 * len(rows) * n)
    places = (0, 4096, 8192, 16384)
    loads = [
        instruction("LOAD", dst=dst, n=x.shape[1], ddr=beat, stride=x.shape[1])
        for dst, x, beat in zip(places, values, sources, strict=True)
    ]
    shape = {name: getattr(cache, name) for name in ("n_heads_kv", "head_dim", "n_cells", "n_ctx", "sink", "window")}
    attend = instruction(
        "ATTEND", a=0, b=4096, c=8192, d=16384 * own, dst=12288, f0=factor, n_heads=n // cache.head_dim,
        n_slots=n_slots, hbm=at, flags=2 * cache.rotated, **shape,
    )  # fmt: skip
    report = card.run([*loads, attend, instruction("STORE", a=12288, n=n, ddr=target, stride=n)], rows)
    return card.floats(target, len(rows), n, n), report


SHAPES = [(9, 3, 64), (4, 4, 128), (8, 1, 32), (6, 2, 80), (2, 2, 256), (40, 40, 16), (33, 11, 8), (4, 2, 130)]


@pytest.mark.parametrize("heads", SHAPES, ids=lambda s: "-".join(map(str, s)))
@pytest.mark.parametrize("rotated", [False, True], ids=["kv4", "kv4h"])
@pytest.mark.parametrize("sink_window", [(0, 0), (2, 37), (0, 5), (3, 20)], ids=lambda s: "-".join(map(str, s)))
def test_attention_has_the_bits_of_the_specification(
    heads: tuple[int, int, int], rotated: bool, sink_window: tuple[int, int]
) -> None:
    """Chunks of several passes, then single tokens, of two slots at once, far enough for the ring to wrap."""
    n_heads, n_heads_kv, head_dim = heads
    if rotated and head_dim & (head_dim - 1):
        pytest.skip("a rotated cache has heads of a power of two")
    sink, window = sink_window
    rng = np.random.default_rng([*heads, sink, window])
    n_ctx = 120
    n_cells = min(n_ctx, sink + window + 20) if window else n_ctx
    cache = KvCache(n_heads_kv, head_dim, sink, window, n_cells, n_ctx, rotated)
    steps = [[(0, p) for p in range(19)], [(1, p) for p in range(3)], [(0, 19), (1, 3)], [(0, 20)], [(1, 4)]]
    steps += [[(0, p) for p in range(21 + 13 * i, 34 + 13 * i)] for i in range(5)]
    steps += [[(0, 86)], [(1, 5), (0, 87), (0, 88), (1, 6), (1, 7)]]
    with Card() as card:
        beats = library().hetrun_u280_kv_beats(2, n_cells, n_heads_kv, head_dim)
        card.take_hbm(3)
        at = card.take_hbm(beats)
        for channel in card.channels:
            channel[:] = 0xA5  # memories come with anything in them
        for step in steps:
            q = random_floats(rng, len(step), n_heads * head_dim)
            q /= np.abs(q).max(axis=1, keepdims=True) / np.float32(4)
            k, v = (
                random_floats(rng, len(step), n_heads_kv * head_dim),
                random_floats(rng, len(step), n_heads_kv * head_dim),
            )
            k /= np.abs(k).max(axis=1, keepdims=True) / np.float32(4)
            factor = float(np.float32(1 / np.sqrt(head_dim)))
            q_sink = q[:, ::-1].copy() if sink == 3 else q
            out, report = attention(
                card, cache, 2, (q, k, v, q_sink), [(0, p, slot, -1) for slot, p in step], at, factor
            )
            assert status(report) == "OK"
            for i, (slot, p) in enumerate(step):
                cache.write(slot, p, k[i], v[i])
            expected = np.stack([cache.attend(slot, p, q[i], factor, q_sink[i]) for i, (slot, p) in enumerate(step)])
            assert same(out, expected), step
            card.ddr_used = 2
        used = np.array([c[64 * (at + beats) :] for c in card.channels])
        assert (used == 0xA5).all() and all((c[: 64 * at] == 0xA5).all() for c in card.channels)


def reference(cache: KvCache, slot: int, position: int, q: Floats, factor: float) -> Floats:
    """Float attention of the reference over the same rounded keys and values."""
    visible = visible_positions(position, cache.sink, cache.window)
    both = []
    for side in range(2):
        cells = [cache.cells[slot, j] for j in visible.tolist()]
        x = np.stack([codes[side] * s[side][:, None] + m[side][:, None] for codes, s, m in cells]).astype(np.float32)
        both.append(hadamard(x) if cache.rotated else x)
    return attend(q.reshape(-1, cache.head_dim), both[0], both[1], factor).reshape(-1)


@pytest.mark.parametrize("rotated", [False, True], ids=["kv4", "kv4h"])
@pytest.mark.parametrize(("sharpness", "bound"), [(0.3, 0.0005), (1.0, 0.002), (3.0, 0.008)])
def test_attention_is_near_the_reference(rotated: bool, sharpness: float, bound: float) -> None:
    """What 8-bit queries and 12-bit weights of values cost, rms, of the values' spread: most where scores are peaky."""
    rng = np.random.default_rng(4)
    n_heads, n_heads_kv, head_dim, n = 8, 4, 64, 200
    cache = KvCache(n_heads_kv, head_dim, 0, 0, 256, 256, rotated)
    q = (sharpness * rng.standard_normal((n, n_heads * head_dim))).astype(np.float32)
    k, v = (rng.standard_normal((n, n_heads_kv * head_dim)).astype(np.float32) for _ in range(2))
    factor = float(np.float32(1 / np.sqrt(head_dim)))
    with Card(ddr_beats=1 << 15) as card:
        at = card.take_hbm(library().hetrun_u280_kv_beats(1, 256, n_heads_kv, head_dim))
        out, report = attention(card, cache, 1, (q, k, v, q), [(0, p, 0, -1) for p in range(n)], at, factor)
    assert status(report) == "OK"
    for p in range(n):
        cache.write(0, p, k[p], v[p])
    rows = range(0, n, 7)
    exact = np.stack([reference(cache, 0, p, q[p], factor) for p in rows])
    error = np.sqrt(np.mean((out[list(rows)] - exact) ** 2))
    assert 0.2 * bound < error / v.std() < bound


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_no_number_reaches_those_who_see_it_and_no_other(where: str, bad: float) -> None:
    rng = np.random.default_rng(2)
    cache = KvCache(2, 32, 0, 3, 16, 64)
    values = {name: random_floats(rng, 8, 64 * (2 if name == "q" else 1)) for name in "qkv"}
    values[where][4, 5] = bad  # of the first head
    with Card() as card:
        at = card.take_hbm(library().hetrun_u280_kv_beats(1, 16, 2, 32))
        q, k, v = values["q"], values["k"], values["v"]
        out, report = attention(card, cache, 1, (q, k, v, q), [(0, p, 0, -1) for p in range(8)], at, 0.1)
    assert status(report) == "OK"
    for p in range(8):
        cache.write(0, p, k[p], v[p])
    with np.errstate(all="ignore"):
        expected = np.stack([cache.attend(0, p, q[p], 0.1) for p in range(8)])
    assert same(out, expected)
    nan = np.isnan(out.reshape(8, 4, 32)).all(axis=2)
    seeing = [4] if where == "q" else [4, 5, 6]
    finite_query = where == "q" and np.isfinite(bad)  # a large query is a number
    assert not nan[[0, 1, 2, 3, 7]].any() and not nan[:, 2:].any()
    assert nan[seeing, 0].all() or finite_query


def test_a_slot_of_the_most_cells_and_many_queries_of_one_head() -> None:
    """The largest score buffer: 8,192 cells, of which the last are seen by a window."""
    rng = np.random.default_rng(3)
    cache = KvCache(16, 8, 1, 40, 8192, 1 << 20)
    with Card(1 << 15) as card:
        at = card.take_hbm(library().hetrun_u280_kv_beats(1, 8192, 16, 8))
        for first in (0, 8150, 8189, 16380):
            rows = [(0, p, 0, -1) for p in range(first, first + 45)]
            q, k, v = random_floats(rng, 45, 128 * 8), random_floats(rng, 45, 128), random_floats(rng, 45, 128)
            out, report = attention(card, cache, 1, (q, k, v, q), rows, at, 0.3)
            assert status(report) == "OK"
            for i, (_, p, _, _) in enumerate(rows):
                cache.write(0, p, k[i], v[i])
            expected = np.stack([cache.attend(0, p, q[i], 0.3) for i, (_, p, _, _) in list(enumerate(rows))[41:]])
            assert same(out[41:], expected), first
            card.ddr_used = 2
