"""The reference as a driver and device: the contract's rules."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from hetrun import ops
from hetrun.device import Batch, Bindings, Cost, Segment, Unsupported, Workload
from hetrun.errors import AllocationError, ConfigError, DeviceError
from hetrun.ops import KvSpec, Value
from hetrun.reference.driver import ReferenceDriver
from hetrun.tensor import TENSOR_TYPES, Weight

F32 = TENSOR_TYPES["F32"]
X = Value("x", 4)
DOUBLE = ops.Scale("y", X, 2.0)
KV = KvSpec("kv", 2, 8, 1, 4, format="f32")
ATTENTION = ops.Attention("a", X, X, X, KV, scale=0.5)
TABLE = ops.Embedding("e", Weight("table", F32, (3, 4)))


@pytest.fixture
def driver():
    return ReferenceDriver()


@pytest.fixture
def info(driver):
    return driver.probe({})[0]


@pytest.fixture
def device(driver, info):
    device = driver.open(info)
    yield device
    device.close()


def segment_of(*chain: ops.Op, max_tokens: int = 4) -> Segment:
    made = {op.name for op in chain}
    inputs = tuple({v.name: v for op in chain for v in op.inputs if v.name not in made}.values())
    return Segment("segment", chain, inputs, (chain[-1].output,), max_tokens, max_tokens)


class Bench:
    """A loaded segment with its buffers."""

    def __init__(self, driver, info, device, *chain, weights=None, max_tokens=4):
        self.segment = segment_of(*chain, max_tokens=max_tokens)
        self.buffers = {
            v.name: device.alloc(self.segment.value_bytes(v)) for v in (*self.segment.inputs, *self.segment.outputs)
        }
        self.states = {op.kv.name: device.state(op.kv) for op in chain if isinstance(op, ops.Attention)}
        program = driver.compile(info, self.segment)
        self.executable = device.load(program, weights or {}, Bindings(self.buffers, self.states))

    def run(self, batch, x=None):
        if x is not None:
            self.buffers["x"].write(np.asarray(x, np.float32).data)
        self.executable.run(batch)
        output = self.segment.outputs[0]
        result = np.empty((batch.rows(output.rows), output.width), np.float32)
        self.buffers[output.name].read(result.data)
        return result


@pytest.fixture
def bench(driver, info, device):
    return lambda *chain, **options: Bench(driver, info, device, *chain, **options)


def tokens(n: int, **changed: list[int]) -> Batch:
    fields = {"tokens": [0] * n, "positions": list(range(n)), "slots": [0] * n, "outputs": list(range(n)), **changed}
    return Batch.of(*fields.values())


def table_bytes(first: float = 0.0) -> memoryview:
    return memoryview((np.arange(12, dtype=np.float32) + np.float32(first)).tobytes())


def test_planning_imports_no_numpy():
    code = """
import sys
from hetrun import ops
from hetrun.device import Segment, Workload
from hetrun.reference.plugin import hetrun_drivers
driver, = hetrun_drivers()
info, = driver.probe({})
op = ops.Scale("y", ops.Value("x", 4), 2.0)
driver.estimate(info, op, Workload(1, 0))
driver.compile(info, Segment("s", (op,), op.inputs, (op.output,), 1, 1))
assert not {"numpy", "gguf"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_probe_finds_one_device_on_the_host(info):
    assert (info.id, info.backing, info.spaces[0].name, info.unavailable) == ("reference:0", "hardware", "host", None)
    assert info.spaces[0].upload is info.spaces[0].download is None


def test_probe_reports_a_missing_numpy(driver, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (info,) = driver.probe({})
    assert "pip install numpy" in info.unavailable.remedy
    with pytest.raises(DeviceError, match="NumPy is not installed"):
        driver.open(info)


def test_probe_takes_numbers_of_its_model_and_leaves_the_rest(driver):
    (info,) = driver.probe({"flops_per_s": 5, "threads": 2})
    assert info.model["flops_per_s"] == 5
    assert "threads" not in info.model


@pytest.mark.parametrize("value", [0, -1.0, "fast", float("nan")])
def test_probe_refuses_a_number_that_cannot_be_meant(driver, value):
    with pytest.raises(ConfigError, match="flops_per_s"):
        driver.probe({"flops_per_s": value})


def test_weights_are_priced_and_kept_as_float32(driver, info):
    op = ops.MatMul("m", Value("x", 64), Weight("w", TENSOR_TYPES["Q4_0"], (32, 64)))
    cost = driver.estimate(info, op, Workload(1, 0))
    assert isinstance(cost, Cost)
    assert cost.resident == {("host", "w"): 4 * 32 * 64}
    assert cost.seconds >= 4 * 32 * 64 / info.model["bytes_per_s"]
    assert cost.basis.startswith("analytic:")


@pytest.mark.parametrize("format,nbytes", [("f32", 4), ("f16", 2), ("q8_0", 4)])
def test_kv_is_priced_as_it_is_kept(driver, info, format, nbytes):
    kv = KvSpec("kv", 2, 8, 1, 32, format=format)
    x = Value("x", 32)
    cost = driver.estimate(info, ops.Attention("a", x, x, x, kv, scale=0.5), Workload(1, 0))
    assert cost.resident == {("host", "kv"): 2 * 2 * 8 * 32 * nbytes}


@pytest.mark.parametrize(
    "op,reason",
    [
        (ops.MatMul("m", Value("x", 256), Weight("w", TENSOR_TYPES["Q8_K"], (1, 256))), "Q8_K"),
        (replace(ATTENTION, kv=replace(KV, format="kv2")), "kv2"),
        (replace(ATTENTION, kv=replace(KV, format="q8_0")), "multiple of 32"),
    ],
    ids=["type", "kv-format", "kv-blocks"],
)
def test_a_refusal_names_its_reason_and_compile_agrees(driver, info, op, reason):
    answer = driver.estimate(info, op, Workload(1, 0))
    assert isinstance(answer, Unsupported) and reason in answer.reason
    with pytest.raises(DeviceError, match=reason):
        driver.compile(info, segment_of(op))


def test_an_op_of_another_vocabulary_is_refused(driver, info):
    class Strange(ops.Scale):
        kind = "strange"

    assert isinstance(driver.estimate(info, Strange("y", X, 2.0), Workload(1, 0)), Unsupported)


def test_compile_is_deterministic_and_names_what_stays(driver, info):
    segment = segment_of(TABLE, ops.MatMul("m", TABLE.output, Weight("table", F32, (3, 4))))
    program = driver.compile(info, segment)
    assert program == driver.compile(info, segment)
    assert program.resident == {("host", "table"): 48}


def test_open_refuses_a_modelled_device(driver, info):
    with pytest.raises(DeviceError, match="modelled"):
        driver.open(replace(info, backing="modelled"))


def test_run_computes_the_segment(bench):
    assert bench(DOUBLE).run(tokens(2), [[1, 2, 3, 4], [5, 6, 7, 8]]).tolist() == [[2, 4, 6, 8], [10, 12, 14, 16]]


def test_rows_beyond_the_batch_are_not_written(bench):
    b = bench(DOUBLE)
    b.buffers["y"].write(memoryview(b"\xee" * b.buffers["y"].nbytes))
    b.run(tokens(3), np.ones((4, 4)))
    assert bytes(b.buffers["y"].host_view()[3 * 16 :]) == b"\xee" * 16


@pytest.mark.parametrize(
    "chain",
    [
        (TABLE,),
        (ops.RmsNorm("n", X, Weight("w", F32, (4,)), 1e-5),),
        (ops.MatMul("m", X, Weight("w", F32, (4, 4))),),
        (ops.Rope("r", X, 4, "half", (1.0,)),),
        (ATTENTION,),
        (ops.GatedActivation("g", X, X),),
        (ops.SelectRows("s", X),),
    ],
    ids=lambda chain: chain[0].kind,
)
def test_zero_rows_are_legal(bench, chain):
    weights = {w.name: memoryview(bytes(w.nbytes)) for w in chain[0].weights}
    assert bench(*chain, weights=weights).run(tokens(0)).shape == (0, 4)


def test_prefill_equals_repeated_decode(bench):
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    whole = bench(ATTENTION).run(tokens(4), x)
    b = bench(ATTENTION)
    for p in range(4):
        np.testing.assert_array_equal(b.run(tokens(1, positions=[p]), x[p : p + 1]), whole[p : p + 1])


def test_nan_propagates_without_warnings(bench, recwarn):
    result = bench(ops.GatedActivation("g", X, X)).run(tokens(2), [[np.nan, np.inf, -np.inf, -1e30], [1, 1, 1, 1]])
    assert np.isnan(result[0, 0]) and not np.isnan(result[1]).any()
    assert not recwarn.list


@pytest.mark.parametrize(
    "chain,batch",
    [
        ((TABLE,), tokens(1, tokens=[3])),
        ((TABLE,), tokens(1, tokens=[-1])),
        ((ATTENTION,), tokens(1, positions=[8])),
        ((ATTENTION,), tokens(1, positions=[-1])),
        ((ATTENTION,), tokens(1, slots=[2])),
        ((ATTENTION,), tokens(1, positions=[3])),
        ((DOUBLE,), tokens(5)),
        ((ops.SelectRows("s", X),), tokens(1, outputs=[1])),
        ((ops.SelectRows("s", X),), tokens(1, outputs=[0] * 5)),
    ],
    ids=["token", "token<0", "position", "position<0", "slot", "gap", "tokens", "output", "outputs"],
)
def test_a_batch_out_of_range_is_a_device_error(bench, chain, batch):
    with pytest.raises(DeviceError):
        bench(*chain, weights={"table": table_bytes()}).run(batch)


def test_synchronize_returns_each_run_once(bench, device):
    b = bench(DOUBLE)
    b.run(tokens(1))
    b.run(tokens(2))
    events = device.synchronize()
    assert [(e.segment, e.basis) for e in events] == [("segment", "measured:reference")] * 2
    assert all(e.seconds > 0 for e in events)
    assert list(device.synchronize()) == []


@pytest.mark.parametrize("call", ["write", "read"])
@pytest.mark.parametrize("offset", [-8, -1, 5, 9])
def test_a_transfer_beyond_the_buffer_is_a_value_error(device, call, offset):
    with pytest.raises(ValueError, match="of a buffer of 8"):
        getattr(device.alloc(8), call)(memoryview(bytearray(4)), offset)


def test_transfers_reach_the_host_view_at_their_offset(device):
    buffer = device.alloc(8)
    buffer.write(memoryview(b"abc"), 2)
    assert bytes(buffer.host_view()) == b"\0\0abc\0\0\0"
    out = bytearray(2)
    buffer.read(memoryview(out), 3)
    assert bytes(out) == b"bc"


def test_a_host_view_is_aligned_and_writable(device, info):
    for nbytes in (1, 100, 4096):
        view = device.alloc(nbytes).host_view()
        assert (view.format, view.readonly, view.nbytes) == ("B", False, nbytes)
        assert np.frombuffer(view, np.uint8).__array_interface__["data"][0] % info.spaces[0].alignment_bytes == 0


def test_an_empty_buffer_is_legal(device):
    assert device.alloc(0).host_view().nbytes == 0


def test_memory_that_is_not_there_is_an_allocation_error(device):
    with pytest.raises(AllocationError):
        device.alloc(1 << 62)
    with pytest.raises(AllocationError):
        device.state(KvSpec("kv", 1 << 20, 1 << 20, 128, 128))


def test_the_space_is_a_limit_of_each_allocation(driver, info):
    device = driver.open(replace(info, spaces=(replace(info.spaces[0], capacity_bytes=1000),)))
    device.alloc(1000)
    with pytest.raises(AllocationError, match="1001"):
        device.alloc(1001)
    with pytest.raises(AllocationError, match="kv"):
        device.state(replace(KV, n_ctx=64))


def test_runs_on_any_buffer_with_a_host_view(driver, info, device):
    class Plain:
        def __init__(self, nbytes):
            self.data = bytearray(nbytes)

        def host_view(self):
            return memoryview(self.data)

    segment = segment_of(DOUBLE)
    buffers = {"x": Plain(64), "y": Plain(64)}
    buffers["x"].data[:4] = np.float32(1.5).tobytes()
    device.load(driver.compile(info, segment), {}, Bindings(buffers, {})).run(tokens(1))
    assert np.frombuffer(buffers["y"].data, np.float32)[0] == 3


@pytest.mark.parametrize("view", [None, memoryview(bytearray(60))], ids=["no-host-view", "too-small"])
def test_a_buffer_that_cannot_hold_the_value_is_refused(driver, info, device, view):
    class Other:
        def host_view(self):
            return view

    with pytest.raises(DeviceError, match="x"):
        device.load(driver.compile(info, segment_of(DOUBLE)), {}, Bindings({"x": Other(), "y": device.alloc(64)}, {}))


@pytest.mark.parametrize("missing", ["table", "kv", "x"])
def test_what_is_not_given_to_load_is_named(driver, info, device, missing):
    chain = {"table": TABLE, "kv": ATTENTION, "x": DOUBLE}[missing]
    values = {v.name: device.alloc(64) for v in (*chain.inputs, chain.output) if v.name != missing or missing == "kv"}
    with pytest.raises(DeviceError, match=missing):
        device.load(driver.compile(info, segment_of(chain)), {}, Bindings(values, {}))


def test_a_state_of_another_kv_spec_is_refused(driver, info, device):
    other = device.state(replace(KV, n_ctx=4))
    values = {"x": device.alloc(64), "a": device.alloc(64)}
    with pytest.raises(DeviceError, match="kv"):
        device.load(driver.compile(info, segment_of(ATTENTION)), {}, Bindings(values, {"kv": other}))


def test_two_executables_share_a_state(driver, info, device, bench):
    x = np.eye(4, dtype=np.float32)
    expected = bench(ATTENTION).run(tokens(4), x)
    first = bench(ATTENTION)
    first.run(tokens(3), x)
    second = bench(ATTENTION)
    program = driver.compile(info, segment_of(ATTENTION, max_tokens=2))
    second.executable = device.load(program, {}, Bindings(second.buffers, first.states))
    np.testing.assert_array_equal(second.run(tokens(1, positions=[3]), x[3:]), expected[3:])


def test_executables_share_one_dequantised_weight(bench, device):
    data = table_bytes()
    benches = [bench(TABLE, weights={"table": data}) for _ in range(2)]
    assert len(device._stored) == 1
    for b in benches:
        b.executable.close()
    del b, benches
    assert len(device._stored) == 0


def test_other_data_under_the_same_name_is_not_confused(bench):
    a, b = bench(TABLE, weights={"table": table_bytes()}), bench(TABLE, weights={"table": table_bytes(100)})
    assert a.run(tokens(1)).tolist() == [[0, 1, 2, 3]]
    assert b.run(tokens(1)).tolist() == [[100, 101, 102, 103]]


def test_everything_closes_twice(bench, device):
    b = bench(ATTENTION)
    for resource in (b.executable, b.states["kv"], *b.buffers.values(), device):
        resource.close()
        resource.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda d, b: d.alloc(4),
        lambda d, b: d.state(KV),
        lambda d, b: d.synchronize(),
        lambda d, b: d.load(None, {}, Bindings({}, {})),
        lambda d, b: b.executable.run(tokens(1)),
        lambda d, b: b.states["kv"].copy(0, 1, 1),
        lambda d, b: b.buffers["x"].host_view(),
    ],
    ids=["alloc", "state", "synchronize", "load", "run", "copy", "host_view"],
)
def test_use_after_the_device_is_closed_is_a_device_error(bench, device, call):
    b = bench(ATTENTION)
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        call(device, b)


def test_ops_run_on_one_thread_of_openblas_and_the_number_comes_back(driver, info, device, monkeypatch):
    """Else its threads would poll beside those of other devices."""
    from hetrun.reference import blas

    functions = blas._openblas()
    if functions is None:
        pytest.skip("this NumPy's library is no OpenBLAS")
    get, put = functions
    before, seen = get(), []
    put(2)
    bench = Bench(driver, info, device, DOUBLE)
    monkeypatch.setattr("hetrun.reference.device.evaluate", lambda op, inputs: seen.append(get()) or inputs.value(op.x))
    try:
        bench.executable.run(Batch.of([0], [0], [0], [0]))
        assert (seen, get()) == ([1], 2)
        monkeypatch.setattr("hetrun.reference.device.evaluate", lambda op, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench.executable.run(Batch.of([0], [0], [0], [0]))
        assert get() == 2
    finally:
        put(before)
