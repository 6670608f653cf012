"""Native libraries of plugins: what is wrong with one is one clear error."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

import hetrun_cpu.native
import hetrun_pynq_z1.native
from hetrun.errors import DeviceError, HetrunError
from hetrun.resources import load_library

LIBC = "libc.so.6"


def test_prototypes_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_LIBRARY", LIBC)
    pid = load_library("any.so", "ANY_LIBRARY", "getpid", os.getpid()).getppid
    assert pid() == os.getppid()
    library = load_library("any.so", "ANY_LIBRARY", "getpid", os.getpid(), {"labs": (ctypes.c_long, [ctypes.c_long])})
    assert library.labs(-(1 << 40)) == 1 << 40


def test_a_function_that_its_abi_promises_and_it_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_LIBRARY", LIBC)
    with pytest.raises(DeviceError, match=r"libc\.so\.6 has no function hetrun_none, though its ABI is \d+") as caught:
        load_library("any.so", "ANY_LIBRARY", "getpid", os.getpid(), {"hetrun_none": (None, [])})
    assert "reinstall" in str(caught.value.remedy)


def test_other_faults_of_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANY_LIBRARY", LIBC)
    with pytest.raises(DeviceError, match=r"has ABI \d+, this hetrun needs -1"):
        load_library("any.so", "ANY_LIBRARY", "getpid", -1)
    with pytest.raises(DeviceError, match="does not load"):
        load_library("any.so", "ANY_LIBRARY", "hetrun_none", 1)
    monkeypatch.setenv("ANY_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(DeviceError, match="does not load"):
        load_library("any.so", "ANY_LIBRARY", "getpid", 1)
    monkeypatch.delenv("ANY_LIBRARY")
    with pytest.raises(HetrunError, match=r"any\.so: not found"):
        load_library("any.so", "ANY_LIBRARY", "getpid", 1)


@pytest.mark.parametrize("native", [hetrun_cpu.native, hetrun_pynq_z1.native])
def test_a_library_of_another_make_makes_the_plugin_unavailable(
    native: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error reaches the drivers, which report it: no AttributeError on the way."""
    problem = DeviceError("lib.so has no function x", remedy="reinstall hetrun")

    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(native, "load_library", fail)
    native.library.cache_clear()  # type: ignore[attr-defined]
    try:
        assert native.library_problem() is problem  # type: ignore[attr-defined]
    finally:
        native.library.cache_clear()  # type: ignore[attr-defined]
