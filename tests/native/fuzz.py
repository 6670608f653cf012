"""Random segments, batches and step tables on the cpu device: python fuzz.py KIND FIRST COUNT

KIND: "segments", whole fused blocks of odd shapes, with weights and inputs of any bits; "shapes", one matmul of every
type and instruction set in turn, of odd rows, columns and tokens; or "tables", segments with some words of the native
step table overwritten, which the library must refuse or survive. Case n is the same in every run; its number goes to
stderr before it runs, so that a crash names the case that replays it.

No result is checked here: the point is that nothing crashes, hangs or is reported by a sanitizer. What the library
reads and writes is heap memory of just the right size, so that AddressSanitizer sees a step beyond its ends.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hetrun.device import Batch, Bindings, Segment
from hetrun.errors import HetrunError
from hetrun.ops import (
    Add,
    Attention,
    Bias,
    Embedding,
    Experts,
    GatedActivation,
    KvSpec,
    MatMul,
    Op,
    RmsNorm,
    Rope,
    Route,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)
from hetrun.tensor import ALL_TYPES, Weight
from hetrun_cpu import native
from hetrun_cpu.driver import TYPES, CpuDriver
from hetrun_cpu.steps import DEQUANTISED_TYPES, KV_FORMATS

BY_BLOCK = {size: sorted(name for name in TYPES if size % ALL_TYPES[name].block_size == 0) for size in (1, 32, 256)}
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38, -1.0)
N_VOCAB = 11
SHAPES = [(t, isa) for t in sorted(TYPES - DEQUANTISED_TYPES) for isa in native.isa_names()]
"""Of the cases of kind "shapes": type and instruction set of number n are entry n % len(SHAPES)."""


class HeapBuffer:
    """Just `nbytes` of the heap; Python's malloc gives them an end that AddressSanitizer watches."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = memoryview(bytearray(nbytes))

    def write(self, data: memoryview, offset: int = 0) -> None:
        self._memory[offset : offset + data.nbytes] = memoryview(data).cast("B")

    def read(self, out: memoryview, offset: int = 0) -> None:
        memoryview(out).cast("B")[:] = self._memory[offset : offset + out.nbytes]

    def host_view(self) -> memoryview:
        return self._memory

    def close(self) -> None:
        pass


@dataclass
class Case:
    """One random segment. `ops` grows in graph order; the last op's output leaves the segment."""

    rng: random.Random
    ops: list[Op] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    isa: str | None = None

    @classmethod
    def of(cls, kind: str, number: int) -> Case:
        case = cls(random.Random(f"{kind} {number}"))
        if kind == "shapes":
            case.build_matmul(*SHAPES[number % len(SHAPES)])
        else:
            case.build()
        return case

    def build_matmul(self, type_name: str, isa: str) -> None:
        """One matmul, or gate and up, over one input; and an embedding where that is to make the input."""
        rng, self.isa = self.rng, isa
        block = ALL_TYPES[type_name].block_size
        self.n_slots, self.max_tokens = 1, rng.choice((1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 33, 70))
        self.n_ctx = self.max_tokens
        # Rows of one chunk of the blocked matmul, of just more, and of few columns; groups of 16 rows full and not.
        columns = rng.choice(
            (block, block * rng.randint(1, 5), 1024, 1024 + block, block * rng.randint(1, 2500 // block))
        )
        n_rows = rng.choice((1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, rng.randint(1, 200)))
        x = Value("x", columns)
        if rng.random() < 0.3:
            self.ops.append(Embedding("x", Weight("e", ALL_TYPES[type_name], (N_VOCAB, columns))))
        else:
            self.inputs.append(x)
        if rng.random() < 0.3:
            x = self.norm("norm", x)
        halves = [
            self.add(MatMul(name, x, Weight(f"{name}.w", ALL_TYPES[type_name], (n_rows, columns))))
            for name in (("gate", "up") if rng.random() < 0.3 else ("y",))
        ]
        if len(halves) == 2:
            self.add(GatedActivation("act", *halves))

    def build(self) -> None:
        rng = self.rng
        self.head_dim = rng.choice((2, 4, 8, 16, 20, 32, 64, 96, 128))
        self.n_heads_kv = rng.randint(1, 3)
        self.n_heads = self.n_heads_kv * rng.randint(1, 5)
        self.max_tokens = rng.choice((1, 2, 3, 5, 8, 17, 40))
        self.n_slots = rng.randint(1, 3)
        self.n_ctx = self.max_tokens + rng.randint(0, 40)
        unit = rng.choice((1, 32, 256))
        self.width = unit * (
            rng.randint(1, 70) if unit == 1 else rng.randint(1, 9) if unit == 32 else rng.randint(1, 2)
        )
        if rng.random() < 0.5:
            self.ops.append(Embedding("embed", self.matrix("embed.w", N_VOCAB, self.width)))
            x = self.ops[-1].output
        else:
            x = Value("x", self.width)
            self.inputs.append(x)
        for layer in range(rng.randint(1, 2)):
            x = self.attention(layer, x)
            x = self.feed_forward(layer, x)
        if rng.random() < 0.7:
            x = self.add(SelectRows("select", x))
            x = self.matmul("head", self.norm("head_norm", x), rng.randint(1, 300))
            if rng.random() < 0.3:
                x = self.add(SoftCap("cap", x, 30.0))

    def add(self, op: Op) -> Value:
        self.ops.append(op)
        return op.output

    def matrix(self, name: str, n_rows: int, width: int) -> Weight:
        block = max(size for size in BY_BLOCK if width % size == 0)
        return Weight(name, ALL_TYPES[self.rng.choice(BY_BLOCK[block])], (n_rows, width))

    def vector(self, name: str, width: int) -> Weight:
        return Weight(name, ALL_TYPES["F32"], (width,))

    def matmul(self, name: str, x: Value, n_rows: int) -> Value:
        out = self.add(MatMul(name, x, self.matrix(f"{name}.w", n_rows, x.width)))
        return self.add(Bias(f"{name}.bias", out, self.vector(f"{name}.b", n_rows))) if self.rng.random() < 0.2 else out

    def norm(self, name: str, x: Value) -> Value:
        return self.add(RmsNorm(name, x, self.vector(f"{name}.w", x.width), 1e-5))

    def attention(self, layer: int, x: Value) -> Value:
        rng, name = self.rng, f"blk.{layer}"
        width, kv_width = self.n_heads * self.head_dim, self.n_heads_kv * self.head_dim
        normed = self.norm(f"{name}.norm", x)
        q, k, v = (self.matmul(f"{name}.{n}", normed, w) for n, w in (("q", width), ("k", kv_width), ("v", kv_width)))
        window = rng.choice((0, 0, 1, 3, 16))
        sink = rng.choice((0, 2)) if window else 0
        q_sink = q if sink and rng.random() < 0.5 else None
        if rng.random() < 0.8:
            frequencies = tuple(10000.0 ** (-i / self.head_dim) for i in range(rng.randint(1, self.head_dim // 2)))
            layout = rng.choice(("half", "interleaved"))
            if q_sink:
                last = sink + window - 1
                q_sink = self.add(Rope(f"{q.name}.sink", q, self.head_dim, layout, frequencies, max_position=last))
            q, k = (self.add(Rope(f"{y.name}.rope", y, self.head_dim, layout, frequencies)) for y in (q, k))
        formats = [f for f in sorted(KV_FORMATS) if f in ("f32", "f16") or self.head_dim % 32 == 0]
        kv = KvSpec(
            f"{name}.kv", self.n_slots, self.n_ctx, self.n_heads_kv, self.head_dim, rng.choice(formats),
            sink, window, self.max_tokens + rng.randint(0, 3) if window else 0,
        )  # fmt: skip
        soft_cap = 20.0 if rng.random() < 0.2 else 0.0
        mixed = self.add(Attention(f"{name}.attn", q, k, v, kv, self.head_dim**-0.5, soft_cap, q_sink))
        out = self.matmul(f"{name}.o", mixed, x.width)
        return self.add(Add(f"{name}.mid", x, out))

    def feed_forward(self, layer: int, x: Value) -> Value:
        rng, name = self.rng, f"blk.{layer}"
        n_ff = rng.choice((1, 7, 32, 96, 256, 288))
        normed = self.norm(f"{name}.ffn_norm", x)
        if rng.random() < 0.25:
            return self.add(Add(f"{name}.out", self.experts(name, normed, n_ff), x))
        gate, up = (self.matmul(f"{name}.{n}", normed, n_ff) for n in ("gate", "up"))
        gated = self.add(GatedActivation(f"{name}.act", gate, up, rng.choice(("silu", "gelu"))))
        down = self.matmul(f"{name}.down", gated, x.width)
        if rng.random() < 0.2:
            down = self.add(Scale(f"{name}.scale", down, 0.5))
        return self.add(Add(f"{name}.out", down, x))

    def experts(self, name: str, x: Value, n_ff: int) -> Value:
        rng, n_experts = self.rng, self.rng.randint(1, 9)
        n_used = rng.randint(1, n_experts)
        scores = self.matmul(f"{name}.router", x, n_experts)
        routes = self.add(Route(f"{name}.routes", scores, n_used, rng.random() < 0.5))
        gate, up, down = (
            Weight(f"{name}.{part}s", self.matrix(part, 1, n_in).type, (n_experts, n_out, n_in))
            for part, n_out, n_in in (("gate", n_ff, x.width), ("up", n_ff, x.width), ("down", x.width, n_ff))
        )
        return self.add(Experts(f"{name}.experts", x, routes, n_used, gate, up, down, rng.choice(("silu", "gelu"))))

    def blocks(self, weight: Weight) -> memoryview:
        """Raw blocks of any bits, or for half the tensors mild ones, which get further than a NaN would."""
        if self.rng.random() < 0.5:
            return memoryview(self.rng.randbytes(weight.nbytes))
        return memoryview(bytes([self.rng.randrange(0x2C)]) * weight.nbytes)

    def floats(self, n: int) -> bytes:
        rng = self.rng
        bad = 0.02 if rng.random() < 0.3 else 0.0
        return struct.pack(f"{n}f", *(rng.choice(SPECIAL) if rng.random() < bad else rng.gauss(0, 1) for _ in range(n)))

    def batches(self) -> Iterator[Batch]:
        """Steps of several slots: chunks of any length, at a slot's end or somewhere before it; some are wrong."""
        rng, lengths = self.rng, [0] * self.n_slots
        if self.isa:  # as many tokens as the segment holds: what is beyond the last one is beyond the memory
            n = self.max_tokens
            yield Batch.of([rng.randrange(N_VOCAB) for _ in range(n)], range(n), [0] * n, [])
        for _ in range(rng.randint(1, 4)):
            tokens: list[int] = []
            positions: list[int] = []
            slots: list[int] = []
            for slot in rng.sample(range(self.n_slots), rng.randint(0, self.n_slots)):
                start = lengths[slot] if rng.random() < 0.8 else rng.randint(0, lengths[slot])
                n = rng.randint(0, max(min(self.max_tokens - len(tokens), self.n_ctx - start), 0))
                tokens += [rng.randrange(N_VOCAB) for _ in range(n)]
                positions += range(start, start + n)
                slots += [slot] * n
                lengths[slot] = start + n if n else lengths[slot]
            outputs = sorted(rng.sample(range(len(tokens)), rng.randint(0, len(tokens))))
            if tokens and rng.random() < 0.1:
                wrong: Sequence[list[int]] = (tokens, positions, slots, outputs)
                chosen = rng.choice([w for w in wrong if w])
                chosen[rng.randrange(len(chosen))] = rng.choice((-1, 1 << 30, -(1 << 31), self.n_ctx, N_VOCAB))
            yield Batch.of(tokens, positions, slots, outputs)


def run(case: Case, overwrite: bool) -> None:
    """Compiles, loads and runs a case. HetrunError is an answer; anything else is a bug."""
    rng, driver = case.rng, CpuDriver()
    config = {"threads": rng.choice((1, 2, 2, 3, 4)), "isa": case.isa or rng.choice(native.isa_names())}
    info = driver.probe(config)[0]
    out = case.ops[-1].output
    max_outputs = rng.choice((case.max_tokens, 1))
    segment = Segment("fuzz", tuple(case.ops), tuple(case.inputs), (out,), case.max_tokens, max_outputs)
    program = driver.compile(info, segment)
    device = driver.open(info)
    try:
        buffers = {v.name: HeapBuffer(segment.value_bytes(v)) for v in (*case.inputs, out)}
        states = {op.kv.name: device.state(op.kv) for op in case.ops if isinstance(op, Attention)}
        weights = {w.name: case.blocks(w) for w in program.weights}
        with overwritten_tables(rng) if overwrite else unchanged():
            executable = device.load(program, weights, Bindings(buffers, states))
        for batch in case.batches():
            for value in case.inputs:
                buffers[value.name].write(memoryview(case.floats(batch.n_tokens * value.width)))
            try:
                executable.run(batch)
            except HetrunError:
                continue
            if rng.random() < 0.2:
                a, b, n = rng.randrange(case.n_slots), rng.randrange(case.n_slots), rng.randint(0, case.n_ctx)
                for state in states.values():
                    state.copy(a, b, n)
    finally:
        device.close()


@contextmanager
def unchanged() -> Iterator[None]:
    yield


@contextmanager
def overwritten_tables(rng: random.Random) -> Iterator[None]:
    """Overwrites words of the step tables that pass to the library meanwhile."""
    module = sys.modules["hetrun_cpu.executable"]
    original = module.pack

    def pack(*args: object) -> bytes:
        packed = bytearray(original(*args))
        while rng.random() < 0.05:
            word = rng.choice((-1, -2, 0, 1, 2, 3, 5, 8, 13, 16, 31, 64, 1000, (1 << 31) - 1, rng.getrandbits(31)))
            struct.pack_into("<i", packed, 4 * rng.randrange(len(packed) // 4), word)
        return bytes(packed)

    module.pack = pack
    try:
        yield
    finally:
        module.pack = original


def main() -> None:
    kind, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    refused = 0
    for number in range(first, first + count):
        print(f"{kind} {number}", file=sys.stderr, flush=True)
        case = Case.of(kind, number)
        try:
            run(case, kind == "tables")
        except HetrunError:
            refused += 1
    print(f"{count} cases, {refused} refused")


if __name__ == "__main__":
    main()
