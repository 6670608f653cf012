"""Instructions that a product of the cpu device takes on ARM, counted under qemu-user: simulated, no time is measured.

    python benchmarks/arm_instructions.py [--write]     minutes, after the first run has built the libraries

32 rows of 2048 columns, as GGUF has them and packed, for one token and for 16: what a matrix of 64 rows takes beyond
one of 32, so that rounding the activations, which all rows share, has no part in it. Builds go to HETRUN_BENCH_CACHE
(default ~/.cache/hetrun/benchmarks). It needs qemu-user g++-aarch64-linux-gnu g++-arm-linux-gnueabihf ninja-build.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hetrun.tensor import ALL_TYPES
from hetrun_cpu.native import ISA_NAMES

ROOT = Path(__file__).resolve().parent.parent
WORKERS, PAGE = ROOT / "benchmarks" / "workers", ROOT / "docs" / "arm.md"
BEGIN, END = "<!-- instructions: written by benchmarks/arm_instructions.py -->", "<!-- end of instructions -->"
TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "W2")
COLUMNS, ROWS, TOKENS = 2048, 32, (1, 16)


@dataclass(frozen=True)
class Core:
    """target: of cmake/<target>.cmake.   triplet: of its compiler.   qemu, cpu: what runs its programs."""

    target: str
    triplet: str
    qemu: str
    cpu: str
    isa: str


CORES = (
    Core("armv7l", "arm-linux-gnueabihf", "qemu-arm", "cortex-a9", "neon"),
    Core("aarch64", "aarch64-linux-gnu", "qemu-aarch64", "cortex-a76", "dotprod"),
)


class Counter:
    """A core with the library and a program that multiplies, built in `folder`."""

    def __init__(self, core: Core, folder: Path) -> None:
        build, program, plugin = folder / core.target, folder / f"matmul-{core.target}", folder / "count.so"
        toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/{core.target}.cmake"
        run("cmake", "-S", ROOT / "kernels/cpu", "-B", build, "-G", "Ninja", toolchain)
        run("cmake", "--build", build)
        flags = ("-O2", "-std=c++17", "-I", ROOT / "kernels/include")
        source = WORKERS / "arm_matmul.cpp"
        run(f"{core.triplet}-g++", *flags, source, "-o", program, "-L", build, "-lhetrun_cpu")
        run("cc", "-shared", "-fPIC", WORKERS / "count_instructions.c", "-o", plugin)
        system = ("-L", f"/usr/{core.triplet}", "-E", f"LD_LIBRARY_PATH={build}")
        self.command = (core.qemu, "-cpu", core.cpu, "-plugin", plugin, *system, program)
        self.isa = ISA_NAMES.index(core.isa)

    def of_product(self, type_name: str, packed: bool, n_tokens: int) -> float:
        """Instructions a product of ROWS more rows."""
        more, fewer = (self._of_run(type_name, packed, n_tokens, n_rows) for n_rows in (2 * ROWS, ROWS))
        return (more - fewer) / (ROWS * COLUMNS * n_tokens)

    def _of_run(self, type_name: str, packed: bool, n_tokens: int, n_rows: int) -> int:
        """What a second run of the matrix takes: the first has what is done once."""
        kind = ALL_TYPES[type_name]
        words = (self.isa, kind.id, kind.row_bytes(COLUMNS), int(packed), n_rows, n_tokens)
        once, twice = (int(run(*self.command, *words, n_runs)) for n_runs in (1, 2))
        return twice - once


def run(*command: object) -> str:
    """What a command prints on stderr."""
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return done.stderr.decode()


def table(folder: Path) -> str:
    counters = [Counter(core, folder) for core in CORES]
    names = [f"{c.target if c.isa == 'neon' else c.isa} {w}" for c in CORES for w in ("decode", "prefill, 16 tokens")]
    lines = [f"| Type | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for type_name in TYPES:
        cells = [
            " -> ".join(f"{counter.of_product(type_name, packed, n_tokens):.2f}" for packed in (False, True))
            for counter in counters
            for n_tokens in TOKENS
        ]
        lines.append(f"| {type_name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="the table of docs/arm.md")
    args = parser.parse_args()
    folder = Path(os.environ.get("HETRUN_BENCH_CACHE", "~/.cache/hetrun/benchmarks")).expanduser() / "arm"
    folder.mkdir(parents=True, exist_ok=True)
    found = table(folder)
    print(found)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
        PAGE.write_text(re.sub(pattern, f"{BEGIN}\n\n{found}\n\n{END}", page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        words = " ".join(map(str, error.cmd))
        raise SystemExit(f"error: {words}: exit code {error.returncode}\n{error.stderr.decode()}") from error
