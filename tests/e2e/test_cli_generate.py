"""`hetrun generate` and `hetrun chat`: what stands on stdout, what on stderr, and what ends them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import require
from command import arguments, environment, hetrun, make_plugin, require_device
from models import tiny_llama

import hetrun as package
from hetrun.cli.main import run
from hetrun.errors import DeviceError
from hetrun.run.generate import Generation

PROMPT = "the thing is"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def answer(tiny: Path) -> str:
    """What the Python API says to PROMPT, 12 tokens long."""
    with package.load(tiny, devices=["reference"]) as model:
        return model.generate(PROMPT, max_tokens=12).finish()


@pytest.fixture
def base(tiny: Path) -> tuple[str, ...]:
    return ("generate", "--model", str(tiny), "--prompt", PROMPT, "--max-tokens", "12", "--device", "reference")


def test_stdout_is_the_text_and_a_line_break(base: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    assert hetrun(tmp_path, *base).out == answer + "\n"


def test_figures_go_to_stderr(base: tuple[str, ...], tmp_path: Path) -> None:
    (line,) = hetrun(tmp_path, *base).err.splitlines()
    assert line.startswith("[load ") and "decode 12 tokens" in line and line.endswith("ended by: length]")


def test_json_is_one_object_with_text_tokens_and_figures(base: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *base, "--json")
    result = done.json
    assert done.err == ""
    assert result["text"] == answer
    assert len(result["tokens"]) == result["generated_tokens"] == 12
    assert result["prompt_tokens"] == 6 and result["finish_reason"] == "length" and result["ctx"] == 512
    assert result["devices"] == ["reference:0"]
    assert result["decode_tps"] == pytest.approx(11 / result["decode_s"])
    assert result["prefill_tps"] == pytest.approx(6 / result["prefill_s"])
    assert 0 < result["load_s"] < result["first_token_s"]
    assert result["peak_rss_bytes"] > 1_000_000


@pytest.mark.parametrize("place", [0, 1, 3, 9])
def test_flags_may_stand_anywhere(place: int, base: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *base[:place], "--json", "--debug", *base[place:])
    assert done.json["text"] == answer


def test_prompt_from_stdin_loses_one_line_break(tiny: Path, base: tuple[str, ...], tmp_path: Path) -> None:
    from_stdin = ("generate", "--model", tiny, "--prompt", "-", "--json", "--device", "reference", "--max-tokens", "12")
    wanted = hetrun(tmp_path, *base, "--json").json
    for text in (PROMPT, PROMPT + "\n", PROMPT + "\r\n"):
        found = hetrun(tmp_path, *from_stdin, stdin=text).json
        assert (found["text"], found["prompt_tokens"]) == (wanted["text"], wanted["prompt_tokens"])


def test_stop_text_ends_the_answer_before_it(base: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    result = hetrun(tmp_path, *base, "--json", "--stop", "never there", "--stop", answer[4:6]).json
    assert (result["text"], result["finish_reason"]) == (answer[: answer.index(answer[4:6])], "stop")


def test_equal_seeds_give_equal_texts(base: tuple[str, ...], tmp_path: Path) -> None:
    hot = ("--temperature", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--json")
    first, second, other = (hetrun(tmp_path, *base, *hot, "--seed", s).json for s in ("7", "7", "8"))
    assert first["text"] == second["text"] != other["text"]
    assert first["seed"] == 7


def test_seed_that_was_drawn_is_told(base: tuple[str, ...], tmp_path: Path) -> None:
    hot = ("--temperature", "2", "--json")
    drawn = hetrun(tmp_path, *base, *hot).json
    assert hetrun(tmp_path, *base, *hot, "--seed", str(drawn["seed"])).json["text"] == drawn["text"]


def test_special_tokens_of_a_prompt_are_read_only_when_asked(tiny: Path, tmp_path: Path) -> None:
    args = ("generate", "-m", tiny, "-p", "a<|im_end|>", "-n", "1", "-d", "reference", "--json")
    plain, parsed = hetrun(tmp_path, *args).json, hetrun(tmp_path, *args, "--special").json
    assert (plain["prompt_tokens"], parsed["prompt_tokens"]) == (11, 2)


def test_answer_ends_where_the_context_is_full(tiny: Path, tmp_path: Path) -> None:
    args = ("generate", "-m", tiny, "-p", "the", "-d", "reference", "--ctx", "8", "--json")
    done = hetrun(tmp_path, *args)
    assert (done.json["generated_tokens"], done.err) == (8, "")


def test_limit_beyond_the_context_is_warned_of(tiny: Path, tmp_path: Path) -> None:
    args = ("generate", "-m", tiny, "-p", "the", "-d", "reference", "--ctx", "8", "-n", "20", "--json")
    done = hetrun(tmp_path, *args)
    assert done.err == "warning: the context of 8 tokens leaves room for 8 of 20\n"
    assert (done.code, done.json["finish_reason"], done.json["generated_tokens"]) == (0, "context", 8)


def test_no_tokens_asked_for_gives_none(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "generate", "-m", tiny, "-p", "the", "-d", "reference", "-n", "0")
    assert (done.code, done.out) == (0, "\n")


def test_pins_cut_the_model_into_segments(base: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    require_device("cpu")
    result = hetrun(
        tmp_path, *base, "--device", "cpu", "--pin", "*=cpu", "--pin", "blk.1.ffn_*=reference", "--json"
    ).json
    assert [s["device"] for s in result["segments"]] == ["cpu:0", "reference:0", "cpu:0"]
    assert result["text"] == answer


def test_saved_plan_is_used(tiny: Path, answer: str, tmp_path: Path) -> None:
    require_device("cpu")
    both = ("--device", "cpu", "--device", "reference")
    pins = ("--pin", "*=cpu", "--pin", "blk.1.ffn_*=reference")
    hetrun(tmp_path, "plan", "--model", tiny, *both, *pins, "--save", "p.json")
    args = ("generate", "--model", tiny, "--prompt", PROMPT, "--max-tokens", "12", "--plan", "p.json", "--json")
    result = hetrun(tmp_path, *args).json
    assert [s["device"] for s in result["segments"]] == ["cpu:0", "reference:0", "cpu:0"]
    assert result["text"] == answer


def test_system_file_names_the_devices(base: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('description = "here"\ndevices = ["reference"]\n')
    done = hetrun(tmp_path, *base[:-2], "--system", "s.toml", "--json")
    assert (done.json["devices"], done.json["text"]) == (["reference:0"], answer)


def test_memory_of_a_system_file_is_counted_with(base: tuple[str, ...], tmp_path: Path) -> None:
    small = '[host]\ncapacity_bytes = { value = 1e5, basis = "analytic:a test" }\n'
    (tmp_path / "s.toml").write_text(f'description = "small"\ndevices = ["reference"]\n{small}')
    done = hetrun(tmp_path, *base[:-2], "--system", "s.toml")
    assert done.code == 6 and "host memory holds 0.1 MB" in done.errors[0]


HOT_PATH = """
import json, sys
from hetrun.cli.main import run
from hetrun.errors import DeviceError
code = run(sys.argv[1:])
print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})), file=sys.stderr)
sys.exit(code)
"""


def test_generating_on_the_cpu_imports_nothing_heavy(tiny: Path, tmp_path: Path) -> None:
    require_device("cpu")
    args = ("generate", "-m", str(tiny), "-p", PROMPT, "-n", "4", "-d", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", HOT_PATH, *args], capture_output=True, text=True, env=environment(tmp_path), check=True
    )
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    heavy = {"numpy", "gguf", "rich", "jinja2", "tokenizers", "platformdirs", "pygments", "asyncio"}
    assert imported & heavy == set()


def test_ctrl_c_ends_with_what_was_generated(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "long.gguf", n_ctx=1 << 17)
    process = subprocess.Popen(
        arguments("generate", "-m", model, "-p", PROMPT, "-n", "100000", "--ctx", "131072", "-d", "reference"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment(tmp_path),
    )  # fmt: skip
    assert process.stdout
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n") and first != b"\n"
    (line,) = err.decode().splitlines()
    assert line.endswith("ended by: interrupted]")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the fifth token of each answer."""
    choose = Generation._choose_tokens

    def interrupt(self: Generation) -> Iterator[int]:
        for i, token in enumerate(choose(self)):
            if i == 5:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(Generation, "_choose_tokens", interrupt)


def test_ctrl_c_with_json_still_gives_the_object(
    interrupted: None, base: tuple[str, ...], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*base, "--json"]) == 130
    result = json.loads(capsys.readouterr().out)
    assert result["finish_reason"] == "interrupted"
    assert result["text"] and answer.startswith(result["text"])


def test_ctrl_c_before_the_answer_is_one_line(
    base: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hetrun.cli.loading.load_model", press)
    assert run(list(base)) == 130
    assert capsys.readouterr() == ("", "error: interrupted\n")


def test_failure_that_nobody_foresaw_is_one_line(
    base: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("hetrun.cli.loading.load_model", fail)
    assert run(list(base)) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "error: internal: ZeroDivisionError: by zero and more"
    assert len(err.splitlines()) == 2 and "--debug" in err


def test_no_memory_is_one_line(
    base: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hetrun.cli.loading.load_model", fail)
    assert run(list(base)) == 7
    assert capsys.readouterr().err.startswith("error: the system has no memory left\nhint: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_locale_that_lacks_a_character_does_not_end_the_answer(encoding: str, tiny: Path, tmp_path: Path) -> None:
    args = ("tokenize", "-m", tiny, "--text", "\u20ac a")
    done = hetrun(tmp_path, *args, env={"PYTHONIOENCODING": encoding})
    assert (done.code, len(done.out.splitlines())) == (0, 4)


def test_device_that_fails_midway_leaves_the_text_and_one_line(
    base: tuple[str, ...], answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = Generation._choose_tokens

    def fail(self: Generation) -> Iterator[int]:
        for i, token in enumerate(choose(self)):
            if i == 5:
                raise DeviceError("card:0: gone", remedy="plug it in")
            yield token

    monkeypatch.setattr(Generation, "_choose_tokens", fail)
    assert run(list(base)) == 7
    out, err = capsys.readouterr()
    assert out.endswith("\n") and out.strip() and answer.startswith(out[:-1])
    assert err == "error: card:0: gone\nhint: plug it in\n"


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_closed_stream_is_no_failure(stream: int, base: tuple[str, ...], tmp_path: Path) -> None:
    code = f"import os, sys; os.close({stream}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", "hetrun", *base], capture_output=True, text=True, env=environment(tmp_path)
    )
    assert (done.returncode, "rror" in done.stderr) == (0, False)
    assert done.stdout == "" if stream == 1 else len(done.stdout.splitlines()) == 1


def chat(tiny: Path, *args: str) -> tuple[str, ...]:
    return ("chat", "--model", str(tiny), "--device", "reference", "--temperature", "0", "--max-tokens", "6", *args)


def test_each_line_is_a_turn_and_each_answer_a_line_of_json(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *chat(tiny, "--json"), stdin="the\n\nand\n")
    first, second = map(json.loads, done.out.splitlines())
    assert first["generated_tokens"] == second["generated_tokens"] == 6
    assert first["reused_tokens"] == 0
    # All of the first turn's prompt is there already: it is not run again.
    assert second["reused_tokens"] >= first["prompt_tokens"]


def test_chat_follows_the_template(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *chat(tiny, "--system-prompt", "is", "--json"), stdin="the\n")
    prompt = "<|im_start|>system\nis<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    generated = hetrun(
        tmp_path, "generate", "-m", tiny, "-d", "reference", "-p", prompt, "-n", "6", "--special", "--json"
    ).json
    assert (done.json["text"], done.json["prompt_tokens"]) == (generated["text"], generated["prompt_tokens"])


def test_reset_forgets_and_exit_ends(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *chat(tiny, "--json"), stdin="the\n/reset\nthe\n/exit\nnever\n")
    first, second = map(json.loads, done.out.splitlines())
    assert (first["text"], first["prompt_tokens"]) == (second["text"], second["prompt_tokens"])


def test_chat_prints_answers_alone(tiny: Path, tmp_path: Path) -> None:
    text = hetrun(tmp_path, *chat(tiny, "--json"), stdin="the\n").json["text"]
    done = hetrun(tmp_path, *chat(tiny), stdin="the\n")
    assert (done.code, done.out) == (0, text + "\n")


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(
    interrupted: None, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "turns").write_text("the\nand\n")
    with open(tmp_path / "turns") as turns:
        monkeypatch.setattr(sys, "stdin", turns)
        assert run([*chat(tiny, "--json")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["finish_reason"] for a in answers] == ["interrupted", "interrupted"]


@pytest.mark.parametrize("leave", ["interrupt", "end of input"])
def test_leaving_at_the_prompt_is_no_failure(leave: str, tiny: Path, tmp_path: Path) -> None:
    try:
        terminal, stdin = pty.openpty()
    except OSError as error:
        require.missing(f"a pseudo-terminal ({error})", "mount -t devpts devpts /dev/pts")
    process = subprocess.Popen(
        arguments(*chat(tiny)), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        env=environment(tmp_path),
    )  # fmt: skip
    os.close(stdin)
    assert process.stderr
    said = b""
    while not said.endswith(b"> "):
        byte = process.stderr.read(1)
        assert byte, said.decode()
        said += byte
    if leave == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        os.write(terminal, b"\x04")
    out, err = process.communicate(timeout=60)
    os.close(terminal)
    assert (process.returncode, out) == (0, b"")
    assert b"/exit" in said and b"Traceback" not in err


VERB = """
import click
from hetrun.hookspecs import hookimpl

@click.command("greet", short_help="Say hello.")
@click.option("--name", default="you")
def greet(name):
    print(f"hello {name}")

@hookimpl
def hetrun_commands():
    return [greet, "no command"]
"""


def test_verb_of_a_plugin_runs(tmp_path: Path) -> None:
    plugins = make_plugin(tmp_path / "site", "mine", VERB)
    done = hetrun(tmp_path, "greet", "--name", "board", plugins=[plugins])
    assert (done.code, done.out, done.err) == (0, "hello board\n", "")


def test_help_lists_our_verbs_and_those_of_plugins(tmp_path: Path) -> None:
    plugins = [make_plugin(tmp_path / "site", "mine", VERB), make_plugin(tmp_path / "bad", "bad", "raise ValueError")]
    done = hetrun(tmp_path, "--help", plugins=plugins)
    assert done.code == 0
    listed = [line.split()[0] for line in done.out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    verbs = ["generate", "chat", "pull", "inspect", "tokenize", "perplexity", "devices", "plan"]
    verbs += ["calibrate", "bench", "profile", "explore", "build", "compress"]
    assert listed == [*verbs, "greet"]
