"""The cpu device's library built with sanitizers, and Python programs that run over it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import require


@dataclass(frozen=True, eq=False)
class Sanitizer:
    """checks: of -fsanitize.   runtime: preloaded, for Python itself is not built with it.   options: environment."""

    name: str
    checks: str
    runtime: str
    options: dict[str, str]
    wrapper: tuple[str, ...] = ()


ASAN = Sanitizer(
    "asan",
    "address,undefined",
    "libasan.so",
    {
        # Python frees little at its end, and its own allocator would hide overruns inside its arenas. Frames on ASan's
        # own stack are not aligned for 64-byte vectors (GCC PR 110027).
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    },
)
TSAN = Sanitizer(
    "tsan",
    "thread",
    "libtsan.so",
    {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"},
    ("setarch", "-R"),  # its shadow memory has fixed places, which address randomisation may take
)


def compiler() -> str:
    return require.require_tool("g++", "sudo apt-get install -y g++")


def runtime(sanitizer: Sanitizer) -> str:
    """The path of the compiler's own runtime of the sanitizer."""
    done = subprocess.run([compiler(), f"-print-file-name={sanitizer.runtime}"], capture_output=True, text=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        require.missing(sanitizer.runtime, "sudo apt-get install -y g++ libstdc++-12-dev")
    return path


def build(sanitizer: Sanitizer, checkout: Path, folder: Path) -> Path:
    """libhetrun_cpu.so with the sanitizer, built in `folder`, again only where sources changed."""
    cmake = require.require_tool("cmake", "sudo apt-get install -y cmake")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [cmake, "-S", str(checkout / "kernels/cpu"), "-B", str(folder), *generator]
    settings = [
        "-DCMAKE_BUILD_TYPE=None",
        f"-DCMAKE_CXX_COMPILER={compiler()}",
        f"-DHETRUN_CPU_SANITIZE={sanitizer.checks}",
    ]
    for command in ([*configure, *settings], [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return folder / "libhetrun_cpu.so"


def run_python(
    sanitizer: Sanitizer, library: Path | None, arguments: Sequence[str], timeout_s: float = 400
) -> subprocess.CompletedProcess[str]:
    """A Python program with the sanitizer's runtime and, where given, its library of the cpu device."""
    for tool in sanitizer.wrapper[:1]:
        require.require_tool(tool, "sudo apt-get install -y util-linux")
    environment = {**os.environ, **sanitizer.options, "LD_PRELOAD": runtime(sanitizer)}
    # NumPy's own threads are not built with the sanitizer, and look like races.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    if library is not None:
        environment["HETRUN_CPU_LIBRARY"] = str(library)
    command = [*sanitizer.wrapper, sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)


def assert_silent(done: subprocess.CompletedProcess[str]) -> None:
    """Fails with the end of what the program said unless it ended well and no sanitizer spoke."""
    said = done.stdout + done.stderr
    if done.returncode or "Sanitizer" in said or "runtime error:" in said:
        pytest.fail(f"exit code {done.returncode}\n{said[-12_000:]}", pytrace=False)
