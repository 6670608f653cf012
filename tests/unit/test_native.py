"""What plugins with a native library share."""

from __future__ import annotations

import ctypes
from array import array

import numpy as np
import pytest

from hetrun.errors import HetrunError
from hetrun.native import Pinned, address_of, clear, first_problem


@pytest.mark.parametrize("make", [lambda: bytearray(range(16)), lambda: array("B", range(16))], ids=["bytes", "array"])
def test_address_is_where_the_bytes_stand(make: object) -> None:
    buffer = make()  # type: ignore[operator]
    for view in (memoryview(buffer), memoryview(buffer)[5:9]):
        assert ctypes.string_at(address_of(view), view.nbytes) == bytes(view)


def test_a_view_with_gaps_has_no_address() -> None:
    with pytest.raises(BufferError):
        address_of(memoryview(bytearray(16))[::2])
    with pytest.raises(BufferError):
        address_of(memoryview(np.zeros((4, 4), np.float32)[:, :2]))


def test_a_pinned_buffer_stays_until_it_is_closed() -> None:
    buffer = bytearray(8)
    pin = Pinned(memoryview(buffer), writable=True)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    pin.close()
    buffer.extend(b"more")
    with pytest.raises(BufferError):
        Pinned(memoryview(bytes(8)), writable=True)


def test_clear_is_of_the_view_alone() -> None:
    buffer = bytearray(b"\xff" * 8)
    clear(memoryview(buffer)[2:5])
    clear(memoryview(buffer)[8:])
    assert buffer == b"\xff\xff\0\0\0\xff\xff\xff"


def test_the_first_problem_is_told() -> None:
    def fails() -> None:
        raise HetrunError("gone")

    def unreached() -> None:
        raise AssertionError

    problem = first_problem(lambda: 1, fails, unreached)
    assert problem is not None and problem.message == "gone"
    assert first_problem(lambda: 1) is None
