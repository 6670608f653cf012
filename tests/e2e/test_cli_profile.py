"""`hetrun profile`, and --profile, --live and --trace of `hetrun generate`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import require
from command import arguments, environment, hetrun, make_plugin
from models import tiny_llama

from hetrun.cli.main import run
from hetrun.errors import DeviceError
from hetrun.run.generate import Generation

PROMPT = "the thing is"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=1 << 17)


@pytest.fixture
def base(tiny: Path) -> tuple[str, ...]:
    return ("generate", "--model", str(tiny), "--prompt", PROMPT, "--max-tokens", "12", "--device", "reference")


@pytest.fixture
def plain(base: tuple[str, ...], tmp_path: Path) -> str:
    """stdout without any of the options."""
    return hetrun(tmp_path, *base).out


def test_generate_profile_leaves_stdout_as_it_is(base: tuple[str, ...], plain: str, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *base, "--profile")
    assert (done.code, done.out) == (0, plain)
    for word in ("prefill: 6 tokens", "decode: 11 tokens", "matmul", "layer", "reference:0", "measured", "predicted"):
        assert word in done.err


def test_generate_profile_with_json_is_in_the_object(base: tuple[str, ...], tmp_path: Path) -> None:
    head = hetrun(tmp_path, "inspect", base[2], "--json").json["types"]["F16"]["elements"]
    done = hetrun(tmp_path, *base, "--profile", "--json")
    assert done.err == ""
    profile = done.json["profile"]
    assert profile["prefill"]["n_tokens"] == 6 and profile["decode"]["n_steps"] == 11
    assert profile["decode"]["measured_s"] <= done.json["decode_s"]
    kinds = {e["name"]: e for e in profile["decode"]["kinds"]}
    # Two layers of seven matrices, and the head.
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64) + head
    assert kinds["matmul"]["flops"] == 11 * 2 * matrices
    assert {e["name"] for e in profile["decode"]["layers"]} == {"layer 0", "layer 1", "outside the layers"}
    assert "profile" not in hetrun(tmp_path, *base, "--json").json


def test_profile_runs_what_it_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    args = ("profile", "-m", tiny, "-d", "reference", "-r", "2", "--json")
    record = hetrun(tmp_path, *args, "--prompt-tokens", "5", "--gen-tokens", "3").json
    assert record["model"] == "tiny.gguf"
    assert [(record[p]["n_steps"], record[p]["n_tokens"]) for p in ("prefill", "decode")] == [(2, 10), (6, 6)]
    assert hetrun(tmp_path, *args, "--prompt-tokens", "0", "--gen-tokens", "3").json["prefill"] is None
    assert hetrun(tmp_path, *args, "--prompt-tokens", "5", "--gen-tokens", "0").json["decode"] is None


def test_profile_prints_tables(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "profile", "-m", tiny, "-d", "reference", "-r", "1", "--gen-tokens", "2")
    assert done.code == 0
    assert done.err.splitlines() == ["running 1 of 1"]
    for heading in ("device, a step", "op kind, a step", "timed as one, a step", "idle", "error", "FLOP/s"):
        assert heading in done.out


def test_trace_file_is_valid_and_leaves_nothing_else(base: tuple[str, ...], plain: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("older")
    (tmp_path / "t.json").chmod(0o640)
    done = hetrun(tmp_path, *base, "--trace", "t.json")
    assert done.out == plain
    trace = json.loads((tmp_path / "t.json").read_text())
    steps = [e for e in trace["traceEvents"] if e.get("cat") == "step"]
    assert len(steps) == 12 and steps[0]["name"] == "prefill 6 tokens at 0"
    assert [p.name for p in tmp_path.glob("*t.json*")] == ["t.json"]


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("none/t.json", "No such file or directory"),
        ("folder", "it is a folder"),
        ("", "the name is empty"),
        ("file/t.json", "Not a directory"),
    ],
)
@pytest.mark.parametrize("option", ["--trace", "--html"])
def test_a_file_that_cannot_be_written_is_said_before_the_model_loads(
    option: str, target: str, cause: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    done = hetrun(tmp_path, "profile", "-m", broken, option, target)
    assert (done.code, done.out) == (2, "")
    assert done.errors == [f"error: {option} {target}: cannot be written: {cause}"]
    assert done.hints == ["hint: name a file in a folder that exists and is yours"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_refused(base: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    done = hetrun(tmp_path, *base, "--trace", "theirs/t.json")
    assert done.errors == ["error: --trace theirs/t.json: cannot be written: Permission denied"]


def test_an_older_file_stays_where_the_work_fails(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("older")
    assert hetrun(tmp_path, "profile", "-m", tiny, "-d", "nothing", "--trace", "t.json").code == 7
    assert (tmp_path / "t.json").read_text() == "older"
    assert [p.name for p in tmp_path.glob("*t.json*")] == ["t.json"]


def test_what_is_no_regular_file_is_written_to_not_replaced(base: tuple[str, ...], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, cwd=tmp_path)
    assert hetrun(tmp_path, *base, "--trace", "pipe").code == 0
    assert json.loads(reader.communicate(timeout=60)[0])["traceEvents"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_stays_a_link(base: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real.json")
    hetrun(tmp_path, *base, "--trace", "link")
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "real.json").read_text())


def test_the_model_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    size = tiny.stat().st_size
    done = hetrun(tmp_path, "profile", "-m", tiny, "-d", "reference", "--trace", str(tiny))
    assert (done.code, done.errors) == (2, [f"error: {tiny} is the model: it would be overwritten"])
    assert tiny.stat().st_size == size


def test_two_outputs_need_two_files(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "profile", "-m", tiny, "--trace", "one", "--html", "./one")
    assert (done.code, done.errors) == (2, ["error: --trace and --html both name one"])
    assert list(tmp_path.glob("*one*")) == []


def test_live_and_json_exclude_each_other(base: tuple[str, ...], tmp_path: Path) -> None:
    done = hetrun(tmp_path, *base, "--live", "--json")
    assert (done.code, done.out, done.errors) == (2, "", ["error: --live and --json exclude each other"])


def test_nothing_to_profile_is_an_error(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "profile", "-m", tiny, "--prompt-tokens", "0", "--gen-tokens", "0")
    assert (done.code, done.errors) == (2, ["error: nothing to profile"])


FAILING = """
from hetrun.errors import DeviceError
from hetrun.run.session import Session
step = Session.step
def failing(self, batch, meanwhile=None):
    if self.length() > 8:
        raise DeviceError("the board is gone")
    return step(self, batch, meanwhile)
Session.step = failing
"""


@pytest.mark.parametrize("live", [[], ["--live"]])
def test_what_ran_before_a_failure_is_in_the_trace(
    live: list[str], base: tuple[str, ...], plain: str, tmp_path: Path
) -> None:
    plugins = [make_plugin(tmp_path / "p", "failing", FAILING)]
    done = hetrun(tmp_path, *base, *live, "--trace", "t.json", plugins=plugins)
    assert done.code == DeviceError.exit_code and done.errors == ["error: the board is gone"]
    assert done.out.strip() and plain.startswith(done.out.rstrip("\n"))
    steps = [e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e.get("cat") == "step"]
    assert len(steps) == 4  # the prompt, and three tokens


def test_ctrl_c_leaves_a_valid_trace(tiny: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        arguments(
            "generate", "-m", tiny, "-p", PROMPT, "-n", "100000", "--ctx", "131072", "-d", "reference",
            "--trace", "t.json", "--profile",
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment(tmp_path),
    )  # fmt: skip
    assert process.stdout
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"ended by: interrupted" in err and b"prefill: 6 tokens" in err
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [p.name for p in tmp_path.glob("*t.json*")] == ["t.json"]


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


def test_ctrl_c_with_json_has_the_profile_so_far(
    interrupted: None, base: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*base, "--json", "--profile"]) == 130
    assert json.loads(capsys.readouterr().out)["profile"]["decode"]["n_steps"] == 5


def test_live_without_a_terminal_is_lines_on_stderr(base: tuple[str, ...], plain: str, tmp_path: Path) -> None:
    done = hetrun(tmp_path, *base, "--live")
    assert (done.code, done.out) == (0, plain)
    assert "\x1b" not in done.err
    lines = done.err.splitlines()
    assert lines[0].startswith("[prefill 6 tokens") and "reference:0" in lines[0]
    assert lines[-2].startswith("[decode 11 tokens") and re.search(r"\d tokens/s; reference:0 \d+% busy\]$", lines[-2])


class Terminal:
    """A pseudo-terminal of 100 x 30 behind stdout, stderr or both of a command."""

    def __init__(self, folder: Path, *args: str, shared: bool, **variables: str) -> None:
        try:
            self.side, end = pty.openpty()
        except OSError as error:
            require.missing(f"a pseudo-terminal ({error})", "mount -t devpts devpts /dev/pts")
        env = environment(folder, **{"TERM": "xterm-256color", "LINES": "30", "COLUMNS": "100", **variables})
        self.process = subprocess.Popen(
            arguments(*args), stdin=subprocess.DEVNULL, stdout=end if shared else subprocess.PIPE, stderr=end,
            cwd=folder, env=env,
        )  # fmt: skip
        os.close(end)
        self.seen = b""

    def read_until(self, marker: bytes, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while marker not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            if not self._read():
                raise AssertionError(f"{marker!r} never came: {self.seen[-2000:]!r}")

    def finish(self) -> tuple[int, bytes, bytes]:
        """(exit code, all that the terminal got, stdout where it was a pipe)"""
        while self._read():
            pass
        out = self.process.stdout.read() if self.process.stdout else b""
        code = self.process.wait(60)
        os.close(self.side)
        return code, self.seen, out

    def _read(self) -> bool:
        try:
            data = os.read(self.side, 65536)
        except OSError:  # the other side is closed
            return False
        self.seen += data
        return bool(data)


def screen(data: bytes) -> str:
    """What is left on the terminal: erased lines are gone. Enough of a terminal for what rich writes."""
    rows: list[str] = [""]
    row = column = 0
    for part in re.finditer(rb"\x1b\[([?\d;]*)([A-Za-z])|([^\x1b])", data):
        number, letter, character = part.groups()
        if character == b"\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif character == b"\r":
            column = 0
        elif character is not None:
            rows[row] = rows[row][:column].ljust(column) + character.decode("latin-1") + rows[row][column + 1 :]
            column += 1
        elif letter == b"A":
            row -= int(number or 1)
        elif letter == b"K":
            rows[row] = "" if number == b"2" else rows[row][:column]
    return "\n".join(line.rstrip() for line in rows)


@pytest.mark.parametrize("shared", [False, True])
def test_live_on_a_terminal_gives_the_text_and_the_cursor_back(
    shared: bool, base: tuple[str, ...], plain: str, tmp_path: Path
) -> None:
    terminal = Terminal(tmp_path, *base, "--live", shared=shared)
    code, seen, out = terminal.finish()
    assert code == 0
    assert b"% busy" in seen and b"tokens/s" in seen and b"layers 0 to 1" in seen
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") == 1
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"% busy")
    left = screen(seen)
    assert "% busy" not in left
    assert "[load " in left
    if shared:
        assert left.startswith(plain.rstrip("\n") + "\n")
    else:
        assert out.decode() == plain


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_ends_a_live_view_early_gives_the_cursor_back(
    number: signal.Signals, code: int, tiny: Path, tmp_path: Path
) -> None:
    args = ("generate", "-m", str(tiny), "-p", PROMPT, "-n", "100000", "--ctx", "131072", "-d", "reference", "--live")
    terminal = Terminal(tmp_path, *args, shared=True)
    terminal.read_until(b"layers 0 to 1")
    terminal.process.send_signal(number)
    found, seen, _ = terminal.finish()
    assert found == code
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") == 1
    left = screen(seen)
    assert "% busy" not in left and "Traceback" not in left


def test_a_dumb_terminal_gets_lines(base: tuple[str, ...], tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, *base, "--live", shared=True, TERM="dumb")
    code, seen, _ = terminal.finish()
    assert code == 0 and b"\x1b" not in seen and b"[decode 11 tokens" in seen


def test_plain_generation_imports_nothing_of_profiles(base: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; from hetrun.cli.main import run; run(sys.argv[1:]); "
        "print([m for m in sys.modules if m.startswith('hetrun') and ('profile' in m or 'timeline' in m or 'live' in m"
        " or 'chrome' in m)], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *base], capture_output=True, text=True, env=environment(tmp_path), check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"
