"""A sound driver that is made to be broken: the reference by another name, with a method for each fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hetrun.device import API_VERSION, Batch, Bindings, Cost, DeviceInfo, RunEvent, Segment, Unsupported, Workload
from hetrun.errors import DeviceError
from hetrun.ops import KvSpec, Op
from hetrun.reference.driver import ReferenceDriver


@dataclass(frozen=True)
class SoundProgram:
    segment: Segment
    inner: Any
    resident: Mapping[tuple[str, str], int]


class Sound:
    """The reference by another name. A fault overrides one of the methods below."""

    api_version = API_VERSION

    def __init__(self, name: str) -> None:
        self.name = name
        self.inner = ReferenceDriver()

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        return [replace(info, id=f"{self.name}:0") for info in self.inner.probe({})]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        return self.inner.estimate(info, op, workload)

    def compile(self, info: DeviceInfo, segment: Segment) -> SoundProgram:
        inner = self.inner.compile(info, replace(segment, ops=tuple(map(self.edit_op, segment.ops))))
        return SoundProgram(segment, inner, self.inner.compile(info, segment).resident)

    def open(self, info: DeviceInfo) -> SoundDevice:
        return SoundDevice(self, self.inner.open(info))

    def edit_op(self, op: Op) -> Op:
        """The op that is computed instead."""
        return op

    def edit_kv(self, kv: KvSpec) -> KvSpec:
        """The cache that is kept instead."""
        return kv

    def edit_batch(self, batch: Batch) -> Batch:
        """The batch that is run instead."""
        return batch

    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        """What happens to the values then."""

    def run(self, executable: SoundExecutable, batch: Batch) -> None:
        executable.inner.run(self.edit_batch(batch))
        if batch.n_tokens:
            self.after_run(executable, batch)

    def alloc(self, device: SoundDevice, nbytes: int) -> Any:
        return device.inner.alloc(nbytes)

    def state(self, device: SoundDevice, kv: KvSpec) -> SoundState:
        return SoundState(self, device.inner.state(self.edit_kv(kv)))

    def copy(self, state: SoundState, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        state.inner.copy(src_slot, dst_slot, n_tokens)

    def synchronize(self, device: SoundDevice) -> Sequence[RunEvent]:
        return device.inner.synchronize()


class SoundState:
    def __init__(self, driver: Sound, inner: Any) -> None:
        self.driver, self.inner = driver, inner

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        self.driver.copy(self, src_slot, dst_slot, n_tokens)

    def close(self) -> None:
        self.inner.close()


class SoundExecutable:
    def __init__(self, device: SoundDevice, segment: Segment, inner: Any, bindings: Bindings) -> None:
        self.device, self.segment, self.inner, self.values = device, segment, inner, bindings.values
        self.closed = False

    def run(self, batch: Batch) -> None:
        self.device.check_open()
        self.device.driver.run(self, batch)

    def close(self) -> None:
        self.closed = True
        self.inner.close()

    def array(self, name: str) -> Any:
        """All of a value's buffer: float32."""
        return np.frombuffer(self.values[name].host_view(), np.float32)

    @property
    def output(self) -> Any:
        return self.array(self.segment.outputs[0].name)


class SoundDevice:
    def __init__(self, driver: Sound, inner: Any) -> None:
        self.driver, self.inner = driver, inner
        self.closed = False

    def check_open(self) -> None:
        if self.closed:
            raise DeviceError(f"{self.driver.name}:0 is closed")

    def alloc(self, nbytes: int) -> Any:
        return self.driver.alloc(self, nbytes)

    def state(self, kv: KvSpec) -> SoundState:
        return self.driver.state(self, kv)

    def load(self, program: SoundProgram, weights: Mapping[str, memoryview], bindings: Bindings) -> SoundExecutable:
        inner = Bindings(bindings.values, {name: state.inner for name, state in bindings.states.items()})  # type: ignore[attr-defined]
        return SoundExecutable(self, program.segment, self.inner.load(program.inner, weights, inner), bindings)

    def synchronize(self) -> Sequence[RunEvent]:
        return self.driver.synchronize(self)

    def profile(self, on: bool) -> None:
        self.check_open()
        self.inner.profile(on)

    def close(self) -> None:
        self.closed = True
        self.inner.close()
