"""Whether a device computes: a tiny segment with random weights, run on it and worked out beside it in plain Python."""

from __future__ import annotations

import math
import random
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from hetrun.device import Batch, Bindings, Segment, Unsupported, Workload
from hetrun.errors import HetrunError
from hetrun.ops import Add, MatMul, Op, RmsNorm, Value
from hetrun.plugins import FoundDevice
from hetrun.run.random_blocks import SCALES
from hetrun.tensor import TENSOR_TYPES, Weight

Rows = list[list[float]]

N_TOKENS = 2
WIDTH = 256  # one super-block of every tensor type
EPS = 1e-5
# The bound of llama.cpp's test-backend-ops for matrix products: room for a device that quantises its inputs to 8 bits.
# A wrong scale, a missed block or a swapped row are far beyond it.
MAX_NMSE = 5e-4

# A device is asked for these types in turn until it takes one: an accelerator may read no float weights at all.
TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q3_K", "Q2_K", "Q5_K")


@dataclass(frozen=True)
class SelfCheck:
    """outcome: "none" where the device runs none of the ops that are checked.

    ops: what was computed.   seconds: from opening the device to the result.   nmse: normalised mean square error.
    error: why it failed, or why there was nothing to check.
    """

    outcome: Literal["pass", "fail", "none"]
    ops: tuple[str, ...] = ()
    seconds: float = 0.0
    nmse: float | None = None
    error: str | None = None
    remedy: str | None = None


def self_check(found: FoundDevice, clock: Callable[[], float] = time.perf_counter) -> SelfCheck:
    """Opens the device, compiles, loads and runs a segment, compares, and closes it. Raises nothing but Ctrl-C."""
    started = clock()
    ops: tuple[Op, ...] = ()
    try:
        ops = _accepted(found)
        if not ops:
            return SelfCheck("none", error="it runs none of rms_norm, matmul and add in the types that are checked")
        error = _nmse(_computed(found, ops), _expected(ops))
    except HetrunError as failure:
        return SelfCheck("fail", _kinds(ops), clock() - started, None, failure.message, failure.remedy)
    except Exception as failure:  # a driver may raise anything
        reason = f"{type(failure).__name__}: {failure}"
        return SelfCheck("fail", _kinds(ops), clock() - started, None, reason, f"report it to plugin {found.plugin}")
    seconds = clock() - started
    if not error <= MAX_NMSE:
        reason = f"wrong result: error {error:.2g} of the values' power, {MAX_NMSE:.2g} is the limit"
        remedy = f"do not use it; the conformance kit of plugin {found.plugin} shows which op is wrong"
        return SelfCheck("fail", _kinds(ops), seconds, error, reason, remedy)
    return SelfCheck("pass", _kinds(ops), seconds, error)


def _kinds(ops: Sequence[Op]) -> tuple[str, ...]:
    return tuple(f"{op.kind} {op.weights[0].type}" if op.weights else op.kind for op in ops)


def _accepted(found: FoundDevice) -> tuple[Op, ...]:
    """As much of norm, matmul, add as the device takes; a matmul of the first type that it reads."""
    x = Value("x", WIDTH)
    ops: list[Op] = []

    def take(op: Op) -> bool:
        if isinstance(found.driver.estimate(found.info, op, Workload(N_TOKENS, 0)), Unsupported):
            return False
        ops.append(op)
        return True

    norm = RmsNorm("norm", x, Weight("norm.weight", TENSOR_TYPES["F32"], (WIDTH,)), EPS)
    y = norm.output if take(norm) else x
    for name in TYPES:
        matmul = MatMul("matmul", y, Weight("matmul.weight", TENSOR_TYPES[name], (WIDTH, WIDTH)))
        if take(matmul):
            y = matmul.output
            break
    take(Add("add", y, x))
    return tuple(ops)


def _computed(found: FoundDevice, ops: tuple[Op, ...]) -> Rows:
    x = Value("x", WIDTH)
    segment = Segment("self-check", ops, (x,), (ops[-1].output,), N_TOKENS, N_TOKENS)
    program = found.driver.compile(found.info, segment)
    weights = {w.name: memoryview(_blocks(w)).toreadonly() for op in ops for w in op.weights}
    with ExitStack() as resources:
        device = found.driver.open(found.info)
        resources.callback(device.close)
        source, target = (device.alloc(segment.value_bytes(v)) for v in (x, ops[-1].output))
        resources.callback(source.close)
        resources.callback(target.close)
        executable = device.load(program, weights, Bindings({"x": source, ops[-1].name: target}, {}))
        resources.callback(executable.close)
        source.write(memoryview(array("f", [v for row in _input() for v in row])).cast("B"))
        executable.run(Batch.of([0] * N_TOKENS, range(N_TOKENS), [0] * N_TOKENS, [N_TOKENS - 1]))
        device.synchronize()
        result = bytearray(segment.value_bytes(ops[-1].output))
        target.read(memoryview(result))
    values = array("f", bytes(result))
    return [list(values[i * WIDTH : (i + 1) * WIDTH]) for i in range(N_TOKENS)]


def _expected(ops: Sequence[Op]) -> Rows:
    """The meaning of the ops, summed without rounding."""
    x = _input()
    values: dict[str, Rows] = {"x": x}
    for op in ops:
        if isinstance(op, RmsNorm):
            (weight,) = _values(op.weight)
            values[op.name] = [_normed(row, weight) for row in values[op.x.name]]
        elif isinstance(op, MatMul):
            matrix = _values(op.weight)
            values[op.name] = [
                [math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in matrix]
                for row in values[op.x.name]
            ]
        elif isinstance(op, Add):
            pairs = zip(values[op.a.name], values[op.b.name], strict=True)
            values[op.name] = [[a + b for a, b in zip(*rows, strict=True)] for rows in pairs]
    return values[ops[-1].name]


def _normed(row: Sequence[float], weight: Sequence[float]) -> list[float]:
    scale = 1.0 / math.sqrt(math.fsum(v * v for v in row) / len(row) + EPS)
    return [v * scale * w for v, w in zip(row, weight, strict=True)]


def _nmse(found: Rows, wanted: Rows) -> float:
    pairs = [(a, b) for rows in zip(found, wanted, strict=True) for a, b in zip(*rows, strict=True)]
    return math.fsum((a - b) ** 2 for a, b in pairs) / math.fsum(b * b for _, b in pairs)


def _input() -> Rows:
    rng = random.Random(1)
    return [[_single(rng.gauss(0.0, 1.0)) for _ in range(WIDTH)] for _ in range(N_TOKENS)]


def _single(value: float) -> float:
    """The nearest float32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _blocks(weight: Weight) -> bytes:
    """Raw blocks of a random tensor, the same each time."""
    rng = random.Random(2)
    if weight.type.name in ("F32", "F16"):
        code = {"F32": "f", "F16": "e"}[weight.type.name]
        mean, spread = (1.0, 0.1) if len(weight.shape) == 1 else (0.0, WIDTH**-0.5)
        return struct.pack(f"<{weight.n_elements}{code}", *(rng.gauss(mean, spread) for _ in range(weight.n_elements)))
    data = bytearray(rng.randbytes(weight.nbytes))
    for start in range(0, len(data), weight.type.block_bytes):
        for offset, scale in SCALES[weight.type.name]:
            struct.pack_into("<e", data, start + offset, scale * rng.uniform(0.5, 1.5))
    return bytes(data)


def _values(weight: Weight) -> Rows:
    """The rows of a tensor as numbers; those of quantised types by the `gguf` package."""
    data, width = _blocks(weight), weight.shape[-1]
    if weight.type.name in ("F32", "F16"):
        code = {"F32": "f", "F16": "e"}[weight.type.name]
        numbers: Iterator[float] = (v for (v,) in struct.iter_unpack(f"<{code}", data))
        return [[next(numbers) for _ in range(width)] for _ in range(weight.n_elements // width)]
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(data, np.uint8).reshape(-1, weight.type.row_bytes(width))
    result: Rows = dequantize(rows, GGMLQuantizationType[weight.type.name]).tolist()
    return result
