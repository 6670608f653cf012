"""The board's driver: what it says where there is no board; the real pynq package, in an environment of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from require import missing

import hetrun
from hetrun.errors import ConfigError, DeviceError
from hetrun_pynq_z1 import native, pynq_board, reserved
from hetrun_pynq_z1.driver import PynqZ1Driver

CASES = sorted(Path(__file__).parent.glob("pynq_*cases.py"))
# pynq 3.0.1 is that of the board's image; it needs an older NumPy and an older parser of C than the rest here.
REQUIREMENTS = ("pynq==3.0.1", "pynqmetadata>=0.2", "pycparser<3", "numpy<2")
NAMES = [
    n.name
    for cases in CASES
    for n in ast.parse(cases.read_text()).body
    if isinstance(n, ast.FunctionDef) and n.name[:5] == "test_"
]


def board_info(**settings: object) -> hetrun.device.DeviceInfo:
    return next(info for info in PynqZ1Driver().probe(settings) if info.id == "pynq-z1:0")


@pytest.fixture
def zynq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that looks like the board, with pynq; returns a folder for overlays."""
    compatible = tmp_path / "compatible"
    compatible.write_bytes(b"digilent,zynq-pynq-z1\0xlnx,zynq-7000\0")
    (tmp_path / "mem").write_bytes(b"")
    monkeypatch.setattr(pynq_board, "COMPATIBLE", compatible)
    monkeypatch.setattr(reserved, "MEMORY_DEVICE", tmp_path / "mem")
    monkeypatch.setattr(pynq_board.importlib.util, "find_spec", lambda name: object())
    return tmp_path


def test_without_a_board_it_is_unavailable_and_csim_comes_first() -> None:
    csim, board = PynqZ1Driver().probe({})
    assert (csim.id, board.id) == ("pynq-z1:csim", "pynq-z1:0")
    assert csim.unavailable is None and board.unavailable is not None
    assert "no Zynq-7000 board" in board.unavailable.reason and "pynq-z1:csim" in board.unavailable.remedy
    assert not {"pynq", "pynqutils"} & set(sys.modules)
    with pytest.raises(DeviceError, match="no Zynq-7000 board"):
        PynqZ1Driver().open(board)


def test_each_thing_that_is_missing_has_its_reason(zynq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**settings: object) -> str:
        unavailable = board_info(**settings).unavailable
        assert unavailable is None or unavailable.remedy
        return unavailable.reason if unavailable else ""

    bit = zynq / "engine.bit"
    assert reason() == "no overlay is named"
    assert reason(overlay=str(bit)) == f"overlay file {bit} not found"
    bit.write_bytes(b"")
    assert reason(overlay=str(bit)) == f"overlay file {bit.with_suffix('.hwh')} not found"
    bit.with_suffix(".hwh").write_text("")
    assert reason(overlay=str(bit)) == ""
    (zynq / "mem").unlink()
    assert "no permission for" in reason(overlay=str(bit))
    monkeypatch.setattr(pynq_board.importlib.util, "find_spec", lambda name: None)
    assert "pynq is not installed" in reason(overlay=str(bit))


@pytest.mark.parametrize(
    "setting",
    [{"overlay": 3}, {"overlay": "engine.xsa"}, {"clock_mhz": 0}, {"clock_mhz": 125_000_000}, {"cma_bytes": -1},
     {"timeout_s": "long"}, {"overlays": "engine.bit"}, {"wait": "sleep"}, {"staging_bytes": 1000},
     {"staging_bytes": 100 << 20}, {"reserved": 5}, {"reserved": {"base": 0}}, {"reserved": {"base": 0, "bytes": 0}},
     {"reserved": {"base": 0x1000, "bytes": "much"}}, {"reserved": {"base": 0x1010, "bytes": 0x1000}},
     {"reserved": {"base": 0x1000, "bytes": 0x1800}}, {"reserved": {"base": 0xFFFFF000, "bytes": 0x2000}}],
)  # fmt: skip
def test_a_bad_setting_is_named(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))) as caught:
        PynqZ1Driver().probe(setting)
    assert caught.value.remedy


def test_an_unaligned_range_says_to_what() -> None:
    with pytest.raises(ConfigError, match=r"reserved has base 0x10000010, not aligned to pages of 4096 bytes"):
        PynqZ1Driver().probe({"reserved": {"base": 0x10000010, "bytes": 0x1000}})


def test_without_the_native_library_no_clock_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRUN_PYNQ_Z1_LIBRARY", "/nowhere/lib.so")
    native.library.cache_clear()
    try:
        for info in PynqZ1Driver().probe({"staging_bytes": 1 << 20}):
            assert info.unavailable is not None and "/nowhere/lib.so does not load" in info.unavailable.reason
            assert "MHz" not in info.description and "clock_hz" not in info.model
        assert "at 100 MHz" in board_info(clock_mhz=100).description
        with pytest.raises(ConfigError, match="clock_mhz"):
            board_info(clock_mhz=-1)
    finally:
        native.library.cache_clear()


def test_the_planner_keeps_room_for_values_and_counts_the_reserved_range() -> None:
    def capacities(**settings: object) -> dict[str, int]:
        return {space.name: space.capacity_bytes for space in board_info(**settings).spaces}

    mib = 1 << 20
    place = {"base": 0x10000000, "bytes": 64 * mib}
    assert capacities(cma_bytes=300 * mib) == {"pynq-z1:0/ddr": 268 * mib, "host": 433_061_888 - 300 * mib}
    assert capacities(cma_bytes=100 * mib, reserved=place) == {
        "pynq-z1:0/ddr": (68 + 64) * mib,
        "host": 433_061_888 - 164 * mib,
    }


@pytest.fixture(scope="session")
def pynq_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with pynq. HETRUN_PYNQ_PYTHON names one that is there already."""
    named = os.environ.get("HETRUN_PYNQ_PYTHON")
    line = f"python -m venv pynq && pynq/bin/pip install {' '.join(repr(r) for r in REQUIREMENTS)}"
    if named:
        python = Path(named)
    else:
        folder = tmp_path_factory.mktemp("pynq")
        python = folder / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        for command in ([sys.executable, "-m", "venv", str(folder)], install):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=500)
            except subprocess.TimeoutExpired:
                missing("Python package pynq 3.0.1 (installing it took too long)", line)
            if done.returncode:
                missing(f"Python package pynq 3.0.1 ({done.stderr.strip().splitlines()[-1:]})", line)
    return python


@pytest.fixture(scope="session")
def outcomes(pynq_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each case said: name -> problems of its parameters."""
    report = tmp_path_factory.mktemp("report") / "report.xml"
    # The rest (hetrun as it is under test, pytest, gguf) comes after what the environment has itself.
    site = sysconfig.get_paths()["purelib"]
    behind = f"import site; site.addsitedir({site!r})"
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={CASES[0].parents[2]}", f"--junitxml={report}"]
    options += map(str, CASES)
    folders = [str(CASES[0].parent), str(CASES[0].parents[1])]
    program = f"{behind}\nimport sys, pytest\nsys.path[:0] = {folders!r}\nsys.exit(pytest.main({options!r}))"
    variables = {**os.environ, "HETRUN_TEST_SITE": site}
    command = [str(pynq_python), "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=variables)
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problems = [f"{case.get('name')}: {part.text}" for part in case if part.tag in ("failure", "error", "skipped")]
        found.setdefault(case.get("name", "").partition("[")[0], []).extend(problems)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(1200)
def test_with_the_real_pynq(name: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes.get(name) == [], "\n".join(outcomes.get(name, ["it did not run"]))[-6000:]
