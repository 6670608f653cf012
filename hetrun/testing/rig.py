"""A device on the test bench: opens it, feeds segments, and watches the memory around what they read and write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from hetrun.device import (
    Batch,
    Bindings,
    Buffer,
    Cost,
    Device,
    DeviceInfo,
    Driver,
    Executable,
    Segment,
    State,
    Unsupported,
)
from hetrun.ops import Attention, KvSpec, Op, Workload
from hetrun.plugins import FoundDevice
from hetrun.testing.blocks import random_blocks, values_of
from hetrun.testing.cases import OpCase, op_cases
from hetrun.testing.expectations import Expectations
from hetrun.testing.memory import FILL, GuardedBuffer, read_all
from hetrun.testing.oracle import Oracle, nmse
from hetrun.testing.tolerance import bound_of_run

Values = Mapping[str, NDArray[np.float32]]


@dataclass
class Loaded:
    """A segment with weights and buffers on the device."""

    segment: Segment
    device: Device
    buffers: Mapping[str, Buffer]
    states: Mapping[str, State]
    executable: Executable

    def step(self, batch: Batch, inputs: Values) -> Values:
        """Runs one batch and returns the rows it made; asserts that no other byte changed."""
        before = self._fill(inputs)
        self.executable.run(batch)
        self.device.synchronize()
        after = {name: read_all(self.buffers[name]) for name in before}
        results = {}
        for v in self.segment.outputs:
            n_rows = batch.rows(v.rows)
            used = 4 * n_rows * v.width
            assert after[v.name][used:] == before[v.name][used:], f"{v.name}: rows beyond the batch's {n_rows} changed"
            results[v.name] = np.frombuffer(after[v.name][:used], np.float32).reshape(n_rows, v.width)
        for v in self.segment.inputs:
            assert v.name in results or after[v.name] == before[v.name], f"{v.name}: the device changed its input"
        for name in before:
            buffer = self.buffers[name]
            assert not isinstance(buffer, GuardedBuffer) or buffer.guards_intact, f"{name}: bytes around it changed"
        return results

    def _fill(self, inputs: Values) -> dict[str, bytes]:
        """Writes the inputs' rows, and a pattern wherever else; returns the contents."""
        contents = {v.name: bytes([FILL]) * self.segment.value_bytes(v) for v in self.segment.outputs}
        for v in self.segment.inputs:
            rows = np.ascontiguousarray(inputs[v.name], np.float32).tobytes()
            contents[v.name] = rows + bytes([FILL]) * (self.segment.value_bytes(v) - len(rows))
        for name, content in contents.items():
            self.buffers[name].write(memoryview(content))
        return contents


@dataclass
class Rig:
    """The bench of one device. `device` opens it at the first use; what cannot be opened skips the test."""

    found: FoundDevice
    all_ids: tuple[str, ...]
    expectations: Expectations
    _device: Device | None = field(default=None, init=False)

    @property
    def driver(self) -> Driver:
        return self.found.driver

    @property
    def info(self) -> DeviceInfo:
        return self.found.info

    @property
    def not_here(self) -> str | None:
        """Why the device cannot be opened, or None where it should open."""
        absence = self.info.unavailable
        if absence is not None:
            return f"{self.info.id} is not here: {absence.reason}; {absence.remedy}"
        return (
            f"{self.info.id} is modelled: it can be planned for, not run" if self.info.backing == "modelled" else None
        )

    @property
    def device(self) -> Device:
        if self._device is None:
            self._device = self.open()
        return self._device

    def open(self) -> Device:
        """A device of the test's own. The bench's own is closed first: hardware may allow only one."""
        if self.not_here is not None:
            pytest.skip(self.not_here)
        self.release()
        return self.driver.open(self.info)

    def release(self) -> None:
        """Closes the bench's own device, so that the next use starts with a fresh one."""
        device, self._device = self._device, None
        if device is not None:
            device.close()

    @property
    def on_host(self) -> bool:
        """Whether the device runs on any buffer of the host."""
        return self.info.spaces[0].name == "host"

    def estimate(self, op: Op, workload: Workload) -> Cost | Unsupported:
        return self.driver.estimate(self.info, op, workload)

    def refusal(self, op: Op, workload: Workload) -> str | None:
        """Why the device refuses the op, or None."""
        answer = self.estimate(op, workload)
        return answer.reason if isinstance(answer, Unsupported) else None

    def need(self, op: Op, workload: Workload) -> None:
        """Skips the test where the device refuses the op, or is not here."""
        reason = self.refusal(op, workload)
        if reason is not None:
            pytest.skip(f"refused: {reason}")
        if self.not_here is not None:
            pytest.skip(self.not_here)

    def any_case(self, kinds: Sequence[str] = ()) -> OpCase:
        """The first op case (of those kinds) that the device accepts; skips the test where there is none."""
        if self.not_here is not None:
            pytest.skip(self.not_here)
        for case in op_cases():
            if (not kinds or case.op.kind in kinds) and self.refusal(case.op, case.workload) is None:
                return case
        pytest.skip(f"refused: every op case{' of ' + ', '.join(kinds) if kinds else ''}")

    def bound(self, ops: Sequence[Op], block: Sequence[Op] = ()) -> float:
        """The largest NMSE of a run of ops on this device.   block: ops that made the run's inputs."""
        return bound_of_run(ops, block, self.expectations.of_op)

    def buffer(self, nbytes: int) -> Buffer:
        """Memory for a value: between guard bytes where the device allows it, else the device's own."""
        if self.on_host:
            return GuardedBuffer(nbytes, self.info.spaces[0].alignment_bytes)
        return self.device.alloc(nbytes)

    @contextmanager
    def loaded(
        self,
        segment: Segment,
        buffers: Mapping[str, Buffer] | None = None,
        states: Mapping[str, State] | None = None,
        weights: Mapping[str, memoryview] | None = None,
    ) -> Iterator[Loaded]:
        """`segment` on the device. Buffers, states and weights that are given are used; the rest is made, and closed
        after.
        """
        device, weights = self.device, weights or weights_of(segment)
        before = {name: bytes(blocks) for name, blocks in weights.items()}
        bound, kept = dict(buffers or {}), dict(states or {})
        with ExitStack() as stack:
            for v in (*segment.inputs, *segment.outputs):
                if v.name not in bound:
                    bound[v.name] = self.buffer(segment.value_bytes(v))
                    stack.callback(bound[v.name].close)
            for kv in kv_specs(segment):
                if kv.name not in kept:
                    kept[kv.name] = device.state(kv)
                    stack.callback(kept[kv.name].close)
            executable = device.load(self.driver.compile(self.info, segment), weights, Bindings(bound, kept))
            stack.callback(executable.close)
            yield Loaded(segment, device, bound, kept, executable)
        assert weights == before, f"{segment.name}: the device changed its weights"

    def check_usable(self) -> None:
        """Asserts that the device still computes, after a failure for one."""
        case = self.any_case()
        with self.loaded(case.segment) as loaded:
            results = loaded.step(case.batch, case.inputs())
        expected = oracle_for(case.segment).run([case.op], case.inputs(), case.batch)
        assert_close(results, expected, self.bound([case.op]))


def assert_close(results: Values, expected: Mapping[str, NDArray[np.float64]], bound: float) -> None:
    """Asserts that every value is within `bound` (NMSE) of the oracle's."""
    for name, value in results.items():
        error = nmse(value, expected[name])
        assert error <= bound, f"{name}: NMSE {error:.3g} exceeds {bound:.3g}"


def weights_of(segment: Segment) -> dict[str, memoryview]:
    """Random blocks for each weight of a segment."""
    return {w.name: random_blocks(w) for op in segment.ops for w in op.weights}


def kv_specs(segment: Segment) -> tuple[KvSpec, ...]:
    return tuple({op.kv.name: op.kv for op in segment.ops if isinstance(op, Attention)}.values())


def oracle_for(segment: Segment) -> Oracle:
    """The oracle with the weights of `weights_of`."""
    return Oracle({w.name: values_of(w, random_blocks(w)) for op in segment.ops for w in op.weights})
