"""A small llama with random weights, run in whole steps: what a session adds to a device's time, and a model to hold
predictions against that no price was found from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from hetrun.calibration.table import Calibration, Check
from hetrun.device import Batch
from hetrun.graph.graph import Graph
from hetrun.measure.busy import after_others
from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.ops import Workload
from hetrun.plan.cost import CostTable
from hetrun.plan.plan import Assignment, Plan
from hetrun.plugins import FoundDevice
from hetrun.run.build import build
from hetrun.run.random_blocks import tiled_blocks
from hetrun.run.session import Session
from hetrun.tensor import TENSOR_TYPES, Weight

Clock = Callable[[], float]


@dataclass(frozen=True)
class Sizes:
    """Shape of a llama."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_heads_kv: int
    n_vocab: int

    def graph(self, kind: str, n_ctx: int) -> Graph:
        """Its graph, with every matrix of that tensor type, and an output matrix of its own."""
        e, f = self.n_embd, self.n_ff
        kv = e // self.n_heads * self.n_heads_kv
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd": (self.n_vocab, e), "output_norm": (e,), "output": (self.n_vocab, e),
        }  # fmt: skip
        for i in range(self.n_layers):
            for name, shape in {
                "attn_norm": (e,), "attn_q": (e, e), "attn_k": (kv, e), "attn_v": (kv, e), "attn_output": (e, e),
                "ffn_norm": (e,), "ffn_gate": (f, e), "ffn_up": (f, e), "ffn_down": (e, f),
            }.items():  # fmt: skip
                shapes[f"blk.{i}.{name}"] = shape
        types = {name: "F32" if len(shape) == 1 else kind for name, shape in shapes.items()}
        weights = {f"{n}.weight": Weight(f"{n}.weight", TENSOR_TYPES[types[n]], s) for n, s in shapes.items()}
        metadata = {
            "general.architecture": "llama",
            "llama.block_count": self.n_layers,
            "llama.embedding_length": e,
            "llama.context_length": n_ctx,
            "llama.feed_forward_length": f,
            "llama.attention.head_count": self.n_heads,
            "llama.attention.head_count_kv": self.n_heads_kv,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 10000.0,
        }
        return build_graph("llama", metadata, weights, GraphOptions(n_ctx=n_ctx), architectures())


_TINY = Sizes(1, 256, 256, 4, 4, 256)
_WHOLE = Sizes(8, 1024, 2816, 16, 4, 8192)
_N_PROMPTS, _N_STEPS = (192, 48, 12), 16
_PROMPT_S = 1.0  # the prompt is the longest of those that takes no longer, or the shortest
_MOST_S = 3.0  # of all repetitions, beyond what there must be


def launch_seconds(found: FoundDevice, kind: str, run_s: float, clock: Clock = time.perf_counter) -> float:
    """Seconds that one step of one segment costs beside its ops: the device's launch and the session's own work.

    run_s: the device's own launch, where others have used the caches meanwhile.
    """
    with _session(found, _TINY.graph(kind, 512), 1) as session:
        (step,) = session.runtime.steps["decode"]
        device = session.runtime.devices[step.device]

        def with_session() -> float:
            started = clock()
            session.feed([1])
            return clock() - started

        def alone() -> float:
            position = session.length() - 1
            batch = Batch.of([1], [position], [0], [0])
            started = clock()
            step.executable.run(batch)
            device.synchronize()
            return clock() - started

        seconds = [statistics.median(after_others(measure)) for measure in (with_session, alone)]
    return run_s + max(0.0, seconds[0] - seconds[1])


def whole_checks(
    found: FoundDevice, kind: str, calibration: Calibration, repetitions: int, clock: Clock = time.perf_counter
) -> tuple[Check, ...]:
    """Prefill and decode of the model in that tensor type, as measured, as the driver estimates them, and as the
    calibration does."""
    graph = _WHOLE.graph(kind, 512)
    in_time = (n for n in _N_PROMPTS if _step_s(graph, Workload(n, 0), found, calibration) <= _PROMPT_S)
    n_prompt = next(in_time, _N_PROMPTS[-1])
    tokens = [(37 * i) % _WHOLE.n_vocab for i in range(n_prompt)]
    prefill, decode = [], []
    with _session(found, graph, n_prompt) as session:
        started = clock()
        for number in range(repetitions + 1):
            if number > 1 and clock() - started > _MOST_S:
                break
            session.truncate(0, 0)
            times = [clock()]
            session.feed(tokens)
            times.append(clock())
            for i in range(_N_STEPS):
                if i > 1 and clock() - started > _MOST_S:
                    break
                session.feed([i])
                times.append(clock())
            if number:  # the first one touches memory
                first, *rest = (b - a for a, b in pairwise(times))
                prefill.append(first)
                decode += rest
    name = f"{_WHOLE.n_layers} layers of {_WHOLE.n_embd} x {_WHOLE.n_ff} {kind}"
    steps: Mapping[str, tuple[Workload, float]] = {
        f"prefill of {n_prompt} tokens": (Workload(n_prompt, 0), statistics.median(prefill)),
        "decode step": (Workload(1, n_prompt + _N_STEPS // 2), statistics.median(decode)),
    }
    return tuple(
        Check(f"{what}, {name}", measured_s, *(_step_s(graph, workload, found, c) for c in (None, calibration)))
        for what, (workload, measured_s) in steps.items()
    )


def _step_s(graph: Graph, workload: Workload, found: FoundDevice, calibration: Calibration | None) -> float:
    device = found.calibrated(calibration)
    placement = [device.info.id] * len(graph.ops)
    return CostTable.ask(graph, workload, [device]).price(placement).total_s


@contextmanager
def _session(found: FoundDevice, graph: Graph, max_tokens: int) -> Iterator[Session]:
    assignments = tuple(Assignment(op.name, found.info.id, "the device that is measured") for op in graph.ops)
    plan = Plan(graph.fingerprint, (found.info.id,), assignments, assignments, {}, {})
    blocks = {name: tiled_blocks(weight).toreadonly() for name, weight in graph.weights.items()}
    with Session(build(graph, plan, [found], blocks.__getitem__, max_tokens, 1)) as session:
        yield session


def runs_whole(found: FoundDevice, kind: str) -> bool:
    """Whether the device takes every op of a llama in that tensor type."""
    from hetrun.device import Unsupported

    ops = _WHOLE.graph(kind, 512).ops
    return not any(isinstance(found.driver.estimate(found.info, op, Workload(1, 0)), Unsupported) for op in ops)
