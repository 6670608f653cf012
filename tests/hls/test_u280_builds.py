"""The U280 engine in other builds: widths of integers, packed multipliers, depths of streams, the vendor's view."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import builds
from require import require_tool

HERE = Path(__file__).parent
ENGINE = builds.KERNELS / "alveo_u280"
PACK = ENGINE / "host/pack.cpp"
LINKED = HERE / "u280_linked.cpp"
STREAMS = ("FIFO", "RUNS", "BEATS", "COMMANDS", "RESULTS", "TURNS", "ORDERS", "WRITES", "DONE")


def run_with(library: Path, tests: str, **environment: str) -> subprocess.CompletedProcess[str]:
    files = [HERE / f"test_u280_{name}.py" for name in ("engine", "attention", "launch")]
    return builds.tests_with("HETRUN_ALVEO_U280_LIBRARY", library, files, tests, **environment)


@pytest.fixture(scope="module")
def ap_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.fetched_ap_types(tmp_path_factory.mktemp("ap"))


def test_integers_of_declared_widths_and_packed_multipliers_give_the_same_bits(ap_types: Path, tmp_path: Path) -> None:
    """What is computed there is what the array computes: two tokens a product, or the cross form."""
    sources = [PACK, ENGINE / "host/csim.cpp"]
    library = builds.compiled(tmp_path / "ap.so", sources, "-DHETRUN_FABRIC_AP", f"-I{ap_types}", "-w")
    tests = (
        "(matmul and (1- or 7-)) or extremes or any_size or embedding or (specification and 2-37-kv4h and (9-3 or 2-2))"
    )
    result = run_with(library, tests)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_the_source_as_the_vendors_compiler_sees_it_gives_the_same_bits(ap_types: Path, tmp_path: Path) -> None:
    """__SYNTHESIS__, with stand-ins for the vendor's streams.

    A pass a launch: there the processes of a kernel run one after the other.
    """
    flags = ("-D__SYNTHESIS__", f"-I{builds.STAND_INS}", f"-I{ap_types}", "-w")
    builds.compiled(tmp_path / "lanes.o", [ENGINE / "hls/lanes.cpp"], "-c", *flags)  # whose processes are threads here
    sources = [PACK, ENGINE / "hls/controller.cpp", LINKED]
    library = builds.compiled(tmp_path / "synthesis.so", sources, *flags)
    result = run_with(library, "(matmul and (1- or 7-) and (W2 or Q4_1 or Q6_K)) or any_size or reaches")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bounded") / "bounded.so"
    return builds.compiled(target, [PACK, LINKED], "-DHETRUN_FABRIC_BOUNDED", "-Wall", "-Wextra", "-Werror")


def test_streams_of_their_declared_depth_do_not_deadlock(bounded: Path) -> None:
    tests = "(matmul and (1- or 19-) and (W2S24 or Q4_1)) or selected or rope or counts or refused and ATTEND and hbm"
    result = run_with(bounded, f"{tests} or (specification and 0-5-kv4- and (9-3 or 33-11)) or reaches")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_readers_need_no_fifo_to_be_right(bounded: Path) -> None:
    """Depth buys time only: with one beat, and one order, of each stream nothing hangs."""
    depths = {f"HETRUN_FABRIC_DEPTH_{name}": "1" for name in STREAMS}
    result = run_with(bounded, "(matmul and 19- and Q4_1) or reaches or refused and ATTEND and hbm", **depths)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_without_room_is_named(bounded: Path, stream: str) -> None:
    result = run_with(bounded, "specification and 2-37-kv4- and 9-3-64", **{f"HETRUN_FABRIC_DEPTH_{stream}": "0"})
    assert result.returncode == 42
    assert "deadlock" in result.stderr and f"write to stream {stream}" in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def cascade(ap_types: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("cascade") / "cascade.so"
    flags = ("-DHETRUN_FABRIC_AP", f"-I{ap_types}", "-w")
    return ctypes.CDLL(str(builds.compiled(target, [HERE / "u280_cascade.cpp"], *flags)))


def most(exact: Callable[[int], bool]) -> int:
    """How many products keep their sums, up to 200."""
    return next(n for n in itertools.count() if n == 200 or not exact(n + 1))


@pytest.mark.parametrize(
    ("weights", "limit"), [((-128, 127), 8), ((-8, 7), 129), ((0, 15), 68)], ids=["8 bits", "S4", "U4"]
)
def test_two_tokens_keep_their_sums_apart(cascade: ctypes.CDLL, weights: tuple[int, int], limit: int) -> None:
    sums = (ctypes.c_int32 * 2)()

    def exact(n: int) -> bool:
        for x0, x1, w in itertools.product((-127, 127), (-127, 127), weights):
            cascade.cascade_of_tokens(x0, x1, w, n, sums)
            if tuple(sums) != (n * x0 * w, n * x1 * w):
                return False
        return True

    assert most(exact) == limit >= 8


def test_the_cross_form_keeps_its_middle(cascade: ctypes.CDLL) -> None:
    codes, weights = (-127, 127), (-3, 3)

    def exact(n: int) -> bool:
        every = itertools.product(codes, codes, weights, weights)
        return all(
            cascade.cascade_of_crosses(*case, n) == n * (case[0] * case[2] + case[1] * case[3]) for case in every
        )

    assert most(exact) == 21 >= 8


def test_no_memory_is_touched_beyond_its_end(tmp_path: Path) -> None:
    """Any program, under the address and undefined-behaviour sanitizers."""
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", '-DHETRUN_U280_FAST="../host/fast.h"')
    library = builds.compiled(tmp_path / "sanitized.so", [PACK, ENGINE / "host/csim.cpp"], *flags)
    runtime = subprocess.run([require_tool("g++", ""), "-print-file-name=libasan.so"], capture_output=True, text=True)
    environment = {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    result = run_with(
        library, "any_words or refused or (matmul and 7-) or (specification and 2-37-kv4h and 9-3)", **environment
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
