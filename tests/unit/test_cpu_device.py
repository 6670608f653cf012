"""The cpu driver and device: probing, refusals, errors, lifecycle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpu_rig import ISAS, Rig, tokens, weight

from hetrun.device import Batch, Bindings, Cost, Unsupported, Workload
from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import Attention, Embedding, KvSpec, MatMul, Op, RmsNorm, Rope, Value
from hetrun_cpu import host, native
from hetrun_cpu.driver import CpuDriver, most_threads

X = Value("x", 64)
W = weight("w", "Q4_0", 8, 64)
STEP = Workload(1, 10)


def probe(**config: object):  # type: ignore[no-untyped-def]
    return CpuDriver().probe(config)[0]


def test_probe_names_threads_isa_and_memory() -> None:
    info = probe(threads=3, isa=ISAS[0])
    assert info.unavailable is None
    assert (info.id, info.model["threads"], info.model["isa"]) == ("cpu:0", 3.0, native.ISA_NAMES.index(ISAS[0]))
    assert "3 threads" in info.description
    assert info.spaces[0].name == "host"
    assert 1 << 26 < info.spaces[0].capacity_bytes < 1 << 50


@pytest.mark.parametrize("threads", [0, -1, most_threads() + 1, 1025, "two", 1.5, True])
def test_impossible_threads_make_it_unavailable(threads: object) -> None:
    info = probe(threads=threads)
    assert info.unavailable is not None
    assert repr(threads) in info.unavailable.reason
    with pytest.raises(DeviceError, match=f"1 to {most_threads()}"):
        CpuDriver().open(info)


def test_threads_go_by_the_processors_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert probe(threads=12).unavailable is None
    refused = probe(threads=13).unavailable
    assert refused is not None and "13 threads" in refused.reason and "1 to 12" in refused.remedy
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(600)))
    assert probe(threads=1024).unavailable is None
    assert probe(threads=1025).unavailable is not None


@pytest.mark.parametrize("isa", ["sse9", *(set(native.ISA_NAMES) - set(ISAS))])
def test_an_isa_that_the_machine_lacks_makes_it_unavailable(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRUN_CPU_ISA", isa)
    info = probe()
    assert info.unavailable is not None
    assert isa in info.unavailable.reason
    assert ISAS[0] in info.unavailable.remedy


SMALL_SIGNAL_STACK = """
import ctypes
from hetrun_cpu import native
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("nbytes", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
print(*native.isa_names())
"""


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa == "amx"])
def test_tiles_that_a_signal_handler_has_no_room_for_are_not_used(isa: str) -> None:
    done = subprocess.run([sys.executable, "-c", SMALL_SIGNAL_STACK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name for name in ISAS if name != isa]


def test_an_unknown_setting_is_named() -> None:
    info = probe(thread=2)
    assert info.unavailable is not None
    assert "thread" in info.unavailable.reason


def test_without_its_library_the_device_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRUN_CPU_LIBRARY", "/nowhere/libhetrun_cpu.so")
    native.library.cache_clear()
    try:
        info = probe()
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    assert info.unavailable is not None
    assert "/nowhere" in info.unavailable.reason
    assert info.unavailable.remedy


def test_a_modelled_device_does_not_open() -> None:
    with pytest.raises(DeviceError, match="only modelled"):
        CpuDriver().open(replace(probe(), backing="modelled"))


def test_usable_cores_follow_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= host.usable_cores() <= len(before)


def test_usable_cores_follow_the_cgroup_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000, 1008)))
    assert host.usable_cores() == 2


@pytest.mark.parametrize(
    ("op", "word"),
    [
        (MatMul("y", Value("x", 256), weight("w", "Q8_K", 8, 256)), "Q8_K"),
        (MatMul("y", Value("x", 48), weight("w", "Q4_0", 8, 48)), "multiple"),
        (Embedding("y", weight("w", "Q1_0", 8, 128)), "Q1_0"),
        (RmsNorm("y", X, weight("w", "I32", 64), 1e-5), "I32"),
        (Attention("y", X, X, X, KvSpec("kv", 1, 8, 1, 64, "kv2"), 1.0), "kv2"),
        (Attention("y", Value("a", 40), X40 := Value("b", 40), X40, KvSpec("kv", 1, 8, 1, 40, "q8_0"), 1.0), "40"),
        (Attention("y", Value("a", 35), X35 := Value("b", 35), X35, KvSpec("kv", 1, 8, 1, 35, "kv4"), 1.0), "even"),
        (Attention("y", Value("a", 40), X40, X40, KvSpec("kv", 1, 8, 1, 40, "kv4h"), 1.0), "power of two"),
    ],
    ids=["type", "ragged", "embedding-type", "norm-type", "kv-format", "q8_0-head", "kv4-head", "kv4h-head"],
)
def test_what_cannot_run_is_refused_with_its_reason(op: Op, word: str) -> None:
    answer = CpuDriver().estimate(probe(), op, STEP)
    assert isinstance(answer, Unsupported)
    assert word in answer.reason


def test_decode_of_a_matmul_is_priced_by_its_bytes() -> None:
    driver, info = CpuDriver(), probe()
    wide = MatMul("y", Value("x", 4096), weight("w", "Q4_0", 4096, 4096))
    cost = driver.estimate(info, wide, STEP)
    assert isinstance(cost, Cost)
    assert cost.basis.startswith("analytic:")
    assert cost.resident == {("host", "w"): wide.weight.nbytes}
    assert cost.seconds >= wide.weight.nbytes / info.model["bytes_per_s"]


def kv_rig() -> Rig:
    kv = KvSpec("kv", 2, 8, 1, 64, window=2, slack=2)
    full = KvSpec("full", 2, 8, 1, 64)
    embed = Embedding("e", weight("table", "F16", 5, 64))
    rope = Rope("r", embed.output, 64, "half", (1.0, 0.5))
    first = Attention("a", rope.output, embed.output, embed.output, kv, 1.0)
    return Rig([embed, rope, first, Attention("y", first.output, first.output, first.output, full, 1.0)], max_tokens=6)


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        (Batch.of([5], [0], [0], []), "token 0"),
        (Batch.of([0, -1], [0, 1], [0, 0], []), "token 1"),
        (Batch.of([0], [8], [0], []), "position"),
        (Batch.of([0], [-1], [0], []), "position"),
        (Batch.of([0, 0], [0, 2], [0, 0], []), "position"),
        (Batch.of([0, 0], [1, 0], [0, 0], []), "position"),
        (Batch.of([0], [0], [2], []), "slot"),
        (Batch.of([0], [0], [-1], []), "slot"),
        (Batch.of([0], [0], [0], [1]), "output 0"),
        (Batch.of([0, 0], [0, 1], [0, 0], [1, 0]), "output 1"),
        (Batch.of([0, 0], [0, 1], [0, 0], [1, 1]), "output 1"),
        (Batch.of([0] * 7, range(7), [0] * 7, []), "more tokens"),
        (Batch.of([0] * 4, range(4), [0] * 4, []), "slack"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_batch_that_does_not_fit_is_an_error_and_not_a_crash(batch: Batch, word: str) -> None:
    with kv_rig() as rig:
        good = rig.run(tokens(3))
        with pytest.raises(DeviceError, match=word):
            rig.executable.run(batch)
        np.testing.assert_array_equal(rig.run(tokens(3)), good)


def test_a_batch_of_other_integers_is_refused() -> None:
    wide = memoryview(np.zeros(1, np.int64))
    with kv_rig() as rig, pytest.raises(DeviceError, match="int32"):
        rig.executable.run(Batch(wide, wide, wide, wide))


@pytest.mark.parametrize("nbytes", [1 << 62, 1 << 100, -1])
def test_memory_that_there_is_not(nbytes: int) -> None:
    device = CpuDriver().open(probe())
    with pytest.raises(AllocationError):
        device.alloc(nbytes)
    device.close()


@pytest.mark.parametrize("n_ctx", [1 << 30, 1 << 62, 1 << 90])
def test_a_kv_cache_that_does_not_fit(n_ctx: int) -> None:
    device = CpuDriver().open(probe())
    with pytest.raises(DeviceError):
        device.state(KvSpec("kv", 1 << 20, n_ctx, 64, 128))
    device.close()


def test_a_buffer_holds_what_was_written_within_its_bounds() -> None:
    device = CpuDriver().open(probe())
    buffer = device.alloc(8)
    view = buffer.host_view()
    assert view is not None and view.nbytes == 8 and not view.readonly
    assert bytes(view) == bytes(8)
    buffer.write(memoryview(b"abc"), 5)
    out = bytearray(4)
    buffer.read(memoryview(out), 4)
    assert out == b"\0abc"
    for offset in (-1, 6):
        with pytest.raises(ValueError, match="beyond"):
            buffer.write(memoryview(b"abc"), offset)
        with pytest.raises(ValueError, match="beyond"):
            buffer.read(memoryview(bytearray(3)), offset)
    device.close()
    assert bytes(view[5:]) == b"abc"  # a view outlives its buffer


def test_everything_closes_twice_and_is_an_error_afterwards() -> None:
    rig = kv_rig()
    buffer = rig.buffers["y"]
    state = rig.states["kv"]
    for _ in range(2):
        rig.device.close()
        rig.executable.close()
        buffer.close()
        state.close()
    for call in (
        lambda: rig.executable.run(tokens(1)),
        lambda: buffer.host_view(),
        lambda: state.copy(0, 1, 1),
        lambda: rig.device.alloc(1),
        lambda: rig.device.state(KvSpec("kv", 1, 1, 1, 1)),
        lambda: rig.device.load(rig.program, {}, None),  # type: ignore[arg-type]
        lambda: rig.device.synchronize(),
    ):
        with pytest.raises(DeviceError, match="closed"):
            call()


def test_closing_a_state_closes_what_runs_on_it() -> None:
    with kv_rig() as rig:
        rig.states["kv"].close()
        with pytest.raises(DeviceError, match="closed"):
            rig.executable.run(tokens(1))


@pytest.mark.parametrize("slots", [(0, 2, 1), (2, 0, 1), (0, 1, 9), (-1, 0, 1), (0, 1, -1)])
def test_a_copy_beyond_the_cache_is_an_error(slots: tuple[int, int, int]) -> None:
    with kv_rig() as rig, pytest.raises(DeviceError, match="copy"):
        rig.states["kv"].copy(*slots)


@pytest.mark.parametrize("missing", ["weight", "short-weight", "value", "state"])
def test_what_is_not_bound_is_named(missing: str) -> None:
    with kv_rig() as rig:
        weights, values, states = dict(rig.weights), dict(rig.buffers), dict(rig.states)
        if missing == "weight":
            del weights["table"]
        elif missing == "short-weight":
            weights["table"] = weights["table"][:-1]
        elif missing == "value":
            values["y"] = rig.device.alloc(4)
        else:
            states["kv"] = rig.device.state(KvSpec("kv", 1, 8, 1, 64))
        with pytest.raises(DeviceError, match=r"table|value y|KV cache kv"):
            rig.device.load(rig.program, weights, Bindings(values, states))


def test_runs_are_timed() -> None:
    with Rig([MatMul("y", X, W)], [X]) as rig:
        rig.run(tokens(2))
        rig.run(tokens(1))
        events = rig.events()
        assert [e.segment for e in events] == ["test", "test"]
        assert all(e.basis == "measured:cpu" and 0 < e.seconds < 60 for e in events)
        assert all(e.steps is None for e in events)
        assert not rig.events()


def test_two_devices_run_side_by_side() -> None:
    x = np.ones((4, 64), np.float32)
    with Rig([MatMul("y", X, W)], [X], threads=2) as one, Rig([MatMul("y", X, W)], [X], threads=3) as two:
        want = one.run(tokens(4), x=x)
        results: list[np.ndarray] = []

        def work() -> None:
            for _ in range(200):
                two.executable.run(tokens(4))
            results.append(two.run(tokens(4), x=x))

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(200):
            np.testing.assert_array_equal(one.run(tokens(4), x=x), want)
        thread.join()
    np.testing.assert_array_equal(results[0], want)


def test_a_forked_child_runs_with_threads_of_its_own() -> None:
    x = np.ones((4, 64), np.float32)
    with Rig([MatMul("y", X, W)], [X], threads=1) as alone:
        want = alone.run(tokens(4), x=x)
    with Rig([MatMul("y", X, W)], [X], threads=3) as rig:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a child that waits for the parent's threads waits for ever
            os._exit(0 if np.array_equal(rig.run(tokens(4), x=x), want) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(rig.run(tokens(4), x=x), want)


def test_closing_a_device_ends_its_threads() -> None:
    before = len(os.listdir("/proc/self/task"))
    rig = Rig([MatMul("y", X, W)], [X], threads=5)
    assert len(os.listdir("/proc/self/task")) == before + 4
    rig.device.close()
    assert len(os.listdir("/proc/self/task")) == before
