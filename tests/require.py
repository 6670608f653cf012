"""What a test needs beyond Python and hetrun: without it the test is skipped, or fails where HETRUN_REQUIRE_ALL=1."""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest


def missing(what: str, install_line: str) -> NoReturn:
    """Skips the running test and says how to get what it needs; fails it instead where HETRUN_REQUIRE_ALL=1."""
    reason = f"{what} is missing; get it with: {install_line}"
    if os.environ.get("HETRUN_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_tool(name: str, install_line: str) -> str:
    """The path of an executable on PATH."""
    path = shutil.which(name)
    if path is None:
        missing(name, install_line)
    return path


def require_module(name: str, install_line: str) -> ModuleType:
    """An importable Python module."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"Python module {name}", install_line)
