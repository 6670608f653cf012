"""Sessions over mixed devices: the same logits whatever the placement, several sequences, rollback and reuse.

The oracle is the reference device alone, run on each sequence apart; every device here computes with it, so that values
must be equal and only the session's own work (segments, copies, waits, positions) can make a difference.
"""

from __future__ import annotations

import numpy as np
import pytest
import remote
from null.graphs import metadata, tensors

from hetrun.device import Batch
from hetrun.errors import ContextError, DeviceError, PlanError, PluginError
from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.plan.place import Pin, Request, make_plan
from hetrun.run.build import build
from hetrun.run.session import Session

TOKENS = [5, 17, 3, 99, 250, 17, 64, 8, 1, 300, 42]


def random_weights(weights, seed=0):
    rng = np.random.default_rng(seed)
    return {
        w.name: (1 + 0.1 * rng.standard_normal(w.shape) if len(w.shape) == 1 else 0.2 * rng.standard_normal(w.shape))
        .astype(np.float32)
        .tobytes()
        for w in weights.values()
    }


WEIGHTS = tensors(n_layers=3, type_name="F32")
BLOCKS = random_weights(WEIGHTS)


def open_session(devices, pins=(), *, max_tokens=16, max_outputs=16, **options):
    options = GraphOptions(**{"n_ctx": 64, "max_tokens": max_tokens, "kv_format": "f32", **options})
    graph = build_graph("llama", metadata(n_layers=3), WEIGHTS, options, architectures())
    plan = make_plan(graph, devices, Request(), [Pin.parse(p) for p in pins])
    return Session(build(graph, plan, devices, lambda n: memoryview(BLOCKS[n]), max_tokens, max_outputs))


def run_all(session, tokens, slot=0):
    """Logits after each token, [n, n_vocab]."""
    session.truncate(slot, 0)
    batch = Batch.of(tokens, range(len(tokens)), [slot] * len(tokens), range(len(tokens)))
    return np.asarray(session.step(batch)).reshape(len(tokens), -1).copy()


def last(session, tokens, slot=0):
    return np.asarray(session.feed(tokens, slot)).copy()


@pytest.fixture(scope="module")
def expected():
    with open_session([remote.reference()]) as session:
        return run_all(session, TOKENS)


MIXES = {
    "ffn-behind": (["behind"], ["blk.*.ffn_*=behind"]),
    "ffn-beside": (["beside"], ["blk.*.ffn_*=beside"]),
    "alternating-layers": (["behind", "beside"], ["blk.0.*=behind", "blk.1.*=beside"]),
    "all-behind": (["behind"], ["*=behind"]),
    "all-beside": (["beside"], ["*=beside"]),
    "matmuls-behind-norms-beside": (["behind", "beside"], ["*attn_[qkv]=behind", "*_norm=beside", "output=behind"]),
    "two-discrete": (["behind", "far"], ["blk.0.*=behind", "blk.1.*=far", "*ffn_act=behind"]),
    "two-overlays": (["beside", "next"], ["*attn_[qkv]=beside", "*_rope=next"]),
    "attention-behind": (["behind"], ["*.attn=behind"]),
}  # fmt: skip


def mix(name):
    names, pins = MIXES[name]
    made = {"behind": remote.behind, "far": remote.behind, "beside": remote.beside, "next": remote.beside}
    return [remote.reference(), *(made[n](n) for n in names)], pins


@pytest.mark.parametrize("name", MIXES)
def test_a_mixed_plan_gives_the_logits_of_one_device(name, expected):
    devices, pins = mix(name)
    with open_session(devices, pins) as session:
        assert len(session.runtime.plan.used_devices) > 1 or name.startswith("all")
        np.testing.assert_array_equal(run_all(session, TOKENS), expected)
        # and step by step, through the decode phase
        session.truncate(0, 0)
        stepped = np.stack([last(session, [t]) for t in TOKENS])
        np.testing.assert_allclose(stepped, expected, atol=2e-5)


@pytest.mark.parametrize(("pins", "width"), [("*attn_[qk]=behind", 64 + 32), ("*attn_[qv]=behind", 64 + 32)])
def test_a_value_read_twice_behind_a_link_is_copied_once(pins, width):
    """In one segment (q and k stand together) and in two (k stands between q and v)."""
    devices = [remote.reference(), remote.behind()]
    with open_session(devices, [pins]) as session:
        session.record()
        last(session, TOKENS[:1])
        [record] = session.trace.steps
        # the norm up, two results down, in each of three layers
        assert len(record.copies) == 3 * 3
        assert sum(c.nbytes for c in record.copies) == 4 * 3 * (64 + width)
        assert {(c.source, c.target) for c in record.copies} == {
            ("reference:0", "behind:0"),
            ("behind:0", "reference:0"),
        }
        assert record.phase == "decode"


def test_prefill_in_chunks_is_prefill_in_one(expected):
    with open_session([remote.reference()], max_tokens=4) as session:
        np.testing.assert_allclose(last(session, TOKENS), expected[-1], atol=2e-5)
        assert session.length() == len(TOKENS)


def test_several_sequences_in_one_batch_do_not_see_each_other(expected):
    other = [7, 7, 200, 31]
    with open_session([remote.reference()]) as session:
        alone = run_all(session, other)
    with open_session([remote.reference()], n_slots=3) as session:
        tokens, positions, slots = [], [], []
        for i in range(len(TOKENS)):  # interleaved, slot 2 starts later and slot 1 stays empty
            tokens.append(TOKENS[i])
            positions.append(i)
            slots.append(0)
            if i < len(other):
                tokens.append(other[i])
                positions.append(i)
                slots.append(2)
        logits = np.asarray(session.step(Batch.of(tokens, positions, slots, range(len(tokens)))))
        logits = logits.reshape(len(tokens), -1)
        np.testing.assert_allclose(logits[np.array(slots) == 0], expected, atol=2e-5)
        np.testing.assert_allclose(logits[np.array(slots) == 2], alone, atol=2e-5)
        assert [session.length(s) for s in range(3)] == [len(TOKENS), 0, len(other)]


def test_rollback_forgets_what_came_after(expected):
    with open_session([remote.reference()]) as session:
        last(session, [*TOKENS[:6], 111, 222, 33])
        session.truncate(0, 6)
        np.testing.assert_allclose(last(session, TOKENS[6:]), expected[-1], atol=2e-5)


def test_an_earlier_position_in_a_batch_takes_back_what_followed(expected):
    with open_session([remote.reference()]) as session:
        last(session, [*TOKENS[:6], 111, 222])
        rest = TOKENS[6:]
        batch = Batch.of(rest, range(6, len(TOKENS)), [0] * len(rest), [len(rest) - 1])
        np.testing.assert_allclose(np.asarray(session.step(batch)), expected[-1], atol=2e-5)
        assert list(session.tokens()) == TOKENS


def test_a_prefix_is_shared_between_slots(expected):
    with open_session([remote.reference()], n_slots=2) as session:
        last(session, [*TOKENS[:5], 9])
        session.copy(0, 1, 5)
        np.testing.assert_allclose(last(session, TOKENS[5:], slot=1), expected[-1], atol=2e-5)
        assert list(session.tokens(0)) == [*TOKENS[:5], 9]


def test_reuse_keeps_the_common_prefix_but_always_one_token_to_run(expected):
    with open_session([remote.reference()]) as session:
        last(session, [*TOKENS[:7], 111])
        assert session.reuse(TOKENS) == 7
        np.testing.assert_allclose(last(session, TOKENS[7:]), expected[-1], atol=2e-5)
        assert session.reuse(TOKENS) == len(TOKENS) - 1
        assert session.reuse([1, 2, 3]) == 0


def test_a_failed_step_is_repeated(expected):
    devices = [remote.reference(), remote.behind()]
    with open_session(devices, ["blk.1.*=behind"]) as session:
        last(session, TOKENS[:4])
        [device] = devices[1].driver.opened
        flush = device.flush
        device.flush = lambda: (_ for _ in ()).throw(DeviceError("the cable was pulled"))
        with pytest.raises(DeviceError, match="cable"):
            session.feed(TOKENS[4:])
        device.flush = flush
        assert session.length() == 4
        np.testing.assert_allclose(last(session, TOKENS[4:]), expected[-1], atol=2e-5)


def test_no_outputs_and_no_tokens_are_legal():
    with open_session([remote.reference(), remote.behind()], ["blk.1.*=behind"]) as session:
        assert len(session.step(Batch.of([3], [0], [0], []))) == 0
        assert len(session.step(Batch.of([], [], [], []))) == 0
        assert session.length() == 1


def test_windowed_sessions_refuse_to_go_back_too_far():
    with open_session([remote.reference()], window=8, sink=2, max_rollback=4, max_tokens=4) as session:
        for token in range(1, 31):
            last(session, [token])
        with pytest.raises(ContextError, match="dropped"):
            session.truncate(0, 20)
        assert session.reuse([*range(1, 21), 99]) == 0
        for token in range(1, 31):
            last(session, [token])
        session.truncate(0, 28)
        again = last(session, [29])
    with open_session([remote.reference()], window=8, sink=2, max_rollback=4, max_tokens=4) as session:
        np.testing.assert_allclose([last(session, [t]) for t in range(1, 30)][-1], again, atol=2e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch.of([1], [1], [0], [0]), "holds 0 tokens"),
        (Batch.of([1, 1], [0, 2], [0, 0], [0]), "position 2 follows 0"),
        (Batch.of([1], [0], [1], [0]), "no slot 1"),
        (Batch.of([1], [0], [-1], [0]), "no slot -1"),
        (Batch.of([1], [-1], [0], [0]), "holds 0 tokens, not -1"),
        (Batch.of([1], [0], [0], [1]), "outputs"),
        (Batch.of([1] * 17, range(17), [0] * 17, [0]), "a step of 17 tokens"),
    ],
    ids=["gap-at-start", "gap", "slot", "negative-slot", "negative-position", "output", "too-many"],
)
def test_a_batch_that_makes_no_sense_is_refused_and_nothing_is_lost(batch, message):
    with open_session([remote.reference()]) as session:
        with pytest.raises(ContextError, match=message):
            session.step(batch)
        assert session.length() == 0


def test_the_context_is_a_hard_limit():
    with open_session([remote.reference()], n_ctx=16) as session:
        last(session, list(range(16)))
        with pytest.raises(ContextError, match="17 tokens do not fit a context of 16"):
            session.feed([1])
        with pytest.raises(ContextError, match="no tokens"):
            session.feed([])


def test_everything_is_closed_when_building_fails():
    devices = [remote.reference(), remote.behind()]
    devices[1].driver.compile = lambda info, segment: 1 / 0
    with pytest.raises(PluginError, match=r"behind:0.*ZeroDivisionError.*conformance"):
        open_session(devices, ["blk.1.*=behind"])
    assert [d.closed for d in devices[1].driver.opened] == [True]


def test_a_device_without_memory_says_so():
    with pytest.raises(PlanError, match="memory"):
        open_session([remote.reference()], n_ctx=64, n_slots=1 << 40)


def test_closing_twice_is_fine():
    session = open_session([remote.reference()])
    session.close()
    session.close()
