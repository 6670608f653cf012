"""The PYNQ-Z1 engine's HLS source: bit-exact to its specification, wide enough everywhere, free of deadlocks."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import builds
import engine_order

from hetrun.device import Batch, Bindings, Segment, Unsupported
from hetrun.errors import AllocationError, ConfigError, DeviceError
from hetrun.ops import MatMul, Value, Workload
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.driver import PynqZ1Driver

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels" / "pynq_z1"


def matmul_on(
    driver: PynqZ1Driver, name: str, blocks: np.ndarray, x: np.ndarray, columns: int, **settings: object
) -> np.ndarray:
    """y of the device, through the contract."""
    info, *_ = driver.probe({"memory_bytes": 64 << 20, **settings})
    weight = Weight("w", TENSOR_TYPES[name], (len(blocks), columns))
    value = Value("x", columns)
    op = MatMul("y", value, weight)
    segment = Segment("y", (op,), (value,), (op.output,), max(1, len(x)), 1)
    device = driver.open(info)
    try:
        buffers = {"x": device.alloc(segment.value_bytes(value)), "y": device.alloc(segment.value_bytes(op.output))}
        buffers["x"].write(memoryview(np.ascontiguousarray(x)).cast("B"))
        program = driver.compile(info, segment)
        executable = device.load(program, {"w": memoryview(blocks.tobytes())}, Bindings(buffers, {}))
        n = len(x)
        executable.run(Batch.of([0] * n, range(n), [0] * n, []))
        y = np.empty((n, len(blocks)), np.float32)
        buffers["y"].read(memoryview(y).cast("B"))
        return y
    finally:
        device.close()


def columns_of(name: str) -> tuple[int, ...]:
    return (256, 1536) if name in engine_order.SUPER else (32, 96, 576, 1536)


@pytest.mark.parametrize("name", engine_order.TYPES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 19])
def test_bits_are_those_of_the_specification(name: str, tokens: int) -> None:
    rng = np.random.default_rng([tokens, definition().formats[name]])
    for columns in columns_of(name):
        for rows in (1, 8, 45):
            blocks = engine_order.random_blocks(rng, name, rows, columns)
            x = (rng.standard_normal((tokens, columns)) * 10.0 ** rng.integers(-3, 3, (tokens, 1))).astype(np.float32)
            y = matmul_on(PynqZ1Driver(), name, blocks, x, columns)
            expected = engine_order.multiply(name, blocks, x)
            assert np.array_equal(y.view(np.uint32), expected.view(np.uint32)), (columns, rows)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_1"])
def test_rows_beyond_one_descriptor_and_tokens_beyond_one_pass(name: str) -> None:
    rng = np.random.default_rng(3)
    rows = definition().numbers["MAX_ROWS"] * 2 + 13
    blocks = engine_order.random_blocks(rng, name, rows, 256)
    x = rng.standard_normal((2 * definition().numbers["TOKENS"] + 1, 256)).astype(np.float32)
    y = matmul_on(PynqZ1Driver(), name, blocks, x, 256)
    assert np.array_equal(y.view(np.uint32), engine_order.multiply(name, blocks, x).view(np.uint32))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_rows_and_change_no_bit(threads: int) -> None:
    rng = np.random.default_rng(9)
    blocks = engine_order.random_blocks(rng, "Q4_1", 1200, 576)
    x = rng.standard_normal((3, 576)).astype(np.float32)
    expected = engine_order.multiply("Q4_1", blocks, x)
    for _ in range(5):
        y = matmul_on(PynqZ1Driver(), "Q4_1", blocks, x, 576, threads=threads)
        assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))


def test_two_devices_in_two_threads_keep_to_their_own() -> None:
    """An engine's block RAM is one array of the library, whichever device runs it."""
    rng = np.random.default_rng(10)
    cases = []
    for name, columns in (("Q4_1", 576), ("Q6_K", 1536)):
        blocks = engine_order.random_blocks(rng, name, 700, columns)
        x = rng.standard_normal((8, columns)).astype(np.float32)
        cases.append((name, blocks, x, columns, engine_order.multiply(name, blocks, x)))

    def differing(case: tuple[str, np.ndarray, np.ndarray, int, np.ndarray]) -> int:
        name, blocks, x, columns, expected = case
        found = (matmul_on(PynqZ1Driver(), name, blocks, x, columns, threads=1) for _ in range(10))
        return sum(not np.array_equal(y.view(np.uint32), expected.view(np.uint32)) for y in found)

    with ThreadPoolExecutor(len(cases)) as threads:
        assert list(threads.map(differing, cases)) == [0, 0]


def test_products_that_vanish_are_flushed_as_the_fabric_does() -> None:
    rng = np.random.default_rng(4)
    blocks = engine_order.random_blocks(rng, "Q4_0", 16, 64)
    x = (rng.standard_normal((2, 64)) * 1e-34).astype(np.float32)
    y = matmul_on(PynqZ1Driver(), "Q4_0", blocks, x, 64)
    expected = engine_order.multiply("Q4_0", blocks, x)
    assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    assert not np.any((y != 0) & (np.abs(y) < np.finfo(np.float32).tiny))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_no_number_gives_no_number_and_harms_no_other(bad: float) -> None:
    rng = np.random.default_rng(5)
    blocks = engine_order.random_blocks(rng, "Q8_0", 9, 96)
    x = rng.standard_normal((3, 96)).astype(np.float32)
    clean = matmul_on(PynqZ1Driver(), "Q8_0", blocks, x, 96)
    x[1, 40] = bad
    y = matmul_on(PynqZ1Driver(), "Q8_0", blocks, x, 96)
    assert np.isnan(y[1]).all()
    assert np.array_equal(y[[0, 2]], clean[[0, 2]])


def test_the_extremes_of_every_field_keep_their_sums() -> None:
    """All codes, scales and activations at their largest: the widths of the integers are used to the full."""
    rng = np.random.default_rng(6)
    for name in engine_order.TYPES:
        for fill in (0x00, 0xFF, 0x80, 0x7F):
            blocks = np.full_like(engine_order.random_blocks(rng, name, 8, 256), fill)
            for row in blocks.reshape(8, -1, blocks.shape[1] // (256 // _elements(name))):
                for offset in engine_order.halves(name):
                    row[:, offset : offset + 2] = np.array([0.5], "<f2").view(np.uint8)
            x = np.where(np.arange(256) % 3 == 0, -1.0, 1.0).astype(np.float32)[None]
            for sign in (1.0, -1.0):
                y = matmul_on(PynqZ1Driver(), name, blocks, np.abs(x) * np.float32(sign), 256)
                assert np.array_equal(y, engine_order.multiply(name, blocks, np.abs(x) * np.float32(sign))), name


def _elements(name: str) -> int:
    return 256 if name in engine_order.SUPER else 32


def build(folder: Path, *flags: str) -> Path:
    """Another build of the library."""
    sources = [source for part in ("hls", "host", "timing") for source in sorted((SOURCES / part).glob("*.cpp"))]
    return builds.compiled(folder / "libhetrun_pynq_z1.so", sources, *flags)


def run_with(library: Path, tests: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs tests of this file and of the activation's in a process that loads that library."""
    files = [Path(__file__), Path(__file__).with_name("test_pynq_activation.py")]
    return builds.tests_with("HETRUN_PYNQ_Z1_LIBRARY", library, files, tests, **environment)


@pytest.fixture(scope="module")
def ap_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.fetched_ap_types(tmp_path_factory.mktemp("ap"))


def test_integers_of_declared_widths_give_the_same_bits(ap_types: Path, tmp_path: Path) -> None:
    library = build(tmp_path, "-DHETRUN_FABRIC_AP", f"-I{ap_types}", "-w")
    result = run_with(
        library, "test_bits_are_those or test_the_extremes or (test_a_fused and 7-) or test_an_activation"
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_the_source_as_the_vendors_compiler_sees_it_gives_the_same_bits(ap_types: Path, tmp_path: Path) -> None:
    """__SYNTHESIS__, with stand-ins for the vendor's streams and masters."""
    library = build(tmp_path, "-D__SYNTHESIS__", f"-I{builds.STAND_INS}", f"-I{ap_types}", "-w")
    result = run_with(library, "(test_bits_are_those and 7-) or (test_a_fused_block and 7-)")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bounded"), "-DHETRUN_FABRIC_BOUNDED")


def test_streams_of_their_declared_depth_do_not_deadlock(bounded: Path) -> None:
    result = run_with(
        bounded, "(test_bits_are_those and (Q2_K or Q5_1) and (1- or 7-)) or (test_a_fused and 7- and (Q3_K or 288))"
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_a_fifo_that_is_too_shallow_is_named(bounded: Path) -> None:
    """Heads wait for the packets of a row: with a depth of none, nothing moves."""
    result = run_with(bounded, "test_bits_are_those and Q2_K and 1-", HETRUN_FABRIC_DEPTH_HEADS="0")
    assert result.returncode == 42
    assert "deadlock" in result.stderr and "HEADS" in result.stderr


def test_the_engine_refuses_what_it_cannot_do() -> None:
    """Descriptors that no driver writes: the engine reports them and touches nothing."""
    library, known = native.library(), definition()
    memory = np.zeros(1 << 16, np.uint8)
    good = [0, 8, 1, 1, 4096, 8192, 256, 12288, 8, 16384, 32, 8, 0, 0, 0, 0]

    def run(**changes: int) -> tuple[int, int]:
        names = [
            "format",
            "n_rows",
            "n_chunks",
            "n_tokens",
            "weights",
            "codes",
            "code_stride",
            "scales",
            "scale_stride",
        ]
        names += ["out", "out_stride", "out_rows"]
        fields = list(good)
        for name, value in changes.items():
            fields[names.index(name)] = value
        memory[:64] = np.array(fields, "<u4").view(np.uint8)
        pointer = ctypes.c_void_p(memory.ctypes.data)
        registers = [ctypes.c_uint32() for _ in range(6)]
        library.hetrun_pynq_engine(
            pointer, pointer, pointer, pointer, ctypes.c_uint32(0), ctypes.c_uint32(1), *map(ctypes.byref, registers)
        )
        return registers[2].value, registers[3].value

    number = {name: value for value, name in known.statuses.items()}
    assert run() == (number["OK"], 1)
    assert run(format=known.numbers["FORMATS"]) == (number["BAD_FORMAT"], 0)
    most_chunks = known.numbers["MAX_COLUMNS"] // 256
    shapes = ({"n_rows": 12}, {"n_rows": 0}, {"n_tokens": 9}, {"n_tokens": 0}, {"n_chunks": 0}, {"out_rows": 9})
    for shape in (*shapes, {"n_rows": known.numbers["MAX_ROWS"] + 8}, {"n_chunks": most_chunks + 1}):
        assert run(**shape) == (number["BAD_SHAPE"], 0), shape
    for name in ("weights", "codes", "code_stride", "scales", "scale_stride"):
        assert run(**{name: 4100}) == (number["BAD_ADDRESS"], 0), name
    assert run(out=16386) == (number["BAD_ADDRESS"], 0)


def test_a_transfer_that_is_not_aligned_is_an_error_with_the_engine_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = PynqZ1Driver()
    info, *_ = driver.probe({"memory_bytes": 1 << 20})
    weight, value = Weight("w", TENSOR_TYPES["Q4_0"], (8, 64)), Value("x", 64)
    op = MatMul("y", value, weight)
    segment = Segment("s", (op,), (value,), (op.output,), 1, 1)
    device = driver.open(info)
    try:
        buffers = {v.name: device.alloc(segment.value_bytes(v)) for v in (value, op.output)}
        blocks = memoryview(bytes(weight.nbytes))
        loaded = device.loaded(weight, blocks)
        address = loaded.address(0)
        monkeypatch.setattr(loaded, "address", lambda row: address + 4)
        executable = device.load(driver.compile(info, segment), {"w": blocks}, Bindings(buffers, {}))
        with pytest.raises(DeviceError, match=r"pynq-z1:csim: segment s: the engine refused .*BAD_ADDRESS"):
            executable.run(Batch.of([0], [0], [0], []))
    finally:
        device.close()


def test_what_does_not_fit_the_block_ram_is_refused_with_the_reason() -> None:
    driver = PynqZ1Driver()
    info, *_ = driver.probe({})
    weight = Weight("blk.0.ffn_down.weight", TENSOR_TYPES["Q4_0"], (8, 8448))
    refusal = driver.estimate(info, MatMul("y", Value("x", 8448), weight), Workload(1, 0))
    assert "8448" in str(refusal) and "block RAM" in str(refusal)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (Weight("w", TENSOR_TYPES["Q4_0"], (8, 8448)), "w has rows of 8448; the engine's block RAM holds"),
        (Weight("w", TENSOR_TYPES["IQ4_NL"], (8, 256)), "w has type IQ4_NL; the engine reads Q2_K"),
        (Weight("w", TENSOR_TYPES["F16"], (8, 256)), "w has type F16; the engine reads Q2_K"),
    ],
    ids=["row", "iq4_nl", "f16"],
)
def test_what_is_refused_does_not_compile(weight: Weight, reason: str) -> None:
    driver = PynqZ1Driver()
    info, *_ = driver.probe({})
    op = MatMul("y", Value("x", weight.shape[1]), weight)
    segment = Segment("s", (op,), (op.x,), (op.output,), 1, 1)
    with pytest.raises(DeviceError, match=f"y: {reason}"):
        driver.compile(info, segment)


def test_memory_that_runs_out_and_bad_settings_are_named() -> None:
    driver = PynqZ1Driver()
    info, *_ = driver.probe({"memory_bytes": 1 << 20})
    device = driver.open(info)
    with pytest.raises(AllocationError, match="pynq-z1:csim: 2097152 bytes asked for"):
        device.alloc(2 << 20)
    device.close()
    for setting in ({"memory_bytes": 0}, {"memory_bytes": "much"}, {"memory": 1}):
        with pytest.raises(ConfigError):
            driver.probe(setting)
    with pytest.raises(DeviceError, match="closed"):
        device.alloc(8)


def test_a_library_that_does_not_load_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRUN_PYNQ_Z1_LIBRARY", "/nowhere/libhetrun_pynq_z1.so")
    native.library.cache_clear()
    try:
        driver, op = PynqZ1Driver(), MatMul("y", Value("x", 64), Weight("w", TENSOR_TYPES["Q4_0"], (64, 64)))
        for info in driver.probe({}):
            assert info.unavailable is not None and "/nowhere/libhetrun_pynq_z1.so" in info.unavailable.reason
            answer = driver.estimate(info, op, Workload(1, 0))
            assert isinstance(answer, Unsupported) and "/nowhere/libhetrun_pynq_z1.so" in answer.reason
    finally:
        native.library.cache_clear()
