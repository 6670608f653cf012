"""Compiling segments for the cpu device: fusing, barriers, the arena."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from cpu_rig import Rig, tokens, weight
from hypothesis import given
from hypothesis import strategies as st

from hetrun.device import Batch, Segment
from hetrun.errors import DeviceError
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    SelectRows,
    Value,
)
from hetrun_cpu.arena import ALIGNMENT, Lifetime, lifetimes, place, with_barriers
from hetrun_cpu.driver import CpuDriver
from hetrun_cpu.lower import lower, step_reads, step_writes
from hetrun_cpu.steps import Flag, Kind


def block(layer: int, x: Value, down_type: str = "Q8_0") -> list[Op]:
    """A transformer block of width 64 with biases on q, k and v."""
    n = f"blk.{layer}"
    kv = KvSpec(f"{n}.kv", 1, 32, 2, 16)
    norm = RmsNorm(f"{n}.norm", x, weight(f"{n}.norm.w", "F32", 64), 1e-5)
    q, k, v = (
        MatMul(f"{n}.{name}", norm.output, weight(f"{n}.{name}.w", type_name, width, 64))
        for name, type_name, width in (("q", "Q4_0", 64), ("k", "F16", 32), ("v", "Q8_0", 32))
    )
    biased = [Bias(f"{m.name}.bias", m.output, weight(f"{m.name}.b", "F32", m.output.width)) for m in (q, k, v)]
    frequencies = (1.0, 0.5, 0.25, 0.125, 0.1, 0.05, 0.01, 0.001)
    rq, rk = (Rope(f"{b.name}.rope", b.output, 16, "half", frequencies) for b in biased[:2])
    attention = Attention(f"{n}.attn", rq.output, rk.output, biased[2].output, kv, 0.25)
    o = MatMul(f"{n}.o", attention.output, weight(f"{n}.o.w", "Q4_1", 64, 64))
    mid = Add(f"{n}.mid", x, o.output)
    ffn_norm = RmsNorm(f"{n}.ffn_norm", mid.output, weight(f"{n}.ffn_norm.w", "F32", 64), 1e-5)
    up = MatMul(f"{n}.up", ffn_norm.output, weight(f"{n}.up.w", "Q4_0", 96, 64))
    gate = MatMul(f"{n}.gate", ffn_norm.output, weight(f"{n}.gate.w", "Q5_1", 96, 64))
    gated = GatedActivation(f"{n}.act", gate.output, up.output)
    down = MatMul(f"{n}.down", gated.output, weight(f"{n}.down.w", down_type, 64, 96))
    end = Add(f"{n}.out", down.output, mid.output)
    return [norm, q, k, v, *biased, rq, rk, attention, o, mid, ffn_norm, up, gate, gated, down, end]


def model(n_layers: int = 2, down_type: str = "Q8_0") -> list[Op]:
    ops: list[Op] = [Embedding("embed", weight("embed.w", "Q8_0", 50, 64))]
    for layer in range(n_layers):
        ops += block(layer, ops[-1].output, down_type)
    select = SelectRows("select", ops[-1].output)
    norm = RmsNorm("norm", select.output, weight("norm.w", "F32", 64), 1e-5)
    return [*ops, select, norm, MatMul("logits", norm.output, weight("embed.w", "Q8_0", 50, 64))]


def segment(ops: list[Op], outputs: tuple[str, ...] = ()) -> Segment:
    names = outputs or (ops[-1].name,)
    return Segment("s", tuple(ops), (), tuple(op.output for op in ops if op.name in names), 8, 8)


def test_a_block_takes_nine_steps_and_six_barriers() -> None:
    ops = model(3)
    kinds = [s.kind for s in lower(segment(ops)).steps]
    of_block = [
        Kind.PREPARE, Kind.MATMUL, Kind.MATMUL, Kind.MATMUL, Kind.KV_STORE, Kind.ATTEND,
        Kind.PREPARE, Kind.MATMUL, Kind.PREPARE, Kind.MATMUL, Kind.PREPARE, Kind.MATMUL,
    ]  # fmt: skip
    assert kinds == [
        Kind.ROPE_TABLE, Kind.EMBED, *of_block * 3, Kind.SELECT, Kind.PREPARE, Kind.MATMUL
    ]  # fmt: skip
    steps, _ = with_barriers(lower(segment(ops)).steps)
    assert sum(bool(s.flags & Flag.BARRIER) for s in steps) == 3 * 6 + 2


@pytest.mark.parametrize("down_type", ["Q8_0", "MXFP4", "F16"])  # with panels, without, and of floats
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_fused_and_unfused_give_the_same_bits(n_tokens: int, down_type: str) -> None:
    ops = model(down_type=down_type)
    everything = [op.output for op in reversed(ops)]
    with Rig(ops, max_tokens=8, max_outputs=8) as fused, Rig(ops, (), everything, max_tokens=8, max_outputs=8) as apart:
        assert len(apart.program.steps) > len(fused.program.steps)
        np.testing.assert_array_equal(fused.run(tokens(n_tokens)), apart.run(tokens(n_tokens)))


def test_what_gate_and_up_fill_is_theirs_while_they_run() -> None:
    steps, phases = with_barriers(lower(segment(model(1))).steps)
    [(gated, phase)] = [(s, p) for s, p in zip(steps, phases, strict=True) if s.weights[1] is not None]
    scratch = gated.inputs[1]
    assert scratch in step_writes(gated) and scratch not in step_reads(gated)
    assert [s.kind for s in steps if s.out == scratch] == [Kind.PREPARE]
    assert lifetimes(steps, phases)[scratch or ""].first == phase


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_prefill_gives_the_bits_of_single_steps(threads: int) -> None:
    ops = model()
    with Rig(ops, max_tokens=8, max_outputs=8, threads=threads) as rig:
        at_once = rig.run(tokens(8))
        one_by_one = [rig.run(Batch.of([i % 7], [i], [0], [0])) for i in range(8)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), at_once)


def test_compiling_is_deterministic() -> None:
    driver = CpuDriver()
    info = driver.probe({})[0]
    assert driver.compile(info, segment(model())) == driver.compile(info, segment(model()))


@pytest.mark.parametrize("kept", ["blk.0.norm", "blk.0.q", "blk.0.q.bias", "blk.0.k.bias.rope", "blk.0.gate"])
def test_a_value_that_leaves_the_segment_is_made(kept: str) -> None:
    lowered = lower(segment(model(), ("logits", kept)))
    assert kept in {s.out for s in lowered.steps}


def test_no_two_values_alive_at_once_share_memory() -> None:
    driver = CpuDriver()
    program = driver.compile(driver.probe({})[0], segment(model(4)))
    steps, phases = with_barriers(lower(segment(model(4))).steps)
    lives = lifetimes(steps, phases)
    ends = {v.name: (v.offset, v.offset + v.nbytes) for v in program.values if v.offset is not None}
    for i, rope in enumerate(program.ropes):
        ends[f"rope:{i}"] = (rope.offset, rope.offset + 8 * rope.n_pairs * 8)
    assert_apart(ends, lives)
    assert max(end for _, end in ends.values()) <= program.arena_bytes


def assert_apart(ends: dict[str, tuple[int, int]], lives: dict[str, Lifetime]) -> None:
    names = sorted(ends)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if lives[a].overlaps(lives[b]):
                assert ends[a][1] <= ends[b][0] or ends[b][1] <= ends[a][0], (a, b)


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(0, 5000)), min_size=1, max_size=40
    )
)  # fmt: skip
def test_placing_keeps_values_apart(values: list[tuple[int, int, int]]) -> None:
    lives = {f"v{i}": Lifetime(first, first + length) for i, (first, length, _) in enumerate(values)}
    sizes = {f"v{i}": size for i, (_, _, size) in enumerate(values)}
    offsets, total = place(sizes, lives)
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
    assert_apart({n: (offsets[n], offsets[n] + sizes[n]) for n in sizes}, lives)
    assert total >= max(offsets[n] + sizes[n] for n in sizes)


def test_no_step_reads_what_another_thread_may_still_write() -> None:
    steps, phases = with_barriers(lower(segment(model(3))).steps)
    for i, step in enumerate(steps):
        for j in range(i):
            if phases[i] == phases[j]:
                shared = step_reads(step) & step_writes(steps[j])
                # A matmul waits for the scratch of its PREPARE by a flag of its own.
                assert shared <= {step.inputs[0]} if step.kind is Kind.MATMUL else not shared


def test_the_first_matmul_of_a_prepare_waits_for_it() -> None:
    steps = lower(segment(model(2))).steps
    for before, step in pairwise(steps):
        if before.kind is Kind.PREPARE:
            assert step.kind is Kind.MATMUL
            assert step.flags & Flag.BARRIER_IF_SHARED


def test_an_input_that_nothing_makes_is_refused() -> None:
    ops = model()[1:]
    driver = CpuDriver()
    with pytest.raises(DeviceError, match=r"blk\.0\.norm reads embed"):
        driver.compile(driver.probe({})[0], segment(ops))
