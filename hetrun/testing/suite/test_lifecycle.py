"""Opening, closing, the order of runs, and what a device does after a failure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from hetrun.device import Batch, Bindings, Device, Profiled
from hetrun.errors import DeviceError
from hetrun.ops import Attention, MatMul, Op, RmsNorm, Scale, Value, Workload
from hetrun.testing.cases import (
    BLOCKS_32,
    BLOCKS_256,
    FLOATS,
    Heads,
    attention_op,
    prompt,
    random_inputs,
    segment_of,
    weight,
)
from hetrun.testing.memory import read_rows, write_rows
from hetrun.testing.oracle import nmse
from hetrun.testing.rig import Rig, oracle_for, weights_of

BASIS = re.compile(r"(measured|simulated|analytic):\s*\S")


def test_device_closes_twice(rig: Rig) -> None:
    device = rig.open()
    device.close()
    device.close()


def test_device_opens_again(rig: Rig) -> None:
    rig.open().close()
    rig.check_usable()


def test_two_open_at_once(rig: Rig) -> None:
    """A second opening works and is apart, or raises DeviceError; the first goes on either way."""
    first = rig.open()
    try:
        second: Device | None = rig.driver.open(rig.info)
    except DeviceError:
        second = None
    mine = first.alloc(64)
    if second is not None:
        theirs = second.alloc(64)
        theirs.write(memoryview(bytes(64)))
        second.close()
    mine.write(memoryview(b"1" * 64))
    out = bytearray(64)
    mine.read(memoryview(out))
    first.close()
    assert out == b"1" * 64


def test_closed_device_refuses(rig: Rig) -> None:
    """Every method raises DeviceError after close."""
    case = rig.any_case()
    device = rig.open()
    device.close()
    program = rig.driver.compile(rig.info, case.segment)
    with pytest.raises(DeviceError):
        device.alloc(64)
    with pytest.raises(DeviceError):
        device.state(attention_op(Heads(), "f16").kv)
    with pytest.raises(DeviceError):
        device.load(program, weights_of(case.segment), Bindings({}, {}))
    with pytest.raises(DeviceError):
        device.synchronize()


def test_executable_closes_twice(rig: Rig) -> None:
    case = rig.any_case()
    with rig.loaded(case.segment) as loaded:
        loaded.executable.close()
        loaded.executable.close()
    rig.check_usable()


def test_closed_executable_refuses(rig: Rig) -> None:
    case = rig.any_case()
    with rig.loaded(case.segment) as loaded:
        loaded.step(case.batch, case.inputs())
        loaded.executable.close()
        with pytest.raises(DeviceError):
            loaded.executable.run(case.batch)
    rig.check_usable()


def test_run_after_the_device_closed_is_refused(rig: Rig) -> None:
    """DeviceError, not a crash; closing what is left does nothing."""
    case = rig.any_case()
    rig.release()
    with rig.loaded(case.segment) as loaded:
        rig.release()
        with pytest.raises(DeviceError):
            loaded.executable.run(case.batch)


def test_oversized_batch_is_refused(rig: Rig) -> None:
    """More rows than the segment was compiled for: DeviceError before anything is written, and the device goes on."""
    case = rig.any_case()
    batch = prompt(case.segment.max_tokens + 1, outputs=tuple(range(case.segment.max_outputs + 1)))
    with rig.loaded(case.segment) as loaded:
        before = {
            v.name: read_rows(loaded.buffers[v.name], v, case.segment.max_rows(v.rows)) for v in case.segment.outputs
        }
        with pytest.raises(DeviceError):
            loaded.executable.run(batch)
            loaded.device.synchronize()
        for v in case.segment.outputs:
            after = read_rows(loaded.buffers[v.name], v, case.segment.max_rows(v.rows))
            assert after.tobytes() == before[v.name].tobytes()
    rig.check_usable()


@pytest.mark.parametrize(("position", "slot"), [(64, 0), (-1, 0), (0, 4), (0, -1)])
def test_batch_outside_the_cache_is_refused(rig: Rig, position: int, slot: int) -> None:
    """A position beyond n_ctx or a slot beyond n_slots: DeviceError, and the device goes on."""
    op = rig.any_case(["attention"]).op
    assert isinstance(op, Attention)
    segment = segment_of("attention", (op,), (op.output,), prompt(1))
    with rig.loaded(segment) as loaded, pytest.raises(DeviceError):
        loaded.executable.run(Batch.of([0], [position], [slot], [0]))
        loaded.device.synchronize()
    rig.check_usable()


def test_missing_weight_is_refused(rig: Rig) -> None:
    """DeviceError at load, and the device goes on."""
    case = rig.any_case(["matmul", "rms_norm", "bias", "embedding"])
    buffers = {v.name: rig.buffer(case.segment.value_bytes(v)) for v in (*case.segment.inputs, *case.segment.outputs)}
    program = rig.driver.compile(rig.info, case.segment)
    with pytest.raises(DeviceError):
        rig.device.load(program, {}, Bindings(buffers, {}))
    rig.check_usable()


def test_truncated_weight_is_refused(rig: Rig) -> None:
    """DeviceError at load where a weight is not as long as its type and shape say."""
    case = rig.any_case(["matmul", "rms_norm", "bias", "embedding"])
    buffers = {v.name: rig.buffer(case.segment.value_bytes(v)) for v in (*case.segment.inputs, *case.segment.outputs)}
    program = rig.driver.compile(rig.info, case.segment)
    short = {name: block[: len(block) // 2] for name, block in weights_of(case.segment).items()}
    with pytest.raises(DeviceError):
        rig.device.load(program, short, Bindings(buffers, {}))
    rig.check_usable()


def test_synchronize_gives_sane_events(rig: Rig) -> None:
    """Events, where the device times itself: of segments that ran, at most one a run, and each told once."""
    case = rig.any_case()
    with rig.loaded(case.segment) as loaded:
        loaded.device.synchronize()
        for _ in range(3):
            loaded.executable.run(case.batch)
        events = list(loaded.device.synchronize())
        assert len(events) <= 3
        for event in events:
            assert event.segment == case.segment.name
            assert math.isfinite(event.seconds) and event.seconds >= 0
            assert BASIS.match(event.basis)
            assert all(isinstance(name, str) and math.isfinite(n) for name, n in event.counters.items())
        assert list(loaded.device.synchronize()) == []


def test_steps_of_a_profiled_run_are_its_parts(rig: Rig) -> None:
    """Where a device times its steps: they name its ops, the same in every run, and take no longer than it."""
    case = rig.any_case()
    names = {op.name for op in case.segment.ops}
    with rig.loaded(case.segment) as loaded:
        if not isinstance(loaded.device, Profiled):
            pytest.skip("the device times its segments as a whole")
        for on in (True, False):
            loaded.device.profile(on)
            loaded.device.synchronize()
            of_runs = []
            for _ in range(2):
                loaded.executable.run(case.batch)
                [event] = loaded.device.synchronize()
                assert (event.steps is not None) == on
                of_runs.append(event.steps and event.steps.ops)
            assert of_runs[0] is of_runs[1]
            if event.steps is not None:
                assert {name for step in event.steps.ops for name in step} <= names
                assert len(event.steps.ops) == len(event.steps.seconds)
                assert all(math.isfinite(s) and s >= 0 for s in event.steps.seconds)
                assert sum(event.steps.seconds) <= event.seconds * (1 + 1e-6)


def _chain(rig: Rig) -> tuple[Op, Op]:
    """Two ops that the device accepts, the second reading what the first makes."""
    x = Value("x", 256)
    makers: list[Callable[[str, Value], Op]] = [
        lambda name, x: Scale(name, x, 3.0),
        lambda name, x: RmsNorm(name, x, weight(name, "F32", 256), 1e-5),
        *(lambda name, x, t=t: MatMul(name, x, weight(name, t, 256, 256)) for t in (*FLOATS, *BLOCKS_32, *BLOCKS_256)),
    ]
    for make in makers:
        first = make("first", x)
        second = make("second", first.output)
        if rig.refusal(first, Workload(3, 0)) is None and rig.refusal(second, Workload(3, 0)) is None:
            return first, second
    pytest.skip("refused: every op that could follow itself")


def test_runs_keep_their_order(rig: Rig) -> None:
    """Two executables in turn, the second reading what the first wrote, without a synchronize anywhere."""
    if rig.not_here is not None:
        pytest.skip(rig.not_here)
    (first, second), batch = _chain(rig), prompt(3)
    a, b = (segment_of(op.name, (op,), (op.output,), batch) for op in (first, second))
    values = (*a.inputs, *a.outputs, *b.outputs)
    # The device's own buffers: only those wait for its runs.
    buffers = {v.name: rig.device.alloc(a.value_bytes(v)) for v in values}
    inputs = (random_inputs(a, batch)["x"], random_inputs(b, batch)[first.name])
    with rig.loaded(a, buffers) as head, rig.loaded(b, buffers) as tail:
        for x in inputs:
            write_rows(buffers["x"], x)
            head.executable.run(batch)
            tail.executable.run(batch)
        result = read_rows(buffers[second.name], second.output, batch.n_tokens)
    for buffer in buffers.values():
        buffer.close()
    ops = (first, second)
    expected = oracle_for(segment_of("both", ops, (second.output,), batch)).run(ops, {"x": inputs[-1]}, batch)[
        second.name
    ]
    assert nmse(result, expected) <= rig.bound(ops)


def test_two_executables_share_weights(rig: Rig) -> None:
    """Closing one leaves the weights of the other."""
    case = rig.any_case(["matmul", "rms_norm", "bias", "embedding"])
    expected = oracle_for(case.segment).run([case.op], case.inputs(), case.batch)[case.op.name]
    with rig.loaded(case.segment) as kept:
        with rig.loaded(case.segment) as other:
            other.step(case.batch, case.inputs())
        result = kept.step(case.batch, case.inputs())[case.op.name]
    assert nmse(result, expected) <= rig.bound([case.op])
