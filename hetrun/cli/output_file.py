"""Files that a verb writes beside its result: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from hetrun.errors import UsageError


class OutputFile:
    """A file to be written when the work is done. A context manager; without `write` nothing changes.

    Its folder is tried at once, so that a bad path costs no wait. What is no regular file, such as /dev/stdout or a
    pipe, is written to, not replaced.
    """

    def __init__(self, path: str, option: str) -> None:
        """UsageError where nothing can be written there.   option: names it in errors."""
        self.path = path
        self._option = option
        self._part: Path | None = None
        # What a link points to is replaced, not the link.
        self.target = Path(os.path.realpath(path))
        self._replace = not os.path.exists(path) or self.target.is_file()
        try:
            if not path or self.target.is_dir():
                raise IsADirectoryError(0, "it is a folder" if path else "the name is empty")
            if self._replace:
                part = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
                open(part, "x").close()
                self._part = part
        except (OSError, ValueError) as error:
            raise self._failure(error) from error

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    def write(self, pieces: Iterable[str]) -> None:
        """The whole text. UsageError where the disk is full or the like; an older file then stays."""
        try:
            with open(self._part or self.target, "w", encoding="utf-8") as file:
                file.writelines(pieces)
            if self._part is not None:
                os.replace(self._part, self.target)
        except OSError as error:
            raise self._failure(error) from error

    def same_as(self, other: Path) -> bool:
        """Whether it would overwrite that file."""
        return self.target == Path(os.path.realpath(other))

    def _failure(self, error: Exception) -> UsageError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return UsageError(
            f"{self._option} {self.path}: cannot be written: {reason}",
            remedy="name a file in a folder that exists and is yours",
        )
