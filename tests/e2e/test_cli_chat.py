"""`hetrun chat`: its commands, input of several lines, and answers held to a schema."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import require
from command import arguments, environment
from models import CHAT_TEMPLATE, tiny_llama

from hetrun.cli.main import run

TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@dataclass(frozen=True)
class Said:
    code: int
    answers: list[dict[str, Any]]
    err: str


Chat = Callable[..., Said]


@pytest.fixture
def chat(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Chat:
    """Says lines to a chat with --json, in this process and in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def say(*lines: str, args: tuple[str, ...] = (), model: Path = tiny) -> Said:
        text = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        options = ["-d", "cpu", "--temperature", "0", "-n", "6", "--json", *args]
        code = run(["chat", "-m", str(model), *options])
        out, err = capsys.readouterr()
        return Said(code, [json.loads(line) for line in out.splitlines()], err)

    return say


def test_a_later_turn_goes_on_from_the_tokens_of_the_answer(chat: Chat) -> None:
    """Sampled ones, which encoding the answer's text would not give: all but the last, which did not run, are kept."""
    first, second = chat("the", "and", args=("--temperature", "1.5", "--seed", "3")).answers
    assert second["reused_tokens"] == first["prompt_tokens"] + first["generated_tokens"] - 1


def test_undo_takes_back_and_retry_asks_again(chat: Chat) -> None:
    said = chat("the", "and", "/undo", "and", "/retry", "/undo", "/undo", "/undo")
    first, second, third, fourth = (a["text"] for a in said.answers)
    assert second == third == fourth != first
    assert said.answers[1]["prompt_tokens"] == said.answers[3]["prompt_tokens"]
    assert said.err.count("taken back: and") == 2 and "taken back: the" in said.err
    assert said.err.rstrip().endswith("nothing to take back")


def test_the_system_prompt_is_shown_set_and_removed(chat: Chat) -> None:
    said = chat("/system", "the", "/system is it", "/system", "/reset", "the", "/system -", "/reset", "the")
    assert said.err.splitlines() == ["(nothing)", "is it"]
    without, told, again = (a["prompt_tokens"] for a in said.answers)
    assert told > without == again
    by_option = chat("the", args=("--system-prompt", "is it"))
    assert by_option.answers[0]["text"] == said.answers[1]["text"]


def test_a_template_without_a_system_role_refuses_and_the_chat_goes_on(chat: Chat, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "n.gguf", chat_template=NO_SYSTEM)
    said = chat("/system x", model=model)
    assert (said.code, said.answers) == (3, [])
    assert "no system role" in said.err


def test_a_saved_chat_goes_on_where_it_was(chat: Chat, tmp_path: Path) -> None:
    whole = chat("/system is", "the", "/save c.json", "and")
    assert "saved 1 turns" in whole.err
    record = json.loads((tmp_path / "c.json").read_text())
    assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant"]
    later = chat("/load c.json", "/history", "and")
    assert "loaded 1 turns" in later.err and "user: the" in later.err and "note:" not in later.err
    # The answer's text is encoded anew, so that tokens may differ; the conversation does not.
    assert later.answers[0]["prompt_tokens"] <= whole.answers[1]["prompt_tokens"]
    assert chat("/load c.json", "/save d.json").code == 0
    assert json.loads((tmp_path / "d.json").read_text()) == record
    (tmp_path / "c.json").write_text(json.dumps({**record, "model": "other.gguf"}))
    assert "note: its answers are those of other.gguf" in chat("/load c.json").err


def test_plan_and_profile_are_shown_on_stderr(chat: Chat) -> None:
    said = chat("/plan", "/profile", "the", "/profile", "and", "/help")
    assert len(said.answers) == 2
    plan, rest = said.err.split("answers are profiled")
    assert "cpu:0" in plan and "all" in plan and "predicted, not measured" in plan
    profile, rest = rest.split("not profiled any more")
    assert re.search(r"decode: 5 tokens in 5 steps", profile) and "prefill: " in profile
    assert "decode" not in rest and "/save FILE" in rest


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/safe x", "error: no command /safe\nhint: did you mean /save?"),
        ("/save", "error: /save lacks its argument\nhint: /save FILE"),
        ("/load nothing.json", "error: nothing.json: No such file"),
        ("/tool x", "error: /tool goes with --tools"),
    ],
)
def test_wrong_command_in_a_script_ends_it(chat: Chat, line: str, says: str) -> None:
    said = chat(line, "the")
    assert (said.code, said.answers) == (2, [])
    assert says in said.err


def test_a_space_makes_text_of_what_looks_like_a_command(chat: Chat) -> None:
    said = chat(" /exit is a command", "/etc/passwd is a file", "/reset", "/exit", "the")
    assert len(said.answers) == 2


def test_tools_are_given_to_the_template(chat: Chat, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "t.gguf", chat_template=TOOLS)
    (tmp_path / "tools.json").write_text('[{"name": "now"}]')
    said = chat("the", "/tool 12:00", args=("--tools", "tools.json"), model=model)
    given = len('[{"type": "function", "function": {"name": "now"}}]')
    assert len(said.answers) == 2
    assert said.answers[0]["prompt_tokens"] > chat("the", model=model).answers[0]["prompt_tokens"] + given // 4
    refused = chat("the", args=("--tools", "tools.json"))
    assert (refused.code, refused.answers) == (2, [])
    assert "chat template has no place for tools" in refused.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no list of tools"),
        ("{}", "holds no list of tools"),
        ("[3]", "tool 1 has no name"),
        ('[{"name": "a"}, {"function": {}}]', "tool 2 has no name"),
        ('[{"function": {"name": 3}}]', "tool 1 has no name"),
    ],
)
def test_wrong_tools_are_named(chat: Chat, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "tools.json").write_text(content)
    said = chat("the", args=("--tools", "tools.json"))
    assert said.code == 2 and f"tools.json {says}" in said.err.replace(": tool", " tool")


def test_answers_are_held_to_a_schema(chat: Chat, tmp_path: Path) -> None:
    require.require_module("llguidance", "pip install 'hetrun[grammar]'")
    (tmp_path / "s.json").write_text('{"enum": ["yes", "no"]}')
    said = chat("the", "and", args=("--json-schema", "s.json", "-n", "20"))
    assert [json.loads(a["text"]) in ("yes", "no") for a in said.answers] == [True, True]
    assert {a["finish_reason"] for a in said.answers} == {"end"}


@pytest.mark.parametrize(
    ("args", "content", "says"),
    [
        (("--json-schema", "f"), "{", "f is no JSON"),
        (("--json-schema", "f"), '{"type": "x"}', "f: Invalid type: x"),
        (("--grammar", "f"), "start: x", 'f: at 1(8): unknown name: "x"'),
        (("--grammar", "missing"), "", "--grammar missing: No such file"),
        (("--grammar", "f", "--json-schema", "f"), "", "exclude each other"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_wrong_schema_or_grammar_is_answered_before_the_model_is_loaded(
    verb: str, args: tuple[str, ...], content: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    require.require_module("llguidance", "pip install 'hetrun[grammar]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_text(content)
    prompt = ("-p", "x") if verb == "generate" else ()
    assert run([verb, "-m", "no-such-model.gguf", *prompt, *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"error: {says}" in err.replace("error: --json-schema and --grammar", "error:")
    assert len(err.splitlines()) == 2


def test_generate_writes_json_of_a_schema(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require.require_module("llguidance", "pip install 'hetrun[grammar]'")
    (tmp_path / "s.json").write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}')
    schema = str(tmp_path / "s.json")
    assert run(["generate", "-m", str(tiny), "-d", "cpu", "-p", "x", "--json-schema", schema, "-n", "60"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert 1 <= len(value) <= 3 and set(value) <= {True, False}


def test_text_of_several_lines_is_one_turn(tiny: Path, tmp_path: Path) -> None:
    """At a terminal: between quotation marks, behind a backslash, and given up with Ctrl-C, which ends no chat."""
    try:
        terminal, stdin = pty.openpty()
    except OSError as error:
        require.missing(f"a pseudo-terminal ({error})", "mount -t devpts devpts /dev/pts")
    process = subprocess.Popen(
        arguments("chat", "-m", tiny, "-d", "cpu", "-n", "1"), stdin=stdin, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, cwd=tmp_path, env=environment(tmp_path),
    )  # fmt: skip
    os.close(stdin)
    assert process.stderr
    said = b""

    def wait_for(prompt: bytes) -> None:
        nonlocal said
        said = b""
        while not said.endswith(prompt):
            byte = process.stderr.read(1)
            assert byte, said.decode()
            said += byte

    for prompt, line in (
        (b"> ", b'"""the'),
        (b"... ", b"/exit"),
        (b"... ", b'and"""'),
        (b"\n> ", b"on\\"),
        (b"... ", b"it"),
        (b"\n> ", b'"""never'),
        (b"... ", None),
        (b"> ", b"/save c.json"),
        (b"\n> ", b"/exit"),
    ):
        wait_for(prompt)
        if line is None:
            process.send_signal(2)
        else:
            os.write(terminal, line + b"\n")
    assert process.wait(60) == 0
    process.stderr.close()
    os.close(terminal)
    messages = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["the\n/exit\nand", "on\nit"]
