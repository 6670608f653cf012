"""Profiles and systems: what ships is valid, and what is wrong in a file is named with its line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hetrun.config import load_profile, load_system
from hetrun.device import Cost, DeviceInfo, Link, MemorySpace
from hetrun.errors import ConfigError
from hetrun.toml_table import read_toml, shipped

PROFILE = """\
description = "a board"
ops = ["matmul", "add"]
types = ["Q4_K"]
kv_formats = ["f16"]
launch_s = { value = 1e-5, basis = "analytic:a guess" }

[memory.host]
capacity_bytes = { value = 1e9, basis = "analytic:data sheet" }

[memory.ddr]
capacity_bytes = { value = 2e9, basis = "analytic:data sheet" }
alignment_bytes = 4096
upload = { latency_s = 1e-5, bytes_per_s = 1e9, basis = "measured:here" }
download = { latency_s = 1e-5, bytes_per_s = 2e9, basis = "measured:here" }

[model]
flops_per_s = { value = 1e9, basis = "simulated:cycles" }
bytes_per_s = { value = 1e9, basis = "measured:here" }
"""

SYSTEM = """\
description = "a board and a host"
devices = ["cpu", "board:0"]

[host]
capacity_bytes = { value = 4e9, basis = "analytic:data sheet" }

[links."board:0"]
upload = { latency_s = 2e-5, bytes_per_s = 3e9, basis = "measured:there" }

[drivers.board]
overlay = "board.bit"
"""


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(text) -> path of a file that holds it."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", shipped("devices"))
def test_shipped_profile_is_valid(name: str) -> None:
    assert load_profile(name).name == name


@pytest.mark.parametrize("name", shipped("systems"))
def test_shipped_system_is_valid(name: str) -> None:
    assert load_system(name).devices


@pytest.mark.parametrize("name", shipped("systems"))
def test_shipped_system_names_shipped_profiles(name: str) -> None:
    assert {d.id for d in load_system(name).devices} <= {f"model:{profile}" for profile in shipped("devices")}


def test_profiles_of_the_plan_are_shipped() -> None:
    wanted = {"cortex-a9", "cortex-a53", "cortex-a76", "x86-generic", "pynq-z1", "kv260", "alveo-u280", "null"}
    assert wanted <= set(shipped("devices"))
    assert {"pynq-z1", "workstation-u280", "laptop", "rpi5"} <= set(shipped("systems"))


def test_profile_holds_what_the_file_says(write: Write) -> None:
    profile = load_profile(write(PROFILE))
    host, ddr = profile.spaces
    assert (profile.name, profile.ops, profile.types) == ("mine", {"matmul", "add"}, {"Q4_K"})
    assert (host.name, host.capacity_bytes.value, host.alignment_bytes, host.upload) == ("host", 1e9, 64, None)
    assert (ddr.alignment_bytes, ddr.download) == (4096, Link(1e-5, 2e9, "measured:here"))
    assert profile.launch_s.basis == "analytic:a guess"
    assert {key: q.value for key, q in profile.model.items()} == {"flops_per_s": 1e9, "bytes_per_s": 1e9}


@pytest.mark.parametrize(
    ("launch", "expected"), [("analytic:x", "analytic"), ("measured:x", "simulated")], ids=["analytic", "simulated"]
)
def test_basis_is_the_weakest_of_the_numbers(write: Write, launch: str, expected: str) -> None:
    profile = load_profile(write(PROFILE.replace("analytic:a guess", launch)))
    assert profile.basis == f"{expected}:profile mine"


def test_all_stands_for_every_name(write: Write) -> None:
    profile = load_profile(write(PROFILE.replace('["Q4_K"]', '["all"]')))
    assert {"F32", "Q4_K", "Q6_K"} <= profile.types


@pytest.mark.parametrize(
    ("old", "new", "line", "said", "hint"),
    [
        ("launch_s =", "launch_ms =", 5, "launch_ms: unknown key", "did you mean launch_s?"),
        ("flops_per_s =", "gflops_per_s =", 17, "gflops_per_s: unknown key", "did you mean flops_per_s?"),
        ("alignment_bytes", "alignment_bits", 12, "alignment_bits: unknown key", "did you mean alignment_bytes?"),
        ("latency_s = 1e-5, bytes_per_s = 1e9", "latency_us = 10, bytes_per_s = 1e9", 13, "latency_us", "latency_s"),
        ('["matmul", "add"]', '["matmull"]', 2, "unknown 'matmull'", "did you mean matmul"),
        ('["Q4_K"]', '["Q4_KM"]', 3, "unknown 'Q4_KM'", "did you mean Q4_K"),
        ('["f16"]', '["fp16"]', 4, "unknown 'fp16'", "did you mean f16"),
        ('["Q4_K"]', '"Q4_K"', 3, "is not a list of texts", "give a list of texts"),
        ('["Q4_K"]', "[4]", 3, "4 is not a text", "give a list of texts"),
        ('["Q4_K"]', "[]", 3, "the list is empty", "name at least one"),
        ("value = 1e-5", "value = -1e-5", 5, "-1e-05 is not at least 0", "unit"),
        ("value = 1e-5", "value = nan", 5, "nan is not at least 0", "unit"),
        ("value = 1e-5", "value = inf", 5, "must be finite", "unit"),
        ("value = 1e-5", 'value = "10 us"', 5, "'10 us' is not a number", "give a number"),
        ("value = 1e-5", "value = true", 5, "True is not a number", "give a number"),
        ("value = 1e-5, ", "", 5, "value is missing", "add value, a number"),
        (', basis = "analytic:a guess"', "", 5, "basis is missing", "add basis, a text"),
        ("analytic:a guess", "a guess", 5, "'a guess' names no source", "measured:<where>"),
        ("analytic:a guess", "analytic:", 5, "'analytic:' names no source", "measured:<where>"),
        ('{ value = 1e-5, basis = "analytic:a guess" }', "1e-5", 5, "1e-05 is not a number with its source", "basis"),
        ("value = 1e9, basis = \"simulated", "value = 0, basis = \"simulated", 17, "0 is not above 0", "unit"),
        ("alignment_bytes = 4096", "alignment_bytes = 100", 12, "100 is no power of two", "64"),
        ("alignment_bytes = 4096", "alignment_bytes = 0", 12, "0 is less than 1", "from 1 on"),
        ("bytes_per_s = 2e9", "bytes_per_s = 0", 14, "0 is not above 0", "unit"),
    ],
)  # fmt: skip
def test_mistake_is_named_with_its_line(write: Write, old: str, new: str, line: int, said: str, hint: str) -> None:
    assert old in PROFILE
    path = write(PROFILE.replace(old, new, 1))
    with pytest.raises(ConfigError) as raised:
        load_profile(path)
    assert raised.value.message.startswith(f"{path}:{line}: ")
    assert said in raised.value.message
    assert hint in (raised.value.remedy or "")


def test_half_a_link_is_refused(write: Write) -> None:
    text = "".join(line for line in PROFILE.splitlines(keepends=True) if not line.startswith("download"))
    with pytest.raises(ConfigError, match="upload and download go together"):
        load_profile(write(text))


def test_memory_is_needed(write: Write) -> None:
    text = PROFILE[: PROFILE.index("[memory.host]")] + PROFILE[PROFILE.index("[model]") :]
    with pytest.raises(ConfigError, match="memory is missing"):
        load_profile(write(text))


def test_broken_toml_names_file_and_line(write: Write) -> None:
    path = write("description = \n")
    with pytest.raises(ConfigError, match=r"mine\.toml: not a TOML file: .*line 1"):
        read_toml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_profile(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("load", "name", "near"), [(load_profile, "cortex-a8", "cortex-a9"), (load_system, "pynq", "pynq-z1")]
)
def test_unknown_name_gives_near_ones(load: Callable[[str], object], name: str, near: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(name)
    assert near in (raised.value.remedy or "")


def test_system_holds_what_the_file_says(write: Write) -> None:
    system = load_system(write(SYSTEM))
    assert [d.id for d in system.devices] == ["cpu", "board:0"]
    assert system.drivers == {"board": {"overlay": "board.bit"}}
    assert system.host_capacity is not None and system.host_capacity.value == 4e9


def info(device_id: str, *spaces: MemorySpace) -> DeviceInfo:
    return DeviceInfo(device_id, "", "modelled", spaces, Cost(0.0, "analytic:x"), {})


def test_system_replaces_host_memory(write: Write) -> None:
    before = info("cpu:0", MemorySpace("host", 1))
    (space,) = load_system(write(SYSTEM)).refine(before).spaces
    assert space == dataclasses.replace(before.spaces[0], capacity_bytes=4_000_000_000)


def test_system_replaces_the_links_it_names(write: Write) -> None:
    link = Link(0.0, 1.0, "analytic:x")
    before = info("board:0", MemorySpace("board:0/ddr", 7, upload=link, download=link))
    (space,) = load_system(write(SYSTEM)).refine(before).spaces
    assert space == dataclasses.replace(before.spaces[0], upload=Link(2e-5, 3e9, "measured:there"))


def test_links_of_a_stranger_are_refused(write: Write) -> None:
    with pytest.raises(ConfigError) as raised:
        load_system(write(SYSTEM.replace('links."board:0"', 'links."bord:0"')))
    assert "no device of this system" in raised.value.message
    assert "board:0" in (raised.value.remedy or "")


def test_profiles_load_without_numpy() -> None:
    code = "import sys; from hetrun.config import load_profile; load_profile('null'); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
