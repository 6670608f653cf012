"""The folder beside the new file where finished tensors wait: what a killed run has done, the next one finds there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from hetrun.errors import UsageError

_ERROR = struct.Struct("<d")
_JOB, _RESULT = "job.json", "model.gguf"


class WorkFolder:
    """Tensors by their number in the file. A context manager: one process at a time, and the folder stays when it ends.

    job: everything that the tensors depend on.   UsageError where the folder holds another job's, or is in use.
    """

    def __init__(self, output: Path, job: Mapping[str, Any], *, restart: bool = False) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".part")
        self._lock: int | None = None
        with self._failures():
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._release()
                raise UsageError(
                    f"{self.path}: another run is at work there", remedy="wait for it, or name another --out"
                ) from None
            try:
                self._take(json.loads(json.dumps(job)), restart)
            except BaseException:
                self._release()
                raise

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def read(self, number: int) -> tuple[float, bytes]:
        """(error, bytes) of a finished tensor."""
        data = self._file(number).read_bytes()
        return _ERROR.unpack_from(data)[0], data[_ERROR.size :]

    def put(self, number: int, error: float, data: bytes) -> None:
        """Stores a finished tensor, whole or not at all."""
        part = self.path / "tensor.new"
        with self._failures(), open(part, "wb") as file:
            file.write(_ERROR.pack(error))
            file.write(data)
        os.replace(part, self._file(number))

    @contextmanager
    def result(self) -> Iterator[Any]:
        """The new file, to be written; in its place when all of it is there, and the folder is gone then."""
        part = self.path / _RESULT
        with self._failures():
            try:
                with open(part, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                part.unlink(missing_ok=True)  # the tensors are kept, and its room may be what the next try needs
                raise
            os.replace(part, self.output)
            shutil.rmtree(self.path)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.tensor"

    def _take(self, job: Mapping[str, Any], restart: bool) -> None:
        file = self.path / _JOB
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = None
        except (ValueError, UnicodeDecodeError):
            found = {}
        if found is not None and found != job and not restart:
            keys = [k for k in job if not isinstance(found, dict) or found.get(k) != job[k]]
            raise UsageError(
                f"{self.path} holds what another run has done, which differs in {', '.join(keys) or 'its version'}",
                remedy="repeat that run's options to go on with it, or discard it by --restart",
            )
        if found != job or restart:
            for old in self.path.iterdir():
                old.unlink()
            part = self.path / "job.new"
            part.write_text(json.dumps(job), encoding="utf-8")
            os.replace(part, file)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"--out {self.output}: cannot be written: {error.strerror or error}",
                remedy="make room, or name a file in a folder that is yours; the same command goes on where it was",
            ) from error
