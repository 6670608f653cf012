"""The PYNQ-Z1 engine beside the published design (SECDA-LLM, arXiv 2408.00462): simulated, never measured on a board.

    python benchmarks/pynq_z1.py

Validation: what the model of the published design gives for rows that were published.
Decode: seconds a token of TinyLlama on a PYNQ-Z1 by the cycle model of the engine and the profile of the board's two
Cortex-A9 for all else (attention, norms), launches included; gate x up in the engine, and beside it on the A9; the
memory at 75% of its pins' rate, and at 67.5 and 85%.
Sweeps: the engine alone with other parameters, beside what a dry run of such an engine gave in a model of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hetrun.api import choose_devices, graph_of
from hetrun.device import Workload
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import load_shape
from hetrun.ops import GatedActivation, MatMul
from hetrun.plan.place import Request, make_plan
from hetrun.plan.rules import Forbid
from hetrun.plugins import Registry
from hetrun_pynq_z1.program import stream_bytes
from hetrun_pynq_z1.timing import Design, matmul_seconds, secda_matmul

CONTEXTS = (16, 512)
SHAPES = {
    "tinyllama-q2_k": "the paper's file, all weights hypothetically resident",
    "tinyllama-382mb": "382 MB mix, fits beside Linux",
}
# SECDA-LLM as calibrated, declared beforehand: v3 of its source at 125 MHz; Q3_K tensors offloaded; what exceeds CMA's
# stock window of 128 MiB is copied for every token; the rest on one A9 at 0.8 GMAC/s.
SECDA_CLOCK_HZ = 125_000_000
SECDA_WORDS = {"Q3_K": 28}  # 32-bit words of a super-block on its streams
CMA_BYTES = 134_217_728
A9_MACS_PER_S = 0.8e9
# What another cycle model gave for an engine of this kind, for both files where it has them.
SWEEPS = (
    ("64 lanes at 100 MHz", {"clock_hz": 100_000_000}, ".2925", ".244"),
    ("64 lanes at 125 MHz, as shipped", {}, ".2923", ".244"),
    ("64 lanes at 150 MHz", {"clock_hz": 150_000_000}, ".2921", ".244"),
    ("32 lanes", {"lanes": 32}, ".301", ".290"),
    ("16 lanes", {"lanes": 16}, "-", "-"),
    ("one port", {"ports": 1}, ".460", ".383"),
    ("1 burst outstanding", {"outstanding": 1}, ".520", "-"),
    ("2 bursts outstanding", {"outstanding": 2}, ".294", "-"),
    ("4 bursts outstanding", {"outstanding": 4}, ".292", "-"),
    ("FIFO of 32 words", {"fifo_words": 32}, ".385", "-"),
    ("FIFO of 64 words", {"fifo_words": 64}, ".292", "-"),
    ("DDR at 67.5%", {"ddr_permille": 675}, ".326", ".272"),
    ("DDR at 85%", {"ddr_permille": 850}, "-", "-"),
)
DDR_BYTES_PER_S = 1.575e9  # analytic: 75% of 2.1 GB/s (UG585 section 22.3)


def main() -> None:
    print("## Validation: rows of the published design\n")
    print(table(("row", "published", "simulated", "error"), validation()))
    print("\n## Decode, seconds a token (simulated; A9 analytic)\n")
    head = ("SECDA-LLM's design", "activation on the A9", "this engine", "at 67.5%", "at 85%", "DDR limit")
    head += ("A9 alone", "A9 paging")
    print(table(("file", "context", *head), decode()))
    print("\n## Sweeps, seconds of a token's matmuls in the engine (simulated)\n")
    print(table(("engine", *SHAPES, "dry run, the first file", "the second"), sweeps()))


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def validation() -> Iterator[tuple[str, ...]]:
    small = secda_matmul(128, 1, 4, 21, False, 200_000_000)
    tiles = sum(
        secda_matmul(rows, blocks, 1, 28, False, SECDA_CLOCK_HZ).n_tiles
        for rows, blocks in ((256, 8), (2048, 8), (5632, 8), (5632, 8), (2048, 22))
    )
    mobile = 30 * secda_matmul(576, 6, 37, 28, False, SECDA_CLOCK_HZ).compute_cycles
    rows = (
        ("rows of a tile, K = 2048", 128, secda_matmul(2048, 8, 1, 28, False, SECDA_CLOCK_HZ).tile_rows),
        ("rows of a tile, K = 5632", 46, secda_matmul(2048, 22, 1, 28, False, SECDA_CLOCK_HZ).tile_rows),
        ("tiles a token, TinyLlama, Q3_K tensors", 3322, 22 * tiles),
        ("input words, M = 128, N = 4, K = 256", 298, small.input_words),
        ("weight words, the same", 4 * 672, small.weight_words),
        ("microseconds of compute, the same, KV260", 117.77, small.compute_s * 1e6),
        ("cycles, MobileLLM-125M, 30 ffn_down, 37 tokens", 80_342_232, mobile),
        ("seconds a token, TinyLlama (soft)", 1.7, secda_token_s(graph("tinyllama-q2_k", 16), 16)),
    )
    for name, published, simulated in rows:
        yield name, f"{published:g}", f"{simulated:.6g}", f"{simulated / published - 1:+.2%}"


def decode() -> Iterator[tuple[str, ...]]:
    for shape, label in SHAPES.items():
        for context in CONTEXTS:
            own = graph(shape, context)
            weights = sum(stream_bytes(op.weight) for op in own.ops if isinstance(op, MatMul))
            published = f"{secda_token_s(own, context):.3f}" if shape == "tinyllama-q2_k" else "-"
            yield (
                label,
                str(context),
                published,
                f"{token_s(own, context, 'model:cortex-a9', 'pynq-z1:csim', fused=False):.3f}",
                *(
                    f"{token_s(own, context, 'model:cortex-a9', 'pynq-z1:csim', ddr_permille=p):.3f}"
                    for p in (750, 675, 850)
                ),
                f"{weights / DDR_BYTES_PER_S:.3f}",
                f"{token_s(own, context, 'model:cortex-a9'):.3f}",
                f"{token_s(own, context, 'model:cortex-a9-paging'):.3f}",
            )


def graph(shape: str, context: int) -> Graph:
    return graph_of(load_shape(shape), GraphOptions(n_ctx=2 * context, max_tokens=16), Registry.load())


def sweeps() -> Iterator[tuple[str, ...]]:
    graphs = [graph(shape, 16) for shape in SHAPES]
    for name, numbers, first, second in SWEEPS:
        design = Design.of(numbers)
        own = (sum(matmul_seconds(op, 1, design) for op in g.ops if isinstance(op, MatMul)) for g in graphs)
        yield name, *(f"{seconds:.4f}" for seconds in own), first, second


def token_s(model: Graph, context: int, *devices: str, ddr_permille: int = 750, fused: bool = True) -> float:
    """Seconds of one token behind `context` of them, as planned; memory counts no limit.

    ddr_permille: of its pins' rate that the memory sustains for the engine.   fused: whether gate x up is the engine's.
    """
    found = choose_devices(Registry.load(), devices, to_run=False, calibrated=False)
    found = [replace(d, info=replace(d.info, model={**d.info.model, "ddr_permille": ddr_permille})) for d in found]
    roomy = [
        replace(d, info=replace(d.info, spaces=tuple(replace(s, capacity_bytes=1 << 40) for s in d.info.spaces)))
        for d in found
    ]
    request = Request(prompt_tokens=context, gen_tokens=1)
    activations = [op.name for op in model.ops if isinstance(op, GatedActivation)]
    rules = [] if fused else [Forbid(name, device) for name in activations for device in devices[1:]]
    return make_plan(model, roomy, request, rules).predicted["decode"].total_s


def secda_token_s(model: Graph, context: int) -> float:
    """The published design: Q3_K matmuls offloaded, tile by tile; the rest on the processor."""
    offloaded = [op for op in model.ops if isinstance(op, MatMul) and op.weight.type.name in SECDA_WORDS]
    total = sum(op.weight.nbytes for op in offloaded)
    copied_share = max(0.0, 1 - (CMA_BYTES / total))
    seconds = 0.0
    for op in offloaded:
        rows, columns = op.weight.shape
        timing = secda_matmul(rows, columns // 256, 1, SECDA_WORDS["Q3_K"], True, SECDA_CLOCK_HZ)
        seconds += timing.dma_s + timing.compute_s + timing.call_s + copied_share * timing.copy_s
    names = {op.name for op in offloaded}
    macs = sum(op.flops(Workload(1, context)) / 2 for op in model.ops if op.name not in names)
    return seconds + macs / A9_MACS_PER_S


if __name__ == "__main__":
    main()
