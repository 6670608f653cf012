"""The part of the contract that needs no hardware: probe, estimate, compile."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

from hetrun.device import API_VERSION, Cost, Device, Fusing, Link, Program, Unsupported
from hetrun.errors import DeviceError
from hetrun.ops import MatMul, Op, Value, Workload
from hetrun.tensor import TensorType, Weight
from hetrun.testing.cases import Heads, OpCase, attention_op, op_cases
from hetrun.testing.layers import LAYERS, Layer
from hetrun.testing.rig import Rig

CASES = op_cases()
BASIS = re.compile(r"(measured|simulated|analytic):\s*\S")
WORKLOADS = (Workload(1, 0), Workload(1, 31), Workload(7, 0), Workload(4, 9, n_seqs=4, n_outputs=4))


def assert_cost(cost: Cost) -> None:
    assert math.isfinite(cost.seconds), f"{cost.seconds} seconds"
    assert cost.seconds >= 0, f"{cost.seconds} seconds"
    assert cost.joules is None or (math.isfinite(cost.joules) and cost.joules >= 0), f"{cost.joules} joules"
    assert BASIS.match(cost.basis), f'basis {cost.basis!r} is not "measured:", "simulated:" or "analytic:" and a source'


def assert_resident(rig: Rig, resident: Mapping[tuple[str, str], int]) -> None:
    spaces = {space.name for space in rig.info.spaces}
    for (space, name), nbytes in resident.items():
        assert space in spaces, f"{name} lies in {space}, which is no memory of {rig.info.id}"
        assert isinstance(nbytes, int), f"{name}: {nbytes!r} bytes"
        assert nbytes >= 0, f"{name}: {nbytes!r} bytes"


@contextmanager
def no_opening(rig: Rig) -> Iterator[None]:
    """Fails the test where the driver opens a device: planning needs no hardware."""

    def opened(*_: object) -> Device:
        pytest.fail("the driver opened the device")

    with mock.patch.object(type(rig.driver), "open", opened):
        yield


def test_api_version(rig: Rig) -> None:
    assert rig.driver.api_version == API_VERSION


def test_probe_repeats(rig: Rig) -> None:
    """Two probes give equal devices."""
    assert list(rig.driver.probe({})) == list(rig.driver.probe({}))


def test_probe_has_no_side_effects(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is opened, no thread stays, no file appears, the environment and the settings stay as they were."""
    monkeypatch.chdir(tmp_path)
    before = (dict(os.environ), threading.active_count(), os.getcwd())
    settings: dict[str, object] = {}
    with no_opening(rig):
        rig.driver.probe(settings)
    assert (dict(os.environ), threading.active_count(), os.getcwd()) == before
    assert settings == {}
    assert list(tmp_path.iterdir()) == []


def test_id_is_unique(rig: Rig) -> None:
    assert rig.all_ids.count(rig.info.id) == 1
    assert re.fullmatch(r"[\w.:+-]+", rig.info.id), f"{rig.info.id!r} cannot be typed as an option"


def test_backing(rig: Rig) -> None:
    assert rig.info.backing in ("hardware", "emulated", "modelled")


def test_spaces(rig: Rig) -> None:
    """At least one memory, with a capacity; the host's has no links, another has both and belongs to the device."""
    assert rig.info.spaces
    for space in rig.info.spaces:
        assert space.capacity_bytes > 0, space.name
        assert space.alignment_bytes > 0 and space.alignment_bytes & (space.alignment_bytes - 1) == 0, space.name
        assert (space.upload is None) == (space.download is None), space.name
        assert space.name == "host" or space.name.startswith(f"{rig.info.id}/"), space.name
        assert space.name != "host" or space.upload is None, "the host's own memory needs no copies"
        for link in (space.upload, space.download):
            assert link is None or _is_sane(link), f"{space.name}: {link}"


def _is_sane(link: Link) -> bool:
    return bool(
        math.isfinite(link.latency_s) and link.latency_s >= 0 and link.bytes_per_s > 0 and BASIS.match(link.basis)
    )


def test_launch_cost(rig: Rig) -> None:
    assert_cost(rig.info.launch)


def test_model_holds_numbers(rig: Rig) -> None:
    for name, number in rig.info.model.items():
        assert isinstance(number, (int, float)), f"{name}: {number!r}"
        assert not math.isnan(number), name


def test_absence_has_reason_and_remedy(rig: Rig) -> None:
    absence = rig.info.unavailable
    if absence is None:
        pytest.skip("the device is here")
    assert absence.reason.strip()
    assert absence.remedy.strip()


def test_absent_device_does_not_open(rig: Rig) -> None:
    """`open` raises DeviceError where the device is absent or only modelled."""
    if rig.not_here is None:
        pytest.skip("the device is here")
    with pytest.raises(DeviceError):
        rig.driver.open(rig.info)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_estimate(rig: Rig, case: OpCase) -> None:
    """A well-formed cost or a refusal with a reason, the same each time it is asked, whatever was asked between."""
    for workload in (case.workload, *WORKLOADS):
        answer = rig.estimate(case.op, workload)
        if isinstance(answer, Unsupported):
            assert answer.reason.strip(), "a refusal without a reason"
        else:
            assert_cost(answer)
            assert_resident(rig, answer.resident)
    assert rig.estimate(case.op, case.workload) == rig.estimate(case.op, case.workload)


@dataclass(frozen=True)
class _UnknownOp(Op):
    """An op of a later version."""

    x: Value
    kind: ClassVar[str] = "conformance_unknown"

    @property
    def output(self) -> Value:
        return replace(self.x, name=self.name)


def test_unknown_op_is_refused(rig: Rig) -> None:
    """A refusal is a value: an op that no device knows gives Unsupported, not an exception."""
    answer = rig.estimate(_UnknownOp("x1", Value("x", 64)), Workload(1, 0))
    assert isinstance(answer, Unsupported) and answer.reason.strip()


def test_unknown_tensor_type_is_refused(rig: Rig) -> None:
    later = Weight("blk.0.ffn_up.weight", TensorType("Q99_9", 9999, 32, 20), (8, 64))
    answer = rig.estimate(MatMul("blk.0.ffn_up", Value("x", 64), later), Workload(1, 0))
    assert isinstance(answer, Unsupported) and answer.reason.strip()


def test_unknown_kv_format_is_refused(rig: Rig) -> None:
    answer = rig.estimate(attention_op(Heads(), "kv99"), Workload(1, 0))
    assert isinstance(answer, Unsupported) and answer.reason.strip()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_accepted_op_compiles(rig: Rig, case: OpCase) -> None:
    """What `estimate` accepts compiles, without opening the device, and takes the memory that was told."""
    cost = rig.estimate(case.op, case.workload)
    if isinstance(cost, Unsupported):
        pytest.skip(f"refused: {cost.reason}")
    with no_opening(rig):
        program = rig.driver.compile(rig.info, case.segment)
    assert program.segment == case.segment
    assert_resident(rig, program.resident)
    for block, nbytes in program.resident.items():
        assert cost.resident.get(block, nbytes) == nbytes, f"{block}: {nbytes} bytes, but estimate said otherwise"


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.id)
def test_compile_is_deterministic(rig: Rig, layer: Layer) -> None:
    """The runs that the device accepts compile as a whole, twice to the same."""
    runs = layer.runs(lambda op: rig.refusal(op, layer.workload) is None)
    if not runs:
        pytest.skip("refused: every op of the block")
    with no_opening(rig):
        for run in runs:
            first, second = _shown(rig.driver.compile(rig.info, run)), _shown(rig.driver.compile(rig.info, run))
            assert first == second, run.name


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.id)
def test_fused_ops_cost_no_more_than_alone(rig: Rig, layer: Layer) -> None:
    """Of a driver that fuses: it names ops of the run alone, for at most what `estimate` says and the same memory, and
    says the same twice."""
    if not isinstance(rig.driver, Fusing):
        pytest.skip("the driver fuses nothing that its estimates do not know")
    for run in layer.runs(lambda op: rig.refusal(op, layer.workload) is None):
        costs = rig.driver.fuse(rig.info, run, layer.workload)
        ops = {op.name: op for op in run.ops}
        assert costs.keys() <= ops.keys(), run.name
        for name, cost in costs.items():
            alone = rig.estimate(ops[name], layer.workload)
            assert_cost(cost)
            assert isinstance(alone, Cost) and cost.seconds <= alone.seconds, name
            assert cost.resident == alone.resident, name
        assert rig.driver.fuse(rig.info, run, layer.workload) == costs


def _shown(program: Program) -> tuple[object, ...]:
    """What can be seen of a program from outside: its segment, its memory, and its fields where they are plain data."""
    plain = {
        k: v for k, v in getattr(program, "__dict__", {}).items() if isinstance(v, (int, float, str, bytes, tuple))
    }
    return program.segment, dict(program.resident), plain
