"""What a session records, and how devices time the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import remote
from cpu_rig import ISAS, Rig, tokens, weight
from hypothesis import given
from hypothesis import strategies as st
from sessions import N_LAYERS, WEIGHTS, cpu, graph, open_session, silent

from hetrun.device import Segment
from hetrun.ops import Attention, MatMul, RmsNorm, Value, Workload
from hetrun.run.predict import groups_of
from hetrun_cpu.lower import lower
from hetrun_cpu.steps import Kind


def test_nothing_is_kept_unless_asked_for_and_recording_can_end() -> None:
    with open_session([remote.reference()]) as session:
        session.feed([1, 2])
        assert session.trace.steps == []
        session.record()
        session.feed([3])
        session.record(False)
        session.feed([4])
        assert len(session.trace.steps) == 1


def test_a_step_says_what_ran_when() -> None:
    with open_session([remote.reference(), remote.behind()], ["blk.0.*=behind"]) as session:
        session.record()
        session.feed([5, 6, 7])
        session.feed([8])
        prefill, decode = session.trace.steps
        assert (prefill.phase, prefill.workload) == ("prefill", Workload(3, 0, 1, 1))
        assert (decode.phase, decode.workload) == ("decode", Workload(1, 3, 1, 1))
        for step in session.trace.steps:
            assert [r.device for r in step.runs] == ["reference:0", "behind:0", "reference:0"]
            moments = [step.began_s, *(t for r in step.runs for t in (r.began_s, r.ended_s)), step.ended_s]
            assert moments == sorted(moments)
            for copy in step.copies:
                assert step.began_s <= copy.began_s <= copy.ended_s <= step.ended_s
                assert all(copy.ended_s <= r.began_s or r.ended_s <= copy.began_s for r in step.runs)


def test_logits_read_from_a_device_are_a_copy_to_the_host() -> None:
    with open_session([remote.reference(), remote.behind()], ["output=behind"]) as session:
        session.record()
        session.feed([5])
        [step] = session.trace.steps
        assert [(c.value, c.source, c.target, c.nbytes) for c in step.copies][-1] == (
            "output", "behind:0", "host", 4 * session.n_vocab,
        )  # fmt: skip


def test_the_logits_are_the_same_while_recording() -> None:
    devices = [remote.reference(), remote.behind()]
    with open_session(devices, ["blk.0.*=behind"]) as session:
        plain = list(session.feed([5, 6, 7]))
        session.truncate(0, 0)
        session.record()
        assert list(session.feed([5, 6, 7])) == plain


def test_a_device_that_does_not_time_itself_is_timed_by_the_host() -> None:
    with open_session([remote.reference(), silent()], ["blk.0.*=silent"]) as session:
        session.record()
        session.feed([5])
        [run] = [r for r in session.trace.steps[0].runs if r.device == "silent:0"]
        assert run.event is None and run.seconds == run.ended_s - run.began_s > 0


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_parts_of_a_run_name_every_op_and_do_not_exceed_it(device: str) -> None:
    if device == "cpu" and not ISAS:
        pytest.skip("the native library is missing; get it with: make dev")
    with open_session([cpu() if device == "cpu" else remote.reference()]) as session:
        session.record()
        for tokens_of_step in ([5, 6, 7], [8]):
            session.feed(tokens_of_step)
            event = session.trace.steps[-1].runs[0].event
            assert event is not None and event.steps is not None
            assert {name for names in event.steps.ops for name in names} == {
                op.name for op in session.runtime.graph.ops
            }
            assert len(event.steps.seconds) == len(event.steps.ops)
            assert all(s >= 0 for s in event.steps.seconds)
            assert 0 < sum(event.steps.seconds) <= event.seconds
        session.record(False)
        session.feed([9])
        session.record()
        first, second = session.trace.steps
        assert first.runs[0].event.steps.ops is second.runs[0].event.steps.ops


@pytest.mark.skipif(not ISAS, reason="the native library is missing; get it with: make dev")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_native_step_times_tell_large_from_small(n_threads: int) -> None:
    """One matmul has 1,000 times the work of the other."""
    x = Value("x", 512)
    small, large = MatMul("s", x, weight("s", "Q8_0", 32, 512)), MatMul("l", x, weight("l", "Q8_0", 32000, 512))
    with Rig([small, large], [x], [small.output, large.output], threads=n_threads) as rig:
        rig.device.profile(True)
        shares = []
        for _ in range(5):
            rig.run(tokens(8), x=np.ones((8, 512), np.float32))
            [event] = rig.events()
            times = dict(zip(event.steps.ops, event.steps.seconds, strict=True))
            shares.append(times[("l",)] / sum(event.steps.seconds))
            assert sum(event.steps.seconds) > 0.5 * event.seconds
        assert sorted(shares)[2] > 0.8


@pytest.mark.parametrize("biases", [(), ("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up", "ffn_down")])
def test_native_steps_name_the_ops_whose_constants_they_read(biases: Sequence[str]) -> None:
    """An oracle apart from how steps are fused: weights, biases and caches belong to one op each."""
    of_matrix = {f"blk.{i}.{name}": WEIGHTS[f"blk.{i}.{name}.weight"] for i in range(N_LAYERS) for name in biases}
    made = graph({f"{name}.bias": weight(f"{name}.bias", "F32", w.shape[0]) for name, w in of_matrix.items()})
    ops = {op.name: op for op in made.ops}
    assert sum(op.kind == "bias" for op in made.ops) == N_LAYERS * len(biases)
    steps = lower(Segment("all", made.ops, (), (made.output,), 16, 16)).steps
    for step in steps:
        named = [ops[name] for name in step.ops]
        assert bool(named) == (step.kind is not Kind.ROPE_TABLE)
        read = {w.name for w in (*step.weights, *step.biases) if w is not None}
        assert read <= {w.name for op in named for w in op.weights}
        if step.state is not None:
            assert step.state in {op.kv.name for op in named if isinstance(op, Attention)}
        if step.kind is Kind.MATMUL:
            assert read == {w.name for op in named for w in op.weights}
    assert {name for step in steps for name in step.ops} == set(ops)


names = st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True).map(tuple)


@given(st.lists(names, max_size=10))
def test_ops_that_share_steps_are_one_group(steps: list[tuple[str, ...]]) -> None:
    """Against components found by spreading from each op until nothing changes."""
    x = Value("x", 4)
    ops = tuple(RmsNorm(name, x, weight(name, "F32", 4), 1e-5) for name in "abcdefgh")
    groups = groups_of(Segment("s", ops, (x,), (), 4, 4), steps)
    assert sorted(op.name for g in groups for op in g.ops) == list("abcdefgh")
    assert sorted(i for g in groups for i in g.steps or ()) == list(range(len(steps)))
    for name in {n for names in steps for n in names}:
        reached, before = {name}, set()
        while reached != before:
            before = reached
            reached = reached | {n for names in steps if set(names) & reached for n in names}
        [group] = [g for g in groups if name in g.names]
        assert set(group.names) == reached
        assert set(group.steps) == {i for i, names in enumerate(steps) if set(names) & reached}


def test_without_step_times_a_segment_is_one_group() -> None:
    x = Value("x", 4)
    ops = tuple(RmsNorm(name, x, weight(name, "F32", 4), 1e-5) for name in "ab")
    [group] = groups_of(Segment("s", ops, (x,), (), 4, 4), None)
    assert group.names == ("a", "b") and group.steps is None
