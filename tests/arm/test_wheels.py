"""Wheels for ARM boards, cross-built as docs/arm.md says."""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from arm.board import ARCHITECTURES

TARGETS = [a.target for a in ARCHITECTURES]
E_MACHINE = {"armv7l": 40, "aarch64": 183}  # of the ELF header: EM_ARM, EM_AARCH64
ELF_CLASS = {"armv7l": 1, "aarch64": 2}  # 32 and 64 bit

# The PYNQ 3 images and Raspberry Pi OS 12 rest on Ubuntu 22.04 and Debian 12: the older has glibc 2.35.
NEWEST_GLIBC = (2, 35)


def libraries(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}


@pytest.mark.parametrize("target", TARGETS)
def test_wheel_is_named_for_every_python_of_the_board(target: str, arm_wheel: Callable[[str], Path]) -> None:
    assert re.fullmatch(rf"hetrun-[0-9.]+-py3-none-linux_{target}\.whl", arm_wheel(target).name)


@pytest.mark.parametrize("target", TARGETS)
def test_wheel_holds_the_boards_code(target: str, arm_wheel: Callable[[str], Path]) -> None:
    found = libraries(arm_wheel(target))
    assert set(found) == {
        "hetrun/_native/libhetrun_core.so",
        "hetrun_alveo_u280/_native/libhetrun_alveo_u280.so",
        "hetrun_cpu/_native/libhetrun_cpu.so",
        "hetrun_pynq_z1/_native/libhetrun_pynq_z1.so",
    }
    for content in found.values():
        assert content[:5] == b"\x7fELF" + bytes([ELF_CLASS[target]])
        assert struct.unpack_from("<H", content, 18)[0] == E_MACHINE[target]


@pytest.mark.parametrize("target", TARGETS)
def test_wheel_needs_no_newer_glibc_than_the_boards_have(target: str, arm_wheel: Callable[[str], Path]) -> None:
    for name, content in libraries(arm_wheel(target)).items():
        asked = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"\0GLIBC_(2(?:\.\d+)+)(?=\0)", content)}
        assert asked, name
        assert max(asked) <= NEWEST_GLIBC, name


@pytest.mark.parametrize("target", TARGETS)
def test_wheel_needs_no_cpp_runtime(target: str, arm_wheel: Callable[[str], Path]) -> None:
    for name, content in libraries(arm_wheel(target)).items():
        assert b"libstdc++.so" not in content, name
