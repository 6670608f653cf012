"""Placeholder until the cycle model's timing lands."""

from __future__ import annotations

from hetrun.device import Batch, Cost, Segment
from hetrun.ops import Op, Workload

BASIS = "analytic:placeholder"


def launch_cost() -> Cost:
    return Cost(100e-6, BASIS)


def op_seconds(op: Op, workload: Workload) -> float:
    nbytes = op.weight_bytes(workload) + op.kv_bytes(workload)
    return nbytes / 400e9 + 0.5e-6


def run_seconds(segment: Segment, batch: Batch) -> float:
    n_seqs = len(set(batch.slots))
    workload = Workload(batch.n_tokens, max(batch.positions, default=0), n_seqs, batch.n_outputs)
    return sum(op_seconds(op, workload) for op in segment.ops)
