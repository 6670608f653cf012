"""What plugins share that have a native library: whether it can be used, and addresses of the memory that it is given.

Without NumPy, which small boards may lack.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable

from hetrun.errors import HetrunError


def first_problem(*loads: Callable[[], object]) -> HetrunError | None:
    """Why the first of these that fails cannot be loaded, or None."""
    for load in loads:
        try:
            load()
        except HetrunError as error:
            return error
    return None


class _PyBuffer(ctypes.Structure):
    """Py_buffer of CPython."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]
_release_buffer.restype = None
_CONTIGUOUS, _WRITABLE = 0, 1  # PyBUF_SIMPLE, PyBUF_WRITABLE


def address_of(view: memoryview) -> int:
    """The address of a one-dimensional view, which is good as long as the view is."""
    whole = view.obj
    if isinstance(whole, array) and view.nbytes == len(whole) * whole.itemsize and view.c_contiguous:
        return whole.buffer_info()[0]
    pinned = Pinned(view)
    pinned.close()
    return pinned.address


class Pinned:
    """The address of a Python buffer, which stays where it is until `close`. BufferError where it is not contiguous."""

    def __init__(self, view: memoryview, writable: bool = False) -> None:
        self._buffer = _PyBuffer()
        self._open = False
        _get_buffer(view, ctypes.byref(self._buffer), _WRITABLE if writable else _CONTIGUOUS)
        self._open = True
        self.address = int(self._buffer.buf or 0)
        self.nbytes = int(self._buffer.len)

    def close(self) -> None:
        if self._open:
            self._open = False
            _release_buffer(ctypes.byref(self._buffer))

    def __del__(self) -> None:
        self.close()


def clear(view: memoryview) -> None:
    """Makes all bytes of a contiguous view 0."""
    if view.nbytes:
        ctypes.memset(address_of(view), 0, view.nbytes)
