"""KV cache and attention of the cpu device against float64 over absolute positions."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_rig import ISAS, Rig, attention, nmse

from hetrun.device import Batch
from hetrun.ops import Attention, KvSpec, Rope, Value
from hetrun.reference.kv import round_to_format

N_HEADS, N_KV, DIM = 6, 2, 48
N = 40
Q, K, V = Value("q", N_HEADS * DIM), Value("k", N_KV * DIM), Value("v", N_KV * DIM)
# Of the error that remains when the oracle has the keys and values that the format leaves: float32 sums; queries are
# rounded to halves with f16 keys; a tie of q8_0 may go either way.
BOUND = {"f32": 1e-11, "f16": 1e-6, "q8_0": 1e-8, "kv4": 1e-10, "kv4h": 1e-10}


def spec(name: str = "kv", **fields: object) -> KvSpec:
    return KvSpec(**{"name": name, "n_slots": 2, "n_ctx": N, "n_heads_kv": N_KV, "head_dim": DIM} | fields)  # type: ignore[arg-type]


SPECS = {
    "full": spec(),
    "window": spec(window=5, slack=3),
    "window-1": spec(window=1, slack=3),
    "sink": spec(window=6, sink=3, slack=3),
    "window-of-all": spec(window=N, slack=3),
    "unringed": spec(window=7, slack=N),
}


def qkv(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((N, v.width)).astype(np.float32) for v in (Q, K, V))  # type: ignore[return-value]


def batch(slot: int, positions: range) -> Batch:
    return Batch.of([0] * len(positions), positions, [slot] * len(positions), [])


def attend(rig: Rig, data: tuple[np.ndarray, ...], slot: int, chunks: list[int]) -> np.ndarray:
    """Attention outputs of all positions, fed in chunks of those lengths."""
    q, k, v = data
    out, start = [], 0
    for n in chunks:
        own = slice(start, start + n)
        out.append(rig.run(batch(slot, range(start, start + n)), q=q[own], k=k[own], v=v[own]))
        start += n
    return np.concatenate(out)


def rig_of(kv: KvSpec, isa: str = ISAS[-1] if ISAS else "", soft_cap: float = 0.0, **config: object) -> Rig:
    op = Attention("y", Q, K, V, kv, DIM**-0.5, soft_cap)
    return Rig([op], [Q, K, V], isa=isa, **config)  # type: ignore[arg-type]


def stored(x: np.ndarray, kv: KvSpec) -> np.ndarray:
    return round_to_format(x.reshape(-1, kv.head_dim), kv.format).reshape(x.shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", BOUND)
@pytest.mark.parametrize("name", SPECS)
def test_attention_equals_float64(name: str, form: str, isa: str) -> None:
    dim = DIM if form in ("f32", "f16") else 64
    kv = KvSpec(**{**vars(SPECS[name]), "format": form, "head_dim": dim})
    rng = np.random.default_rng(1)
    widths = (N_HEADS * dim, N_KV * dim, N_KV * dim)
    q, k, v = (rng.standard_normal((N, w)).astype(np.float32) for w in widths)
    values = [Value(n, w) for n, w in zip("qkv", widths, strict=True)]
    with Rig([Attention("y", *values, kv, dim**-0.5)], values, isa=isa) as rig:  # type: ignore[arg-type]
        got = attend(rig, (q, k, v), 1, [4] * (N // 4))
    assert nmse(got, attention(q, stored(k, kv), stored(v, kv), range(N), kv, dim**-0.5)) < BOUND[form]


@pytest.mark.parametrize(
    ("form", "dim"),
    [
        (form, dim)
        for form in BOUND
        for dim in (2, 4, 6, 32, 80, 128)
        if not KvSpec("kv", 1, 1, 1, dim, form).format_refusal
    ],
)
def test_heads_of_any_size_that_the_format_takes(form: str, dim: int) -> None:
    kv = KvSpec("kv", 1, N, N_KV, dim, form)
    rng = np.random.default_rng(2)
    widths = (N_HEADS * dim, N_KV * dim, N_KV * dim)
    q, k, v = (rng.standard_normal((N, w)).astype(np.float32) for w in widths)
    values = [Value(n, w) for n, w in zip("qkv", widths, strict=True)]
    with Rig([Attention("y", *values, kv, dim**-0.5)], values, max_tokens=N) as rig:  # type: ignore[arg-type]
        got = attend(rig, (q, k, v), 0, [N])
    assert nmse(got, attention(q, stored(k, kv), stored(v, kv), range(N), kv, dim**-0.5)) < BOUND[form]


LONG = 700  # cells of more than two splits, and no multiple of a tile
LONG_SPECS = {
    "full": KvSpec("kv", 2, LONG, 1, 32, "f16"),
    "sink": KvSpec("kv", 2, 5 * LONG, 1, 32, "f16", sink=4, window=300, slack=31),
    "unringed": KvSpec("kv", 2, LONG, 1, 32, "f16", sink=4, window=90, slack=LONG),
}


@pytest.fixture(params=LONG_SPECS)
def long_case(request: pytest.FixtureRequest) -> tuple[KvSpec, tuple[np.ndarray, ...], list[Value]]:
    rng = np.random.default_rng(3)
    widths = (96, 32, 32)
    data = tuple(rng.standard_normal((LONG, w)).astype(np.float32) for w in widths)
    return LONG_SPECS[request.param], data, [Value(n, w) for n, w in zip("qkv", widths, strict=True)]


@pytest.mark.parametrize("isa", ISAS)
def test_a_long_context_equals_float64(long_case, isa: str) -> None:  # type: ignore[no-untyped-def]
    """The window of "sink" is passed twice, its ring wraps as often."""
    kv, data, values = long_case
    with Rig([Attention("y", *values, kv, 32**-0.5)], values, isa=isa, max_tokens=32, threads=2) as rig:
        got = attend(rig, data, 0, [32] * (LONG // 32) + [1] * (LONG % 32))
    want = attention(data[0], stored(data[1], kv), stored(data[2], kv), range(LONG), kv, 32**-0.5)
    assert nmse(got, want) < BOUND["f16"]


@pytest.mark.parametrize("isa", ISAS)
def test_single_steps_and_threads_do_not_change_a_bit_of_a_long_context(long_case, isa: str) -> None:  # type: ignore[no-untyped-def]
    """One token's cells are shared out among threads in parts; the parts are those of every prefill."""
    kv, data, values = long_case
    results = []
    for threads, chunks in ((1, [32] * (LONG // 32) + [LONG % 32]), (3, [1] * LONG), (2, [2, 29, 1] * 21 + [28])):
        with Rig([Attention("y", *values, kv, 32**-0.5)], values, isa=isa, max_tokens=32, threads=threads) as rig:
            results.append(attend(rig, data, 1, chunks))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", SPECS)
def test_chunks_and_threads_do_not_change_a_bit(name: str, threads: int, isa: str) -> None:
    data = qkv()
    with rig_of(SPECS[name], isa, threads=1) as alone, rig_of(SPECS[name], isa, threads=threads) as rig:
        want = attend(alone, data, 0, [1] * N)
        np.testing.assert_array_equal(attend(rig, data, 0, [4] * (N // 4)), want)
        np.testing.assert_array_equal(attend(rig, data, 1, [3, 1, 4, 2] * (N // 10)), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", BOUND)
def test_single_steps_give_the_bits_of_a_prefill_in_every_format(form: str, isa: str) -> None:
    """Few queries read keys and values as they are stored, many have them widened first. Five heads take two blocks."""
    n, dim, n_heads = 300, 64, 5
    kv = KvSpec("kv", 1, n, 1, dim, form)
    values = [Value(name, width) for name, width in zip("qkv", (n_heads * dim, dim, dim), strict=True)]
    rng = np.random.default_rng(4)
    data = tuple(rng.standard_normal((n, v.width)).astype(np.float32) for v in values)
    op = Attention("y", *values, kv, dim**-0.5)  # type: ignore[arg-type]
    results = []
    for chunks in ([32] * 9 + [12], [1] * n):
        with Rig([op], values, isa=isa, max_tokens=32, threads=2) as rig:
            results.append(attend(rig, data, 0, chunks))
    np.testing.assert_array_equal(results[1], results[0])
    want = attention(data[0], stored(data[1], kv), stored(data[2], kv), range(n), kv, dim**-0.5)
    assert nmse(results[1], want) < BOUND[form]


def test_soft_cap_bounds_the_scores() -> None:
    q, k, v = qkv()
    kv = spec(format="f32")
    with rig_of(kv, soft_cap=1.5) as rig:
        got = attend(rig, (q * 9, k, v), 0, [8] * 5)
    assert nmse(got, attention(q * 9, k, v, range(N), kv, DIM**-0.5, 1.5)) < 1e-10


def test_slots_of_one_batch_are_apart() -> None:
    first, second = qkv(1), qkv(2)
    kv = spec(format="f32")
    with rig_of(kv) as rig:
        attend(rig, first, 0, [5])
        attend(rig, second, 1, [9])
        # Three tokens of slot 0 and two of slot 1, interleaved.
        slots, positions = [0, 1, 0, 0, 1], [5, 9, 6, 7, 10]
        rows = [np.stack([(first, second)[s][i][p] for s, p in zip(slots, positions, strict=True)]) for i in range(3)]
        got = rig.run(Batch.of([0] * 5, positions, slots, []), q=rows[0], k=rows[1], v=rows[2])
    mine = attention(first[0][5:8], first[1], first[2], [5, 6, 7], kv, DIM**-0.5)
    other = attention(second[0][9:11], second[1], second[2], [9, 10], kv, DIM**-0.5)
    assert nmse(got, np.stack([mine[0], other[0], mine[1], mine[2], other[1]])) < 1e-11


@pytest.mark.parametrize("name", SPECS)
def test_a_copied_slot_goes_on_as_its_source(name: str) -> None:
    data = qkv()
    rest = [slice(i, i + 1) for i in range(23, 30)]
    with rig_of(SPECS[name]) as rig:
        attend(rig, data, 0, [1] * 23)
        rig.states["kv"].copy(0, 1, 23)
        steps = [
            [rig.run(batch(slot, range(s.start, s.stop)), q=data[0][s], k=data[1][s], v=data[2][s]) for s in rest]
            for slot in (1, 0)
        ]
    np.testing.assert_array_equal(*steps)


def test_a_long_copied_slot_goes_on_as_its_source(long_case) -> None:  # type: ignore[no-untyped-def]
    kv, data, values = long_case
    rest = slice(LONG - 3, LONG)
    with Rig([Attention("y", *values, kv, 32**-0.5)], values, max_tokens=32) as rig:
        attend(rig, data, 0, [32] * (LONG // 32) + [LONG % 32 - 3])
        rig.states["kv"].copy(0, 1, rest.start)
        results = [
            rig.run(batch(slot, range(rest.start, LONG)), **{n: x[rest] for n, x in zip("qkv", data, strict=True)})
            for slot in (1, 0)
        ]
    np.testing.assert_array_equal(*results)


def test_a_rollback_needs_no_call() -> None:
    data, kv = qkv(), spec(format="f32")
    changed = tuple(x.copy() for x in data)
    for x in changed:
        x[20:] += 1
    with rig_of(kv) as rig:
        attend(rig, data, 0, [1] * 30)
        got = [
            rig.run(batch(0, range(i, i + 1)), **{n: x[i : i + 1] for n, x in zip("qkv", changed, strict=True)})
            for i in range(20, 25)
        ]
    want = attention(changed[0][20:25], changed[1], changed[2], range(20, 25), kv, DIM**-0.5)
    assert nmse(np.concatenate(got), want) < 1e-11


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rope_fused_into_attention_gives_the_bits_of_rope_alone(layout: str) -> None:
    frequencies = tuple(10000.0 ** (-i / 24) for i in range(24))
    q = Rope("rq", Q, DIM, layout, frequencies)  # type: ignore[arg-type]
    k = Rope("rk", K, DIM, layout, frequencies)  # type: ignore[arg-type]
    op = Attention("y", q.output, k.output, V, spec(), DIM**-0.5)
    data = qkv()
    with (
        Rig([q, k, op], [Q, K, V]) as fused,
        Rig([q, k, op], [Q, K, V], [op.output, q.output, k.output]) as apart,
    ):
        assert len(fused.program.steps) == len(apart.program.steps) - 2
        np.testing.assert_array_equal(attend(fused, data, 0, [4, 1, 7]), attend(apart, data, 0, [4, 1, 7]))


@pytest.mark.parametrize("form", BOUND)
@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_key_or_value_is_seen_by_later_queries_only(bad: float, which: str, form: str) -> None:
    q, k, v = (x[:, : len(x[0]) // DIM * 32].copy() for x in qkv())
    kv = spec(format=form, head_dim=32)
    (k if which == "key" else v)[6] = bad
    values = [Value(n, x.shape[1]) for n, x in zip("qkv", (q, k, v), strict=True)]
    with Rig([Attention("y", *values, kv, 0.1)], values) as rig:  # type: ignore[arg-type]
        got = attend(rig, (q, k, v), 0, [10])
    assert np.isfinite(got[:6]).all()
    assert not np.isfinite(got[6:]).any()
