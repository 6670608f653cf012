"""`hetrun calibrate`, on a device that takes no time, as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import arguments, environment, hetrun, make_plugin
from models import tiny_llama

SOURCE = Path(__file__).resolve().parent.parent / "simulated_device.py"
QUICK = ("calibrate", "--device", "sim", "--type", "Q8_0", "--quick")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plugin(tmp_path_factory.mktemp("site"), "sim", SOURCE.read_text())


@pytest.fixture(scope="module")
def measured(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose user has measured the device."""
    folder = tmp_path_factory.mktemp("measured")
    done = hetrun(folder, *QUICK, "--json", plugins=[plugin])
    assert done.code == 0, done.err
    (record,) = done.json
    groups = {g["group"]: g for g in record["groups"]}
    assert record["device"] == "sim:0" and "attention f16" in groups
    assert {"error_before", "error_after", "bytes_per_s", "flops_per_s"} <= groups["matmul Q8_0"].keys()
    assert "sim:0: 1 of " in done.err and "kept in " in done.err
    return folder


def test_plans_go_by_what_was_measured(measured: Path, plugin: Path) -> None:
    model = tiny_llama(measured / "m.gguf")
    result = hetrun(measured, "plan", "--model", model, "--device", "sim", "--json", plugins=[plugin]).json
    assert any(b.startswith("measured:calibration of ") for b in result["predicted"]["basis"])
    # For another number of threads nothing was measured.
    args = ("plan", "--model", model, "--device", "sim", "--threads", "3", "--json")
    assert hetrun(measured, *args, plugins=[plugin]).json["predicted"]["basis"] == ["analytic:planted"]


def test_show_prints_what_was_measured(measured: Path, plugin: Path) -> None:
    done = hetrun(measured, "calibrate", "--device", "sim", "--show", plugins=[plugin])
    assert done.code == 0
    assert "sim:0: simulated, 1 threads" in done.out and "matmul Q8_0" in done.out
    assert "a step costs" in done.out


def test_show_without_a_measurement_says_so(plugin: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "calibrate", "--device", "sim", "--show", plugins=[plugin])
    assert (done.code, done.out) == (0, "")
    assert 'sim:0: not measured; "hetrun calibrate" does that' in done.err
    assert hetrun(tmp_path, "calibrate", "--device", "sim", "--show", "--json", plugins=[plugin]).json == []


def test_reset_forgets(measured: Path, plugin: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "data", tmp_path / "data")
    args = ("calibrate", "--device", "sim", "--reset")
    assert hetrun(tmp_path, *args, "--json", plugins=[plugin]).json == {"removed": ["sim:0"]}
    assert hetrun(tmp_path, *args, plugins=[plugin]).out == "sim:0: there was nothing to forget\n"


@pytest.mark.parametrize("text", ["", "{}", '{"format": 9}'])
def test_file_that_cannot_be_used_is_one_warning(text: str, measured: Path, plugin: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "data", tmp_path / "data")
    (path,) = (tmp_path / "data" / "calibration").glob("*.json")
    path.write_text(text)
    args = ("plan", "--model", tiny_llama(tmp_path / "m.gguf"), "--device", "sim", "--json")
    done = hetrun(tmp_path, *args, plugins=[plugin])
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert done.code == 0 and len(warnings) == 1 and str(path) in warnings[0]
    assert done.json["predicted"]["basis"] == ["analytic:planted"]
    shown = hetrun(tmp_path, "calibrate", "--device", "sim", "--show", plugins=[plugin])
    assert (shown.code, len(shown.errors), len(shown.hints)) == (6, 1, 1)


def test_interruption_keeps_what_was_measured(plugin: Path, tmp_path: Path) -> None:
    args = arguments(*QUICK)
    env = environment(tmp_path, [plugin])
    running = subprocess.Popen(args, cwd=tmp_path, env=env, stdout=-1, stderr=-1, text=True, start_new_session=True)
    folder = tmp_path / "data" / "calibration"
    deadline = time.monotonic() + 100
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.splitlines()[-1] == "error: interrupted"
    (path,) = folder.iterdir()
    assert {o["group"] for o in json.loads(path.read_text())["observations"]} >= {"other ops"}
    assert hetrun(tmp_path, "calibrate", "--device", "sim", "--show", "--json", plugins=[plugin]).json[0]["groups"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--type", "Q4_O"), 2, "--type Q4_O: nothing to measure under that name"),
        (("--kv-type", "f17"), 2, "--kv-type f17: nothing to measure under that name"),
        (("--show", "--reset"), 2, "--show and --reset exclude each other"),
        (("--device", "model:pynq-z1"), 7, "model:pynq-z1 is emulated: there is no hardware to measure"),
        (("--device", "nothing"), 7, "no device 'nothing'"),
        (("--model", "nothing.gguf"), 3, "nothing.gguf: no such file"),
    ],
)
def test_what_cannot_be_measured_is_one_error(args: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "calibrate", *args)
    assert (done.code, done.out, len(done.errors)) == (code, "", 1)
    assert said in done.errors[0]


def test_measuring_replaces_a_file_that_cannot_be_used(measured: Path, plugin: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "data", tmp_path / "data")
    (path,) = (tmp_path / "data" / "calibration").glob("*.json")
    path.write_text("{}")
    assert hetrun(tmp_path, *QUICK, plugins=[plugin]).code == 0
    assert json.loads(path.read_text())["format"] == 2


def test_folder_that_cannot_be_written_is_one_error(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    done = hetrun(tmp_path, *QUICK, plugins=[plugin])
    assert done.code == 6 and "the calibration cannot be written" in done.errors[0]
    assert "HETRUN_DATA" in done.hints[0]
