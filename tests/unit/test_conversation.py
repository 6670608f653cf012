"""What a chat remembers, and the files that keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetrun.cli.conversation import Conversation
from hetrun.errors import UsageError

SAID = [{"role": "user", "content": "h\u00e9\n\u4f60"}, {"role": "assistant", "content": "x"}]
GOOD = {"format": "hetrun chat", "version": 1, "model": "m.gguf", "messages": SAID}


def talk(system: str | None = None) -> Conversation:
    conversation = Conversation(system)
    conversation.messages += [dict(message) for message in SAID]
    return conversation


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    talk("Be brief.").save(str(tmp_path / "c.json"), "m.gguf")
    loaded = Conversation()
    assert loaded.load(str(tmp_path / "c.json")) == "m.gguf"
    assert loaded.messages == talk("Be brief.").messages
    assert list(tmp_path.iterdir()) == [tmp_path / "c.json"]
    assert json.loads((tmp_path / "c.json").read_text())["version"] == 1


def test_the_system_message_changes_and_the_rest_stays() -> None:
    conversation = talk("a")
    conversation.system = "b"
    assert (conversation.system, conversation.messages[1:]) == ("b", SAID)
    conversation.system = None
    assert (conversation.system, conversation.messages) == (None, SAID)
    conversation.system = "c"
    conversation.forget()
    assert conversation.messages == [{"role": "system", "content": "c"}]


def test_the_last_question_is_taken_back_with_all_that_followed() -> None:
    conversation = talk("a")
    conversation.messages += [
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "4"},
    ]
    assert conversation.take_back() == {"role": "user", "content": "2"}
    assert conversation.n_turns == 1
    assert conversation.take_back() == SAID[0]
    assert conversation.take_back() is None
    assert conversation.system == "a"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged or no saved chat"),
        (b"\xff\xfe", "is damaged or no saved chat"),
        (b"{", "is damaged or no saved chat"),
        (b"[" * 100_000, "is damaged or no saved chat"),
        ([], "is no saved chat"),
        ({**GOOD, "format": "other"}, "is no saved chat"),
        ({**GOOD, "version": 2}, "a saved chat of version 2, hetrun reads 1"),
        ({**GOOD, "messages": None}, "it holds no list of messages"),
        ({**GOOD, "messages": "abc"}, "it holds no list of messages"),
        ({**GOOD, "messages": [3]}, "message 1 of 1 is not of a role and a content"),
        ({**GOOD, "messages": [*SAID, {"role": "user"}]}, "message 3 of 3 is not of a role and a content"),
        ({**GOOD, "messages": [{"role": "x", "content": ""}]}, "message 1 of 1 has the role 'x'"),
        ({**GOOD, "messages": [*SAID, {"role": "system", "content": ""}]}, "message 3 of 3 has the role 'system'"),
        ({**GOOD, "messages": [{"role": "user", "content": 3}]}, "message 1 of 1 has a content that is no text"),
        ({**GOOD, "messages": [{"role": [], "content": ""}]}, "message 1 of 1 has the role"),
    ],
)
def test_damaged_file_is_refused_and_nothing_is_lost(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    conversation = talk("a")
    with pytest.raises(UsageError, match=says) as caught:
        conversation.load(str(path))
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert conversation.messages == talk("a").messages


@pytest.mark.parametrize("path", ["nowhere/c.json", ".", "a\0b"])
def test_file_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (lambda: talk().save(path, "m"), lambda: talk().load(path)):
        with pytest.raises(UsageError, match=r"nowhere|\.|a"):
            act()
    assert list(tmp_path.iterdir()) == []
