"""What was said in a chat, and the files that keep it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetrun.errors import UsageError

FORMAT = "hetrun chat"
VERSION = 1
ROLES = ("system", "user", "assistant", "tool")
_REMEDY = 'name a file that "/save" wrote'

Message = dict[str, str]


class Conversation:
    """Messages in order; the first may be the system's.

    messages: {"role": one of ROLES, "content": text} each, as chat templates take them.
    """

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[Message] = []
        self.system = system

    @property
    def system(self) -> str | None:
        """What the model is told before the conversation. Setting it keeps what was said."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        said = self.messages[1:] if self.system is not None else self.messages
        self.messages = [*([{"role": "system", "content": text}] if text else []), *said]

    @property
    def n_turns(self) -> int:
        """Questions so far."""
        return sum(message["role"] == "user" for message in self.messages)

    def forget(self) -> None:
        """Leaves the system's message alone."""
        self.messages = self.messages[:1] if self.system is not None else []

    def take_back(self) -> Message | None:
        """Removes the last question and what followed; returns it, or None where there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                message = self.messages[i]
                del self.messages[i:]
                return message
        return None

    def save(self, path: str, model: str) -> None:
        """Writes the conversation whole or not at all.   model: whose answers they are. UsageError where it cannot."""
        record = {"format": FORMAT, "version": VERSION, "model": model, "messages": self.messages}
        target = Path(path).expanduser()
        part = target.parent / f".{target.name}.part"
        try:
            try:
                part.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"{path}: cannot be written: {cause}", remedy="name a file in a folder of yours") from None

    def load(self, path: str) -> str:
        """Takes the place of this conversation by a saved one; returns the model's name in it.

        UsageError, and the conversation as it was, where the file is none, of another version, or damaged.
        """
        try:
            record = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", remedy=_REMEDY) from None
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, too
            raise UsageError(f"{path}: is damaged or no saved chat: {error}", remedy=_REMEDY) from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UsageError(f"{path}: is no saved chat", remedy=_REMEDY)
        if record.get("version") != VERSION:
            raise UsageError(
                f"{path}: a saved chat of version {record.get('version')!r}, hetrun reads {VERSION}",
                remedy="update hetrun",
            )
        self.messages = _checked(path, record.get("messages"))
        return str(record.get("model", ""))


def _checked(path: str, messages: Any) -> list[Message]:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise UsageError(f"{path}: is damaged: it holds no list of messages", remedy=_REMEDY)
    for i, message in enumerate(messages):
        cause = None
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            cause = "is not of a role and a content"
        elif message["role"] not in ROLES or (message["role"] == "system" and i):
            cause = f"has the role {str(message['role'])[:40]!r}"
        elif not isinstance(message["content"], str):
            cause = "has a content that is no text"
        if cause:
            raise UsageError(f"{path}: is damaged: message {i + 1} of {len(messages)} {cause}", remedy=_REMEDY)
    return [dict(message) for message in messages]
