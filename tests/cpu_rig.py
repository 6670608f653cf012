"""Runs hand-made segments on the cpu device, and computes in NumPy what they must give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import gguf
import numpy as np
from numpy.typing import NDArray

from hetrun.device import Batch, Bindings, RunEvent, Segment
from hetrun.ops import Attention, KvSpec, Op, Value
from hetrun.tensor import ALL_TYPES, Weight
from hetrun.testing.blocks import random_blocks
from hetrun_cpu import native
from hetrun_cpu.driver import CpuDriver
from hetrun_cpu.steps import QUANTISED_TYPES

Floats = NDArray[np.float32]
BF16 = gguf.GGMLQuantizationType.BF16

ISAS: tuple[str, ...] = () if native.library_problem() else native.isa_names()


class Rig:
    """One segment of `ops`, loaded; its outputs are `outputs`, or the last op's."""

    def __init__(
        self,
        ops: Sequence[Op],
        inputs: Sequence[Value] = (),
        outputs: Sequence[Value] | None = None,
        weights: Mapping[str, memoryview] | None = None,
        max_tokens: int = 16,
        max_outputs: int = 16,
        **config: object,
    ) -> None:
        driver = CpuDriver()
        info = driver.probe(config)[0]
        self.segment = Segment(
            "test", tuple(ops), tuple(inputs), tuple(outputs or (ops[-1].output,)), max_tokens, max_outputs
        )
        self.program = driver.compile(info, self.segment)
        self.device = driver.open(info)
        self.buffers = {
            v.name: self.device.alloc(self.segment.value_bytes(v))
            for v in (*self.segment.inputs, *self.segment.outputs)
        }
        specs = {op.kv.name: op.kv for op in ops if isinstance(op, Attention)}
        self.states = {name: self.device.state(kv) for name, kv in specs.items()}
        self.weights = {w.name: random_blocks(w) for op in ops for w in op.weights} | dict(weights or {})
        self.executable = self.device.load(self.program, self.weights, Bindings(self.buffers, self.states))

    def run(self, batch: Batch, **inputs: Floats) -> Floats:
        """The first output.   inputs: rows of each input value, by name."""
        for name, rows in inputs.items():
            self.buffers[name].write(memoryview(np.ascontiguousarray(rows, np.float32)).cast("B"))
        self.executable.run(batch)
        out = self.segment.outputs[0]
        rows = batch.rows(out.rows)
        result = np.empty((rows, out.width), np.float32)
        if rows:
            self.buffers[out.name].read(memoryview(result).cast("B"))
        return result

    def events(self) -> Sequence[RunEvent]:
        return self.device.synchronize()

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.device.close()


def tokens(n: int, start: int = 0, slot: int = 0, outputs: Sequence[int] | None = None) -> Batch:
    """n tokens of one sequence from position `start`; all are outputs where none are named."""
    return Batch.of(
        [i % 7 for i in range(n)], range(start, start + n), [slot] * n, range(n) if outputs is None else outputs
    )


def weight(name: str, type_name: str, *shape: int) -> Weight:
    return Weight(name, ALL_TYPES[type_name], shape)


def int8_rounded(x: Floats) -> NDArray[np.float64]:
    """x as the device's int8 activations hold it: blocks of 32, scale max|x| / 127 with 11 significant bits."""
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(largest > 0, np.rint(blocks * (np.float32(127) / largest)), 0)
    mantissa, exponent = np.frexp((largest / np.float32(127)).astype(np.float64))
    scale = np.ldexp(np.rint(mantissa * 2048) / 2048, exponent)
    return (codes * scale).reshape(x.shape)


def activations_of(type_name: str, isa: str, x: Floats) -> NDArray[np.float64]:
    """x as weights of that type meet it."""
    if type_name in QUANTISED_TYPES:
        return int8_rounded(x)
    if type_name == "BF16" and isa in ("avx512_bf16", "amx"):
        return gguf.quants.dequantize(gguf.quants.quantize(x, BF16), BF16).astype(np.float64)
    return x.astype(np.float64)


def attention(
    q: Floats, k: Floats, v: Floats, positions: Sequence[int], kv: KvSpec, scale: float, soft_cap: float = 0.0
) -> NDArray[np.float64]:
    """float64 attention of the queries at `positions` over k and v, rows of which are positions 0, 1, ..."""
    n_heads, dim = q.shape[1] // kv.head_dim, kv.head_dim
    out = np.zeros(q.shape, np.float64)
    for row, i in enumerate(positions):
        seen = [j for j in range(i + 1) if kv.window == 0 or j < kv.sink or j > i - kv.window]
        for head in range(n_heads):
            own = head // (n_heads // kv.n_heads_kv)
            keys = k[seen, own * dim : (own + 1) * dim].astype(np.float64)
            values = v[seen, own * dim : (own + 1) * dim].astype(np.float64)
            scores = scale * keys @ q[row, head * dim : (head + 1) * dim].astype(np.float64)
            if soft_cap:
                scores = soft_cap * np.tanh(scores / soft_cap)
            p = np.exp(scores - scores.max())
            out[row, head * dim : (head + 1) * dim] = p / p.sum() @ values
    return out


def nmse(got: NDArray[np.floating], want: NDArray[np.floating]) -> float:
    """Squared error over squared size."""
    want = want.astype(np.float64)
    return float(((got - want) ** 2).sum() / (want**2).sum())
