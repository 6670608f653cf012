"""SmolLM2-135M with every matmul on `pynq-z1:csim`, the PYNQ-Z1 engine's source: results measured, on this machine.

    python benchmarks/pynq_z1_model.py                minutes on two cores
    python benchmarks/pynq_z1_model.py --quick        fewer tokens
    python benchmarks/pynq_z1_model.py --part speed   one part: share, bits, tokens, perplexity or speed

share        multiply-adds of a token that the plan puts on the engine
bits         greedy tokens and all logits, beside the engine's order written in NumPy (tests/hls/engine_order.py)
tokens       greedy tokens beside the cpu's: where the two would choose differently, how far apart the best two are
perplexity   cpu, cpu + engine, and the reference device in float32, over the same tokens
speed        tokens a second at decode, this machine running the engine's source (a board's time is simulated elsewhere)

It needs the source tree: the order is one of its tests.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import hetrun
from hetrun.api import Model
from hetrun.device import Workload
from hetrun.ops import Attention, MatMul
from hetrun.run.perplexity import Perplexity, perplexity

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "hls"))
import engine_order_device  # noqa: E402

CSIM, ORDER = "pynq-z1:csim", engine_order_device.DEVICE
MATMULS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
PATTERNS = (*(f"blk.*.{name}" for name in MATMULS), "output")
ACTIVATION = "blk.*.ffn_act"  # between gate, up and down it stays in the engine
PROMPTS = (
    "The three laws of thermodynamics are",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "The capital of France is Paris. The capital of Italy is",
)
PARTS = ("share", "bits", "tokens", "perplexity", "speed")
WINDOW = 256

Floats = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--part", choices=PARTS, action="append", help="one part, or several")
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    args = parser.parse_args()
    parts = args.part or PARTS
    if "share" in parts:
        show_share(args.model)
    if "bits" in parts:
        show_bits(args.model, 8 if args.quick else 32)
    if "tokens" in parts:
        show_tokens(args.model, 16 if args.quick else 64)
    if "perplexity" in parts:
        show_perplexity(args.model, 200 if args.quick else None)
    if "speed" in parts:
        show_speed(args.model, 8 if args.quick else 24)


def load(model: str, device: str | None, n_ctx: int = 512, patterns: Sequence[str] = PATTERNS) -> Model:
    """The cpu, with every matmul (or what matches `patterns`) on `device`."""
    return hetrun.load(
        model,
        devices=["cpu", *([device] if device else [])],
        pins=["*=cpu", *(f"{pattern}={device}" for pattern in patterns if device)],
        n_ctx=n_ctx,
        max_tokens_per_step=64,
        registry=engine_order_device.registry(),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)) + "\n"


def show_share(name: str) -> None:
    """What a token of decode multiplies, by the plan's own ops: matmuls, and attention behind some context."""
    print("## Share of multiply-adds on the engine, by the plan\n")
    rows = []
    with load(name, CSIM) as model:
        device_of = {a.op: a.device for a in model.plan.assignments("decode")}
        ops = model.session.runtime.graph.ops
    for label, kinds, context in (
        ("matmuls", (MatMul,), 0),
        ("matmuls and attention, behind 16 tokens", (MatMul, Attention), 16),
        ("the same, behind 128", (MatMul, Attention), 128),
        ("the same, behind 512", (MatMul, Attention), 512),
    ):
        macs = {op.name: op.flops(Workload(1, context)) // 2 for op in ops if isinstance(op, kinds)}
        own = sum(n for op, n in macs.items() if device_of[op] == CSIM)
        rows.append((label, f"{own:,}", f"{sum(macs.values()):,}", f"{own / sum(macs.values()):.2%}"))
    print(table(("of a token of decode", f"on {CSIM}", "all", "share"), rows))


def greedy(model: Model, prompt: str, n_tokens: int) -> tuple[list[int], Floats]:
    """(tokens, logits [n_tokens, n_vocab]) of the prompt's continuation."""
    model.session.truncate(0, 0)
    tokens: list[int] = []
    logits = np.empty((n_tokens, model.n_vocab), np.float32)
    fed = model.tokenize(prompt)
    for step in range(n_tokens):
        logits[step] = np.asarray(model.session.feed(fed))
        tokens.append(int(logits[step].argmax()))
        fed = tokens[-1:]
    return tokens, logits


def show_bits(name: str, n_tokens: int) -> None:
    print("## Against the engine's order in NumPy, greedy\n")
    rows = []
    for label, patterns, prompts in (
        ("matmuls", PATTERNS, PROMPTS),
        ("matmuls, activation", (*PATTERNS, ACTIVATION), PROMPTS[:1]),
    ):
        with load(name, CSIM, patterns=patterns) as engine, load(name, ORDER, patterns=patterns) as order:
            for prompt in prompts:
                tokens, logits = greedy(engine, prompt, n_tokens)
                expected, expected_logits = greedy(order, prompt, n_tokens)
                differ = int((logits.view(np.uint32) != expected_logits.view(np.uint32)).sum())
                same = sum(a == b for a, b in zip(tokens, expected, strict=True))
                rows.append((f"`{prompt}`", label, f"{same} of {n_tokens}", f"{differ} of {logits.size:,}"))
    print(table(("prompt", "on the engine", "equal tokens", "logits that differ in a bit"), rows))


def show_tokens(name: str, n_tokens: int) -> None:
    """All read what the cpu has chosen, so that one split does not hide the next ones."""
    print("## Against the cpu: its greedy tokens, read by all\n")
    rows, splits = [], []
    with load(name, CSIM) as engine, load(name, None) as cpu, reference(name) as exact:
        for prompt in PROMPTS:
            ids = cpu.tokenize(prompt)
            tokens, _ = greedy(cpu, prompt, n_tokens)
            here = slice(len(ids) - 1, None)
            ours, theirs, true = (m.logits([*ids, *tokens[:-1]])[here] for m in (engine, cpu, exact))
            pairs = ((ours, theirs), (ours, true), (theirs, true))
            same = (f"{int((a.argmax(axis=1) == b.argmax(axis=1)).sum())} of {n_tokens}" for a, b in pairs)
            rows.append((f"`{prompt}`", *same, *(f"{np.abs(a - b).max():.2f}" for a, b in pairs)))
            for step in np.flatnonzero(ours.argmax(axis=1) != theirs.argmax(axis=1)):
                best = (int(theirs[step].argmax()), int(ours[step].argmax()))
                pieces = " / ".join(f"`{cpu.detokenize([b])!r}`" for b in best)
                gaps = (theirs[step, best[0]] - theirs[step, best[1]], ours[step, best[1]] - ours[step, best[0]])
                chosen = {best[0]: "cpu's", best[1]: "engine's"}.get(int(true[step].argmax()), "another")
                splits.append((f"`{prompt}`", str(step), pieces, *(f"{gap:.3f}" for gap in gaps), chosen))
    names = ("engine, cpu", "engine, float32", "cpu, float32")
    head = ("prompt", *(f"same choice: {n}" for n in names), *(f"largest difference of a logit: {n}" for n in names))
    print(table(head, rows))
    print("Where cpu and engine choose differently, the gap between the two tokens:\n")
    print(table(("prompt", "token", "cpu / engine", "gap on the cpu", "on the engine", "float32's choice"), splits))


def text() -> str:
    return "\n\n".join(p.read_text() for p in sorted((ROOT / "benchmarks" / "accuracy" / "texts").glob("*.txt")))


def show_perplexity(name: str, most: int | None) -> None:
    """Difference: of the mean -ln p to the cpu's, window by window, so that its error is that of the difference."""
    print(f"## Perplexity, benchmarks/accuracy/texts in windows of {WINDOW} tokens\n")
    rows = []
    own: list[Perplexity] = []
    for label, opened in (
        ("cpu", lambda: load(name, None)),
        (f"cpu + {CSIM}", lambda: load(name, CSIM)),
        ("reference (float32)", lambda: reference(name)),
    ):
        began = time.perf_counter()
        with opened() as model:
            windows = list(scored(model, model.tokenize(text(), add_special=False)[:most]))
        own = own or windows
        total = Perplexity(sum(w.n_scored for w in windows), sum(w.nll for w in windows))
        shift = [(w.nll - o.nll) / w.n_scored for w, o in zip(windows, own, strict=True)]
        error = statistics.stdev(shift) / len(shift) ** 0.5 if len(shift) > 1 else 0.0
        mean = (total.nll - sum(o.nll for o in own)) / total.n_scored
        seconds = time.perf_counter() - began
        rows.append(
            (
                label,
                f"{total.ppl:.4f}",
                f"{total.ppl:#.3g}",
                f"{mean:+.2%} ± {error:.2%}",
                f"{total.n_scored:,}",
                f"{seconds:.0f}",
            )
        )
    head = ("device", "perplexity", "to 3 digits", "against the cpu", "tokens scored", "seconds, loading included")
    print(table(head, rows))


def scored(model: Model, ids: Sequence[int]) -> Iterator[Perplexity]:
    """Each window from an empty context."""
    bos = model.tokenizer.bos_id if model.tokenizer.add_bos else None
    for start in range(0, len(ids) - 1, WINDOW):
        window = ids[start : start + WINDOW]
        if len(window) > 1:
            yield perplexity(model.session, window, n_ctx=len(window) + 1, bos_id=bos)


def reference(name: str) -> Model:
    return hetrun.load(name, devices=["reference"], n_ctx=2 * WINDOW, max_tokens_per_step=64, kv_format="f16")


def show_speed(name: str, n_tokens: int) -> None:
    print("## Speed of csim on this machine, measured\n")
    with load(name, CSIM) as model:
        threads = int(model.session.runtime.found[CSIM].info.model["host_threads"])
        seconds = list(decode_seconds(model, n_tokens))
    median = statistics.median(seconds)
    rows = [(str(threads), f"{1 / median:.2f}", f"{min(seconds):.3f} to {max(seconds):.3f}", str(n_tokens))]
    print(table(("threads", "tokens/s, of the median", "seconds a token", "tokens"), rows))


def decode_seconds(model: Model, n_tokens: int) -> Iterator[float]:
    fed = model.tokenize(PROMPTS[0])
    for step in range(n_tokens + 2):
        began = time.perf_counter()
        logits = np.asarray(model.session.feed(fed))
        if step >= 2:  # the prompt, and a token to warm up
            yield time.perf_counter() - began
        fed = [int(logits.argmax())]


if __name__ == "__main__":
    main()
