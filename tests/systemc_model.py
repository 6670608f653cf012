"""A cycle model and its SystemC twin, built as one program and run with the same constants."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from require import missing, require_tool

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
AGREEMENT = 0.01
_INSTALL = "sudo apt-get install -y libsystemc-dev"

Counts = dict[str, int]


def compiled(program: Path, engine: str, sources: Sequence[str]) -> Path:
    """The program of kernels/`engine`/systemc.   sources: of that folder, beside it."""
    compiler = require_tool("g++", "sudo apt-get install -y g++")
    includes = [compiler, "-x", "c++", "-E", "-include", "systemc", "/dev/null"]
    if subprocess.run(includes, capture_output=True).returncode:
        missing("SystemC", _INSTALL)
    paths = [str(KERNELS / engine / source) for source in ("systemc/main.cpp", *sources)]
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS / 'include'}"]
    subprocess.run([compiler, *options, *paths, "-lsystemc", "-o", str(program)], check=True, timeout=300)
    return program


def both(program: Path, *arguments: str | Path) -> tuple[Counts, Counts]:
    """Of the SystemC model, and of the cycle model."""
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    return found["systemc"], found["plain"]
