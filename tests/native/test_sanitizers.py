"""The native library under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from native import fuzz
from native.sanitizers import ASAN, TSAN, Sanitizer, assert_silent, build, compiler, run_python

SANITIZERS = pytest.mark.parametrize("sanitizer", [ASAN, TSAN], ids=lambda s: s.name)

# Cases of a run, each a fraction of a minute. ThreadSanitizer takes three times as long a case.
N_SEGMENTS = {"asan": 1500, "tsan": 500}
N_SHAPES = {"asan": 6 * len(fuzz.SHAPES), "tsan": 2 * len(fuzz.SHAPES)}
N_TABLES = 3000

FAULTS = {
    ("asan", "heap-buffer-overflow"): "char* volatile a = new char[8](); return a[n];",
    ("asan", "signed integer overflow"): "return 2147483640 + n;",
    ("tsan", "data race"): "int s = 0; std::thread t([&] { ++s; }); ++s; t.join(); return s + n;",
}


@pytest.fixture(scope="session")
def sanitized(checkout: Path, request: pytest.FixtureRequest) -> Callable[[Sanitizer], Path]:
    """sanitized(ASAN): the library built with it. The build stays in pytest's cache."""

    @cache
    def library(sanitizer: Sanitizer) -> Path:
        return build(sanitizer, checkout, request.config.cache.mkdir(f"native-{sanitizer.name}"))

    return library


@pytest.mark.parametrize(("name", "report"), FAULTS)
def test_a_fault_is_reported(name: str, report: str, tmp_path: Path) -> None:
    sanitizer = {"asan": ASAN, "tsan": TSAN}[name]
    source, library = tmp_path / "fault.cpp", tmp_path / "fault.so"
    source.write_text(f'#include <thread>\nextern "C" int fault(int n) {{ {FAULTS[name, report]} }}\n')
    flags = ["-g", "-O1", "-shared", "-fPIC", f"-fsanitize={sanitizer.checks}", "-fno-sanitize-recover=all"]
    subprocess.run([compiler(), *flags, "-o", str(library), str(source)], check=True)
    done = run_python(sanitizer, None, ["-c", f"import ctypes; ctypes.CDLL({str(library)!r}).fault(8)"])
    assert report in done.stderr
    with pytest.raises(pytest.fail.Exception):
        assert_silent(done)


@SANITIZERS
def test_random_segments(sanitizer: Sanitizer, sanitized: Callable[[Sanitizer], Path]) -> None:
    assert_silent(
        run_python(sanitizer, sanitized(sanitizer), [fuzz.__file__, "segments", "0", str(N_SEGMENTS[sanitizer.name])])
    )


@SANITIZERS
def test_matmuls_of_every_type_and_odd_shapes(sanitizer: Sanitizer, sanitized: Callable[[Sanitizer], Path]) -> None:
    assert_silent(
        run_python(sanitizer, sanitized(sanitizer), [fuzz.__file__, "shapes", "0", str(N_SHAPES[sanitizer.name])])
    )


def test_overwritten_step_tables(sanitized: Callable[[Sanitizer], Path]) -> None:
    done = run_python(ASAN, sanitized(ASAN), [fuzz.__file__, "tables", "0", str(N_TABLES)])
    assert_silent(done)
    assert 0 < int(done.stdout.split()[2]) < N_TABLES, "some are refused and some run"


@SANITIZERS
@pytest.mark.parametrize("tests", ["test_cpu_kernels.py", "test_cpu_attention.py"])
def test_kernel_tests(tests: str, sanitizer: Sanitizer, sanitized: Callable[[Sanitizer], Path], checkout: Path) -> None:
    path = checkout / "tests/unit" / tests
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={checkout}", "-c", str(checkout / "pyproject.toml")]
    assert_silent(run_python(sanitizer, sanitized(sanitizer), ["-m", "pytest", *options, str(path)]))


def test_a_case_is_the_same_every_time() -> None:
    assert fuzz.Case.of("segments", 7).ops == fuzz.Case.of("segments", 7).ops
