"""Encodes a prompt in a child process while this one loads the model.

Building a tokenizer's encoder takes 0.1 s and 20 MB or more, for one short text. In a child the time overlaps with the
loading of the model, and the memory is given back whole: this process never holds encoder and weights together.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable

_DONE = b"\n"  # begins the child's answer; a child that failed gives none


class EncodeAhead:
    """Runs `encode` in a forked child from now on; `ids` waits for its result.

    Make it while the process has one thread. Where there is no fork, or the child failed for any reason, `ids` calls
    `encode` here, so that errors are raised where the user sees them.
    """

    def __init__(self, encode: Callable[[], list[int]]) -> None:
        self._encode = encode
        self._child: tuple[int, int] | None = _fork(encode) if hasattr(os, "fork") else None

    def ids(self) -> list[int]:
        """What `encode` returns, or raises."""
        answer = self._answer()
        if not answer.startswith(_DONE):
            return self._encode()
        ids = array("i")
        ids.frombytes(answer[len(_DONE) :])
        return ids.tolist()

    def close(self) -> None:
        """Waits for the child where `ids` did not."""
        self._answer()

    def _answer(self) -> bytes:
        if self._child is None:
            return b""
        pid, reader = self._child
        self._child = None
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        return answer


def _fork(encode: Callable[[], list[int]]) -> tuple[int, int]:
    """(pid of the child, file descriptor of its answer)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    # The child ends here whatever happens: no exit handlers, no traceback, no second flush of the parent's output.
    try:
        os.close(reader)
        answer = _DONE + array("i", encode()).tobytes()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)
