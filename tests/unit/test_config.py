"""Profiles and systems: what ships is valid, and what is wrong in a file is named with its line."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hetrun.config import load_profile, load_system, with_idle_power
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
def test_shipped_system_names_shipped_profiles_and_drivers(name: str) -> None:
    known = {f"model:{profile}" for profile in shipped("devices")} | {"alveo-u280"}
    assert {d.id for d in load_system(name).devices} <= known


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


def test_what_is_fused_and_which_functions_there_are(write: Write) -> None:
    lists = 'ops = ["matmul", "gated_activation"]\nfunctions = ["silu"]\nfused = ["gated_activation"]'
    profile = load_profile(write(PROFILE.replace('ops = ["matmul", "add"]', lists)))
    assert (profile.functions, profile.fused) == ({"silu"}, {"gated_activation"})
    plain = load_profile(write(PROFILE))
    assert (plain.functions, plain.fused) == ({"silu", "gelu"}, frozenset())


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ('fused = ["mul"]', "unknown 'mul'", "did you mean matmul"),
        ('fused = ["rope"]', "unknown 'rope'", "matmul"),  # it is none of the profile's ops
        ('functions = ["gelu_erf"]', "unknown 'gelu_erf'", "gelu"),
    ],
)
def test_a_bad_name_among_them_is_told(write: Write, line: str, said: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        load_profile(write(PROFILE.replace("kv_formats", f"{line}\nkv_formats", 1)))
    assert hint in (raised.value.remedy or "")


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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('description = "a board"', "description = 3", "description: 3 is not a text"),
        ("[model]", "[[model]]", "is not a table"),
        ("alignment_bytes = 4096", "alignment_bytes = 4096.5", "alignment_bytes: 4096.5 is not a whole number"),
        ('{ value = 1e9, basis = "analytic:data sheet" }', '"1 GB"', "capacity_bytes: '1 GB' is not a number with its"),
        ('{ value = 1e9, basis = "analytic:data sheet" }', "[1e9]", "capacity_bytes: [1000000000.0] is not a number"),
        ("value = 1e9, basis", "value = -1e9, basis", "-1e+09 is not above 0"),
        ("value = 1e9, basis", "value = inf, basis", "must be finite"),
        ('value = 1e-5, basis = "analytic', 'value = 10, unit = "us", basis = "analytic', "unit: unknown key"),
        (
            'upload = { latency_s = 1e-5, bytes_per_s = 1e9, basis = "measured:here" }',
            "upload = 1e9",
            "upload: 1000000000",
        ),
        ("latency_s = 1e-5", "latency_s = -1e-5", "latency_s: -1e-05 is not at least 0"),
    ],
)
def test_value_of_the_wrong_kind_is_named(write: Write, old: str, new: str, said: str) -> None:
    assert old in PROFILE
    path = write(PROFILE.replace(old, new, 1))
    with pytest.raises(ConfigError) as raised:
        load_profile(path)
    assert raised.value.message.startswith(f"{path}:")
    assert said in raised.value.message
    assert raised.value.remedy


@pytest.mark.parametrize("load", [load_profile, load_system])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n# nothing yet\n", "the file is empty"),
        (b"a board", "not a TOML file"),
        (b'description = "x"\ndescription = "y"\n', "not a TOML file: .*line 2"),
        (b'description = "\xff"\n', "not a TOML file"),
        (b"PK\x03\x04\x00\x00", "not a TOML file"),
    ],
)
def test_file_that_holds_nothing_of_the_kind_is_named(
    load: Callable[[Path], object], content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{said}"):
        load(path)


@pytest.mark.parametrize("load", [load_profile, load_system])
def test_what_cannot_be_read_is_named(load: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.toml: Is a directory"):
        load(tmp_path / "folder.toml")
    (tmp_path / "circle.toml").symlink_to(tmp_path / "circle.toml")
    with pytest.raises(ConfigError, match=r"circle\.toml: Too many levels of symbolic links"):
        load(tmp_path / "circle.toml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_file_without_permission_is_named(write: Write) -> None:
    path = write(PROFILE)
    path.chmod(0)
    with pytest.raises(ConfigError, match=r"mine\.toml: Permission denied"):
        load_profile(path)


def test_profile_whose_name_cannot_be_typed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my board.toml"
    path.write_text(PROFILE)
    with pytest.raises(ConfigError, match="'my board' cannot name a device"):
        load_profile(path)


def test_weaker_power_is_told_apart(write: Write) -> None:
    measured = re.sub('"(analytic|simulated):[^"]*"', '"measured:here"', PROFILE)
    profile = load_profile(write(measured + 'watts = { value = 3.0, basis = "analytic:a guess" }\n'))
    assert profile.basis == "measured:profile mine, power analytic"


def with_profiles(*names: str, devices: str = '"model:board"') -> str:
    listed = ", ".join(f'"{name}"' for name in names)
    return f'description = "x"\ndevices = [{devices}]\nprofiles = [{listed}]\n'


def test_system_brings_its_own_profiles(write: Write, tmp_path: Path) -> None:
    """Found beside the system's file, wherever the program runs."""
    (tmp_path / "board.toml").write_text(PROFILE)
    system = load_system(write(with_profiles("board.toml")))
    assert system.drivers == {"modelled": {"profiles": [str(tmp_path / "board.toml")]}}


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('description = "x"\ndevices = ["model:cortex-a8"]\n', "no profile 'cortex-a8'", "model:cortex-a9"),
        ('description = "x"\ndevices = ["cpu", "cpu"]\n', "'cpu' stands there twice", "once"),
        ('description = "x"\ndevices = []\n', "the list is empty", "at least one"),
        ('description = "x"\ndevices = "cpu"\n', "'cpu' is not a list of texts", "give a list"),
        ('description = "x"\ndevices = ["cpu"]\nlinks = 3\n', "links: 3 is not a table", "table"),
        ('description = "x"\ndevices = ["cpu"]\ndrivers = "x"\n', "drivers: 'x' is not a table", "table"),
        ('description = "x"\ndevices = ["cpu"]\n[drivers]\ncpu = 2\n', "cpu: 2 is not a table", "table"),
        ('description = "x"\ndevices = ["cpu"]\nhosts = 1\n', "hosts: unknown key", "did you mean host?"),
        ('description = "x"\ndevices = ["cpu"]\nprofiles = "b.toml"\n', "is not a list of texts", "give a list"),
        (with_profiles("none.toml"), "No such file", "check the path"),
        (with_profiles("mine.toml"), "unknown key|is missing", ""),
        (with_profiles("board.toml", "board.toml"), "a second profile 'board'", "rename board.toml"),
        (with_profiles("pynq-z1.toml"), "a second profile 'pynq-z1'", "rename pynq-z1.toml"),
        (
            with_profiles("board.toml") + '[drivers.modelled]\nprofiles = ["b.toml"]\n',
            "in \\[drivers.modelled\\]",
            "one",
        ),
    ],
)
def test_mistake_in_a_system_is_named(write: Write, tmp_path: Path, text: str, said: str, hint: str) -> None:
    for name in ("board.toml", "pynq-z1.toml"):
        (tmp_path / name).write_text(PROFILE)
    with pytest.raises(ConfigError) as raised:
        load_system(write(text))
    assert re.search(said, raised.value.message), raised.value.message
    assert ".toml" in raised.value.message
    assert hint in (raised.value.remedy or "")


def powered(device_id: str, watts: float | None, idle_watts: float) -> DeviceInfo:
    model = {"idle_watts": idle_watts} if watts is None else {"watts": watts, "idle_watts": idle_watts}
    launch = Cost(2.0, "analytic:x", joules=None if watts is None else 2.0 * watts)
    return dataclasses.replace(info(device_id, MemorySpace("host", 7)), model=model, launch=launch)


def test_devices_that_wait_draw_power_too() -> None:
    first, second, third = with_idle_power([powered("a", 10.0, 1.0), powered("b", 20.0, 5.0), powered("c", None, 0.5)])
    assert (first.model["watts"], second.model["watts"]) == (10.0 + 5.5, 20.0 + 1.5)
    assert (first.launch.joules, second.launch.joules) == (2 * 15.5, 2 * 21.5)
    assert "watts" not in third.model and third.launch.joules is None
    (alone,) = with_idle_power([powered("a", 10.0, 1.0)])
    assert alone == powered("a", 10.0, 1.0)


def test_links_to_a_device_without_a_memory_of_its_own_are_refused(write: Write) -> None:
    """Nothing is copied there, so that they would be ignored."""
    before = info("board:0", MemorySpace("host", 7))
    with pytest.raises(ConfigError, match=r"mine\.toml: \[links\.board:0\]: board:0 has no memory behind a link"):
        load_system(write(SYSTEM)).refine(before)
