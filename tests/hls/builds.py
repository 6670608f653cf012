"""Other builds of the engines' sources: integers of their widths, streams of their depths, the vendor's view."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from require import missing, require_tool

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
STAND_INS = Path(__file__).parent / "vendor_hls"
_OPTIONS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-Wno-unknown-pragmas", "-pthread")


def compiled(target: Path, sources: Sequence[Path], *flags: str) -> Path:
    """A library of the sources and objects, or with -c an object."""
    compiler = require_tool("g++", "sudo apt-get install -y g++")
    command = [compiler, *_OPTIONS, f"-I{KERNELS}", f"-I{KERNELS / 'include'}", *flags, *map(str, sources)]
    if "-c" not in flags:
        command.append("-shared")
    subprocess.run([*command, "-o", str(target)], check=True, timeout=300)
    return target


def fetched_ap_types(folder: Path) -> Path:
    """The folder of the open ap_int headers, from the wheel of hls4ml."""
    line = "pip download --no-deps --no-binary :none: hls4ml==1.3.0"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "hls4ml==1.3.0", "-d", str(folder)]
    if subprocess.run(command, capture_output=True, timeout=300).returncode:
        missing("the wheel of hls4ml 1.3.0 (open ap_int headers)", line)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(str(wheel), folder, "zip")
    (header,) = folder.rglob("vivado/ap_types/ap_int.h")
    return header.parent


def tests_with(
    variable: str, library: Path, files: Sequence[Path], tests: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs tests of those files in a process that loads that library."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *map(str, files)]
    variables = {**os.environ, variable: str(library), **environment}
    return subprocess.run([*command, "-k", tests], capture_output=True, text=True, timeout=500, env=variables, cwd=ROOT)
