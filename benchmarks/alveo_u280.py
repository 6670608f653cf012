"""The Alveo U280 engine beside FlightLLM and AccLLM (arXiv 2505.03745): simulated, never measured on a card.

    python benchmarks/alveo_u280.py

Validation: the model's HBM beside what was measured of the card's, and the published designs in it.
The rest is Llama-2-7B, W2S24 with a Q8_0 embedding and head, KV4, 2 sinks and a window of 2,044, by the cycle model:
tokens a second with and without the launch (100 us, an assumption), and tokens a joule on two bases of power, which
hetrun_alveo_u280/power.py names. FlightLLM attends to all tokens; the HBM limit is the bytes of a step at 424.6 GB/s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hetrun.api import graph_of
from hetrun.device import Segment
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import load_shape
from hetrun.plugins import Registry
from hetrun_alveo_u280.cost import launch_cost
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.instruction import Instruction
from hetrun_alveo_u280.lower import lower
from hetrun_alveo_u280.power import BASES, watts
from hetrun_alveo_u280.program import residents
from hetrun_alveo_u280.timing import (
    Design,
    Reads,
    Row,
    accllm_seconds,
    flightllm_seconds,
    header_design,
    read_rate,
    step_timing,
)

SHAPE = "llama2-7b-w2s24"
SINK, WINDOW = 2, 2044
CONTEXTS = (128, 512, 2046, 7000)
BATCHES = (1, 2, 4, 8)
HBM_BYTES_PER_S = 424.6e9  # measured: arXiv 2005.04324
FLIGHTLLM_W, ACCLLM_W = 45.0, 33.0  # arXiv 2505.03745: a board's, a tool's


def main() -> None:
    print("## Validation\n")
    print(table(("row", "published", "simulated", "error"), validation()))
    for basis, words in BASES.items():
        print(
            f"\n{basis}: {words}; this engine {watts(header_design(), basis):.1f} W at {clock_mhz(header_design())} MHz"
        )
    print("\n## Decode, one sequence\n")
    head = ("FlightLLM", "AccLLM", "this engine", "with launch", "HBM limit")
    head += ("AccLLM, tokens/J, tool", "this engine, tool", "FlightLLM, board", "this engine, board")
    print(table(("context", *head), decode()))
    print("\n## What HLS may make of it: tokens/s with launch\n")
    print(table(("vector work", *(f"behind {n}" for n in (128, 2046))), band()))
    print("\n## Other designs, one sequence, launch included\n")
    head = ("tokens/s behind 128", "behind 2046", "W, tool", "tokens/J behind 128, tool", "behind 2046")
    print(table(("engine", *head), designs()))
    print("\n## Batches, tokens/s with launch\n")
    columns = tuple(f"{n} behind {past}" for past in (128, 2046) for n in BATCHES)
    print(table(("engine", *columns), batches()))
    print("\n## HBM, GB of 8.59, windows full\n")
    print(table(("weights", *(f"{n} slots" for n in (1, 4, 8, 16))), memory()))
    print("\n## Prefill\n")
    print(table(("tokens", "ms", "tokens/s", "tokens/J, tool", "tokens/J, board"), prefill()))


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def clock_mhz(design: Design) -> int:
    return design.clock_hz // 1_000_000


def validation() -> Iterator[tuple[str, ...]]:
    one = Reads(n_masters=1, burst_bytes=64, n_bursts=10_000, outstanding=1)
    ablation = [accllm_seconds(2046, *(i < n for i in range(4))) for n in range(5)]
    at_128, at_512 = flightllm_seconds(128), flightllm_seconds(512)
    rows = (
        ("HBM, GB/s of 32 streams (calibrated)", 424.6, read_rate(Reads())[0] / 1e9),
        ("HBM, ns to the data of one read in an open row", 106.7, read_ns(replace(one, stride=0))),
        ("HBM, ns, where another row is open", 137.8, read_ns(replace(one, stride=8 * 2048))),
        ("FlightLLM, ms a token behind 128 (calibrated)", 17.506, at_128 * 1e3),
        ("FlightLLM, ms a token behind 512", 18.990, at_512 * 1e3),
        ("FlightLLM, us more for each token of KV", 3.865, (at_512 - at_128) / 384 * 1e6),
        ("AccLLM, tokens/s at a full window (calibrated)", 164.0, 1 / ablation[-1]),
        ("AccLLM, 2:4 pruning, from W8 and KV16", 1.39, ablation[0] / ablation[1]),
        ("AccLLM, weights of 2 bits", 1.91, ablation[1] / ablation[2]),
        ("AccLLM, KV4", 1.05, ablation[2] / ablation[3]),
        ("AccLLM, two products a DSP (calibrated)", 1.28, ablation[3] / ablation[4]),
    )
    for name, published, simulated in rows:
        yield name, f"{published:g}", f"{simulated:.4g}", f"{simulated / published - 1:+.1%}"


def read_ns(reads: Reads) -> float:
    """Of one at a time, without its data and its share of refreshes (260 ns each 3.9 us)."""
    return read_rate(reads)[1] * 1e9 - reads.burst_bytes / 14.375 - 130 * 260 / 3900


def graph(n_slots: int = 1, shape: str = SHAPE, quantised: str | None = None) -> Graph:
    header = load_shape(shape)
    options = GraphOptions(n_ctx=8192, n_slots=n_slots, max_tokens=8, kv_format="kv4", sink=SINK, window=WINDOW)
    return graph_of(header.quantised(quantised) if quantised else header, options, Registry.load())


def instructions(n_slots: int = 1) -> tuple[Instruction, ...]:
    model = graph(n_slots)
    return lower(Segment("all", model.ops, (), (model.ops[-1].output,), 8, n_slots))[0]


def sequences(n: int, n_past: int) -> list[Row]:
    return [Row(position=n_past, slot=i, output=i, token=i) for i in range(n)]


def decode() -> Iterator[tuple[str, ...]]:
    known, design, launch_s = instructions(), header_design(), launch_cost().seconds
    for context in CONTEXTS:
        found = step_timing(known, sequences(1, context), design)
        step_s = found.cycles / design.clock_hz
        limit_s = (found.weight_beats + found.kv_beats) * definition().numbers["BEAT_BYTES"] / HBM_BYTES_PER_S
        others = flightllm_seconds(context), accllm_seconds(min(context, SINK + WINDOW))
        ours_s = step_s + launch_s
        speeds = (f"{1 / s:.0f}" for s in (*others, step_s, ours_s, limit_s))
        yield (
            str(context),
            *speeds,
            f"{1 / others[1] / ACCLLM_W:.2f}",
            f"{1 / ours_s / watts(design, 'tool'):.2f}",
            f"{1 / others[0] / FLIGHTLLM_W:.2f}",
            f"{1 / ours_s / watts(design, 'board'):.2f}",
        )


def band() -> Iterator[tuple[str, ...]]:
    known = instructions()
    rows = (
        ("as designed", {}),
        ("takes three times as long", {"stall_factor": 3}),
        ("takes six times as long", {"stall_factor": 6}),
        ("a float a cycle, as loops of the source without unrolling", {"vector_floats": 1}),
    )
    for name, numbers in rows:
        yield name, *(f"{speed(known, 1, n, Design.of(numbers)):.0f}" for n in (128, 2046))


def designs() -> Iterator[tuple[str, ...]]:
    known = instructions()
    rows = (
        ("as shipped", {}),
        ("225 MHz", {"clock_hz": 225_000_000}),
        ("250 MHz", {"clock_hz": 250_000_000}),
        ("300 MHz", {"clock_hz": 300_000_000}),
        ("64 products a channel", {"lanes": 64}),
        ("32 floats of vector work a cycle", {"vector_floats": 32}),
        ("FIFOs of 4 KB", {"fifo_beats": 64}),
        ("4 bursts outstanding", {"outstanding": 4}),
    )
    for name, numbers in rows:
        design = Design.of(numbers)
        speeds, tool_w = [speed(known, 1, n, design) for n in (128, 2046)], watts(design, "tool")
        yield name, *(f"{s:.0f}" for s in speeds), f"{tool_w:.0f}", *(f"{s / tool_w:.2f}" for s in speeds)


def batches() -> Iterator[tuple[str, ...]]:
    programs = {n: instructions(n) for n in BATCHES}
    for mhz in (clock_mhz(header_design()), 250, 300):
        design = replace(header_design(), clock_hz=mhz * 1_000_000)
        speeds = (speed(programs[n], n, past, design) for past in (128, 2046) for n in BATCHES)
        yield f"{mhz} MHz, {watts(design, 'tool'):.0f} W (tool)", *(f"{s:.0f}" for s in speeds)


def speed(known: tuple[Instruction, ...], n_seqs: int, n_past: int, design: Design) -> float:
    """Tokens a second of all sequences, launch included."""
    cycles = step_timing(known, sequences(n_seqs, n_past), design).cycles
    return n_seqs / (cycles / design.clock_hz + launch_cost().seconds)


def memory() -> Iterator[tuple[str, ...]]:
    n = definition().numbers
    capacity = n["CHANNELS"] * n["CHANNEL_BYTES"]
    for name, shape, quantised in (
        ("W2S24", SHAPE, None), ("Q4_0, Q6_K head", "llama2-7b", None), ("Q8_0", "llama2-7b", "Q8_0")
    ):  # fmt: skip
        cells = []
        for n_slots in (1, 4, 8, 16):
            held: dict[tuple[str, str], int] = {}
            for op in graph(n_slots, shape, quantised).ops:
                held |= residents(op, "card")
            nbytes = sum(size for (space, _), size in held.items() if space == "card/hbm")
            cells.append(f"{nbytes / 1e9:.2f}" + ("" if nbytes <= capacity else ", refused"))
        yield name, *cells


def prefill() -> Iterator[tuple[str, ...]]:
    known, design = instructions(), header_design()
    for n_tokens in (128, 512):
        rows = [Row(position=i, output=0 if i == n_tokens - 1 else -1, token=i) for i in range(n_tokens)]
        seconds = step_timing(known, rows, design).cycles / design.clock_hz + launch_cost().seconds
        joules = (n_tokens / seconds / watts(design, basis) for basis in BASES)
        yield str(n_tokens), f"{seconds * 1e3:.0f}", f"{n_tokens / seconds:.0f}", *(f"{j:.1f}" for j in joules)


if __name__ == "__main__":
    main()
