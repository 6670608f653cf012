"""Every op kind x tensor type x shape against float64, and what a batch may look like."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from hetrun.device import Batch
from hetrun.ops import MatMul, Value
from hetrun.testing.blocks import random_blocks
from hetrun.testing.cases import OpCase, op_cases, prompt, weight
from hetrun.testing.layers import LAYERS, Layer
from hetrun.testing.oracle import nmse
from hetrun.testing.rig import Rig, assert_close, oracle_for

CASES = op_cases()
# Where in a row its first scale stands, and how it is written.
POISONED = {"F32": (0, "<f"), "Q8_0": (0, "<e"), "Q4_0": (0, "<e"), "Q4_K": (0, "<e"), "Q6_K": (208, "<e")}
# Every op kind and tensor type with 7 tokens: what is tested on these does not depend on the shape.
FEW = [c for c in CASES if c.batch.n_tokens == 7 and c.op.inputs]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(rig: Rig, case: OpCase) -> None:
    """The result is within the bound of float64; inputs, guard bytes and rows beyond the batch stay as they were."""
    if rig.expectations.must_accept(f"op/{case.id}"):
        assert rig.refusal(case.op, case.workload) is None, "the plugin promised to run this"
    rig.need(case.op, case.workload)
    inputs = case.inputs()
    with rig.loaded(case.segment) as loaded:
        result = loaded.step(case.batch, inputs)[case.op.name]
    expected = oracle_for(case.segment).run([case.op], inputs, case.batch)[case.op.name]
    limit = rig.expectations.bound(f"op/{case.id}", rig.bound([case.op]))
    error = nmse(result, expected)
    assert error <= limit, f"NMSE {error:.3g} exceeds {limit:.3g}"


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.id)
def test_nan_stays_in_its_row(rig: Rig, case: OpCase) -> None:
    """A NaN in a row of the first input gives NaN in the same rows as in float64, and nowhere else."""
    rig.need(case.op, case.workload)
    inputs = dict(case.inputs())
    first = case.op.inputs[0].name
    inputs[first] = inputs[first].copy()
    inputs[first][1, 3] = np.nan
    with rig.loaded(case.segment) as loaded:
        result = loaded.step(case.batch, inputs)[case.op.name]
    expected = oracle_for(case.segment).run([case.op], inputs, case.batch)[case.op.name]
    rows = np.isnan(expected).any(axis=1)
    assert np.isnan(result).any(axis=1).tolist() == rows.tolist()
    assert nmse(result[~rows], expected[~rows]) <= rig.bound([case.op])


@pytest.mark.parametrize("type_name", POISONED)
def test_nan_in_a_weight_stays_in_its_row(rig: Rig, type_name: str) -> None:
    """A scale that is NaN, as damaged files have, makes that row's results no numbers, and no other's."""
    op = MatMul("blk.0.ffn_up", Value("x", 256), weight("blk.0.ffn_up", type_name, 48, 256))
    case = OpCase(f"nan-{type_name}", op, prompt(7))
    rig.need(op, case.workload)
    offset, code = POISONED[type_name]
    blocks = bytearray(random_blocks(op.weight))
    struct.pack_into(code, blocks, 5 * op.weight.type.row_bytes(256) + offset, math.nan)
    with rig.loaded(case.segment, weights={op.weight.name: memoryview(blocks).toreadonly()}) as loaded:
        result = loaded.step(case.batch, case.inputs())[op.name]
    assert np.flatnonzero(~np.isfinite(result).all(axis=0)).tolist() == [5]
    assert not np.isfinite(result[:, 5]).any()


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.id)
def test_same_input_gives_same_bits(rig: Rig, case: OpCase) -> None:
    """Two runs on the same batch give the same bytes."""
    rig.need(case.op, case.workload)
    with rig.loaded(case.segment) as loaded:
        first, second = (loaded.step(case.batch, case.inputs())[case.op.name].tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.id)
def test_empty_batch(rig: Rig, case: OpCase) -> None:
    """A batch without rows runs and writes nothing (`Loaded.step` holds every byte of the outputs)."""
    rig.need(case.op, case.workload)
    empty = Batch.of([], [], [], [])
    inputs = {v.name: np.empty((0, v.width), np.float32) for v in case.segment.inputs}
    with rig.loaded(case.segment) as loaded:
        result = loaded.step(empty, inputs)[case.op.name]
    assert result.size == 0


def test_batch_without_outputs(rig: Rig) -> None:
    """No logits wanted: ops on output rows make no row and write nothing."""
    case = rig.any_case(["select_rows"])
    batch = prompt(case.batch.n_tokens, outputs=())
    with rig.loaded(case.segment) as loaded:
        result = loaded.step(batch, case.inputs())[case.op.name]
    assert result.size == 0


def test_rows_do_not_depend_on_each_other(rig: Rig) -> None:
    """A row of a batch equals the same row run alone."""
    case = rig.any_case(["matmul", "rms_norm", "scale", "add"])
    many = prompt(3)
    inputs = {v.name: np.tile(case.inputs()[v.name][:1], (3, 1)) for v in case.segment.inputs}
    for value in inputs.values():
        value[[0, 2]] *= 3.0
    with rig.loaded(case.segment) as loaded:
        together = loaded.step(many, inputs)[case.op.name][1:2]
        alone = loaded.step(prompt(1), {name: value[1:2] for name, value in inputs.items()})[case.op.name]
    assert nmse(together, alone) <= rig.bound([case.op])


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.id)
def test_runs_of_ops(rig: Rig, layer: Layer) -> None:
    """A transformer block: a run of ops that the device accepts one by one compiles and computes as a whole."""
    if rig.not_here is not None:
        pytest.skip(rig.not_here)
    expected = oracle_for(layer.segment).run(layer.segment.ops, {}, layer.batch)
    runs = layer.runs(lambda op: rig.refusal(op, layer.workload) is None)
    if not runs:
        pytest.skip("refused: every op of the block")
    for run in runs:
        inputs = {v.name: expected[v.name].astype(np.float32) for v in run.inputs}
        with rig.loaded(run) as loaded:
            results = loaded.step(layer.batch, inputs)
        assert_close(results, expected, rig.bound(run.ops, layer.segment.ops))
