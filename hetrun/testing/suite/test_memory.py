"""Buffers and states: bounds, order, failure and release."""

from __future__ import annotations

import pytest

from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import Attention, Workload
from hetrun.testing.cases import Heads, attention_op
from hetrun.testing.memory import read_all
from hetrun.testing.oracle import nmse
from hetrun.testing.rig import Rig, oracle_for

_ABSURD_BYTES = 1 << 60
_DATA = bytes(range(256)) * 4


def test_written_bytes_are_read(rig: Rig) -> None:
    buffer = rig.device.alloc(len(_DATA))
    buffer.write(memoryview(_DATA))
    assert buffer.nbytes == len(_DATA)
    assert read_all(buffer) == _DATA
    buffer.close()


def test_offsets(rig: Rig) -> None:
    """A write at an offset changes those bytes alone, and a read at one returns them."""
    buffer = rig.device.alloc(len(_DATA))
    buffer.write(memoryview(_DATA))
    buffer.write(memoryview(b"hetrun"), 101)
    out = bytearray(8)
    buffer.read(memoryview(out), 100)
    assert bytes(out) == _DATA[100:101] + b"hetrun" + _DATA[107:108]
    assert read_all(buffer) == _DATA[:101] + b"hetrun" + _DATA[107:]
    buffer.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 65), (60, 5), (64, 1), (1 << 40, 1), (-1, 4)])
def test_write_beyond_the_end_is_refused(rig: Rig, offset: int, nbytes: int) -> None:
    """ValueError, and nothing is written."""
    buffer = rig.device.alloc(64)
    buffer.write(memoryview(_DATA[:64]))
    with pytest.raises(ValueError):
        buffer.write(memoryview(bytes(nbytes)), offset)
    assert read_all(buffer) == _DATA[:64]
    buffer.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 65), (60, 5), (64, 1), (1 << 40, 1), (-1, 4)])
def test_read_beyond_the_end_is_refused(rig: Rig, offset: int, nbytes: int) -> None:
    """ValueError, and the caller's memory stays as it was."""
    buffer = rig.device.alloc(64)
    out = bytearray(b"x" * nbytes)
    with pytest.raises(ValueError):
        buffer.read(memoryview(out), offset)
    assert out == b"x" * nbytes
    buffer.close()


def test_host_view_shows_the_bytes(rig: Rig) -> None:
    """A view, where there is one, is writable, of format "B", and the same memory."""
    buffer = rig.device.alloc(64)
    view = buffer.host_view()
    if view is None:
        buffer.close()
        pytest.skip("the host does not address this memory")
    assert (view.nbytes, view.format, view.readonly) == (64, "B", False)
    view[3:9] = b"hetrun"
    out = bytearray(6)
    buffer.read(memoryview(out), 3)
    assert bytes(out) == b"hetrun"
    del view
    buffer.close()


def test_buffers_are_apart(rig: Rig) -> None:
    """Buffers that are open at the same time share no byte."""
    buffers = [rig.device.alloc(96) for _ in range(5)]
    for i, buffer in enumerate(buffers):
        buffer.write(memoryview(bytes([i]) * 96))
    assert [read_all(b) for b in buffers] == [bytes([i]) * 96 for i in range(5)]
    for buffer in buffers:
        buffer.close()


def test_op_on_the_devices_own_buffers(rig: Rig) -> None:
    """Buffers of `alloc` serve a run, whatever memory they are."""
    case = rig.any_case()
    values = (*case.segment.inputs, *case.segment.outputs)
    buffers = {v.name: rig.device.alloc(case.segment.value_bytes(v)) for v in values}
    with rig.loaded(case.segment, buffers) as loaded:
        result = loaded.step(case.batch, case.inputs())[case.op.name]
    expected = oracle_for(case.segment).run([case.op], case.inputs(), case.batch)[case.op.name]
    assert nmse(result, expected) <= rig.bound([case.op])
    for buffer in buffers.values():
        buffer.close()


def test_buffer_closes_twice(rig: Rig) -> None:
    """The second close frees nothing that is now somebody else's."""
    first = rig.device.alloc(96)
    first.close()
    first.close()
    second, third = rig.device.alloc(96), rig.device.alloc(96)
    second.write(memoryview(b"2" * 96))
    first.close()
    third.write(memoryview(b"3" * 96))
    assert read_all(second) == b"2" * 96
    second.close()
    third.close()


def test_closed_buffer_is_refused(rig: Rig) -> None:
    """DeviceError, not old bytes or a crash."""
    buffer = rig.device.alloc(96)
    buffer.close()
    with pytest.raises(DeviceError):
        buffer.write(memoryview(b"1" * 96))
    with pytest.raises(DeviceError):
        buffer.read(memoryview(bytearray(96)))


def test_absurd_buffer_is_refused(rig: Rig) -> None:
    """AllocationError, and the device goes on."""
    with pytest.raises(AllocationError):
        rig.device.alloc(_ABSURD_BYTES)
    rig.check_usable()


def test_absurd_state_is_refused(rig: Rig) -> None:
    """AllocationError for a cache of petabytes whose every number is in range, and the device goes on."""
    heads = Heads(64, 64, 256)
    ops = [attention_op(heads, format, n_ctx=1 << 30, n_slots=64) for format in ("f32", "f16", "q8_0")]
    accepted = [op for op in ops if rig.refusal(op, Workload(1, 0)) is None]
    if not accepted:
        pytest.skip("refused: attention in every format")
    with pytest.raises(AllocationError):
        rig.device.state(accepted[0].kv)
    rig.check_usable()


def test_closed_buffers_give_their_memory_back(rig: Rig) -> None:
    """A small memory can be allocated many times over, one buffer after the other."""
    space = rig.info.spaces[0]
    if rig.not_here is None and space.capacity_bytes > 1 << 30:
        pytest.skip("the memory is too large to go round")
    for _ in range(9):
        rig.device.alloc(space.capacity_bytes // 4).close()
    rig.check_usable()


def test_state_closes_twice(rig: Rig) -> None:
    op = rig.any_case(["attention"]).op
    assert isinstance(op, Attention)
    state = rig.device.state(op.kv)
    state.close()
    state.close()
    rig.check_usable()
