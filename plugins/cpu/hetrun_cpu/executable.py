"""A program loaded onto the cpu device, and batches as the library wants them."""

from __future__ import annotations

import ctypes
import mmap
import struct
from array import array
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from hetrun.device import Batch, Bindings, RunEvent, StepTimes
from hetrun.errors import DeviceError
from hetrun.native import Pinned, address_of
from hetrun.ops import Embedding, KvSpec
from hetrun.tensor import Weight
from hetrun_cpu import native
from hetrun_cpu.memory import CpuState
from hetrun_cpu.packed import PackedWeight, Pages, file_pages
from hetrun_cpu.program import CpuProgram
from hetrun_cpu.steps import DEQUANTISED_TYPES, pack

if TYPE_CHECKING:
    from hetrun_cpu.dequantised import Dequantised
    from hetrun_cpu.device import CpuDevice

BASIS = "measured:cpu"
ROWS_KEPT = 16
"""Rows looked up in a file before their pages go back; the system maps up to 64 KB with each."""


class BatchView:
    """A batch as the library wants it. Batches are immutable, so one view serves all segments of a step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        vectors = (batch.tokens, batch.positions, batch.slots, batch.outputs)
        for vector in vectors:
            if vector.itemsize != 4 or vector.ndim != 1:
                raise DeviceError(f"a batch must hold int32 vectors, not {vector.format!r} of {vector.ndim} dimensions")
        if not len(batch.tokens) == len(batch.positions) == len(batch.slots):
            raise DeviceError("the vectors of a batch differ in length")
        # The views keep the arrays where they are.
        self.native = native.Batch(*(address_of(v) for v in vectors), len(batch.tokens), len(batch.outputs))
        self.reference = ctypes.byref(self.native)


class CpuExecutable:
    """A program bound to weights, buffers and states. Closing any of those states closes it too."""

    def __init__(
        self, device: CpuDevice, handle: int, program: CpuProgram, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> None:
        self._device: CpuDevice | None = device
        self._name = program.segment.name
        self._handle = ctypes.c_void_p()
        self._pins: list[Pinned] = []
        self._packed: Mapping[str, PackedWeight] = {}
        self._looked_up: list[Pages] = []
        self._n_looked_up = 0
        self._ops = tuple(step.ops for step in program.steps)
        self._step_s = array("d", bytes(8 * len(self._ops)))
        self._dequantised: list[Dequantised] = []
        self._report = native.Report()
        self._report_reference = ctypes.byref(self._report)
        try:
            self._create(device, handle, program, weights, bindings)
        except BaseException:
            self.close()
            raise

    def _create(
        self, device: CpuDevice, handle: int, program: CpuProgram, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> None:
        states = [_state(bindings, kv, self._name) for kv in program.states]
        value_index = {v.name: i for i, v in enumerate(program.values)}
        weight_index = {w.name: i for i, w in enumerate(program.weights)}
        state_index = {kv.name: i for i, kv in enumerate(program.states)}
        handles = (ctypes.c_void_p * max(1, len(states)))(*(s.handle for s in states))
        frequencies = (ctypes.c_double * max(1, len(program.frequencies)))(*program.frequencies)
        views = (self._weight(device, w, weights) for w in program.weights)
        table = (native.Weight * max(1, len(program.weights)))(*views)
        multiplied = {w.name: table[weight_index[w.name]] for w in program.multiplied}
        self._packed = device.packed(multiplied)
        for name, packed in self._packed.items():
            multiplied[name].packed = packed.address
        for op in program.segment.ops:
            # A table that a matmul reads too stands in memory anyway, packed or not.
            if (
                isinstance(op, Embedding)
                and op.weight.name not in multiplied
                and op.weight.type.name not in DEQUANTISED_TYPES
            ):
                self._looked_up += file_pages(weights[op.weight.name])
        spec = native.Spec(
            b"".join(pack(s, value_index, weight_index, state_index) for s in program.steps),
            b"".join(
                struct.pack(
                    "<QQIIQ",
                    self._address(v.name, v.nbytes, v.offset, bindings),
                    v.offset or 0,
                    v.width,
                    v.outputs,
                    v.nbytes,
                )
                for v in program.values
            ),
            table,
            b"".join(
                struct.pack("<QIIfi", r.offset, r.first, r.n_pairs, r.magnitude, r.max_position) for r in program.ropes
            ),
            frequencies,
            handles,
            len(program.steps),
            len(program.values),
            len(program.weights),
            len(program.ropes),
            len(program.frequencies),
            len(states),
            program.segment.max_tokens,
            program.segment.max_outputs,
            program.arena_bytes,
        )
        detail = ctypes.c_uint64()
        status = native.library().hetrun_cpu_program_create(
            handle, ctypes.byref(spec), ctypes.byref(detail), ctypes.byref(self._handle)
        )
        native.check(status, f"segment {self._name}", detail.value)
        for state in states:
            state.users.add(self)

    def _address(self, name: str, nbytes: int, offset: int | None, bindings: Bindings) -> int:
        if offset is not None:
            return 0
        buffer = bindings.values.get(name)
        view = None if buffer is None else buffer.host_view()
        if view is None or view.readonly or view.nbytes < nbytes:
            held = "nothing" if view is None else f"{view.nbytes} {'read-only ' if view.readonly else ''}bytes"
            raise DeviceError(
                f"segment {self._name}: value {name} needs {nbytes} writable bytes of the host and has {held}"
            )
        return self._pin(view, writable=True).address

    def _weight(self, device: CpuDevice, weight: Weight, weights: Mapping[str, memoryview]) -> native.Weight:
        view = weights.get(weight.name)
        if view is None or view.nbytes != weight.nbytes:
            held = "nothing" if view is None else f"{view.nbytes} bytes"
            raise DeviceError(
                f"segment {self._name}: weight {weight.name} has {weight.nbytes} bytes, but was given {held}"
            )
        if weight.type.name in DEQUANTISED_TYPES:
            self._pin(view)
            values = device.dequantised(weight, view)
            self._dequantised.append(values)
            pin = self._pin(values.values)
            return native.Weight(pin.address, pin.nbytes, _rows(weight.shape), weight.shape[-1], values.type.id, 0, 0)
        of_file = isinstance(view.obj, mmap.mmap) and view.readonly
        if of_file and len(weight.shape) == 1:
            # A page of a file that is read brings fifteen neighbours along: norms would map megabytes of weights.
            view, of_file = memoryview(bytes(view)), False
        pin = self._pin(view)
        flags = native.WEIGHT_OF_FILE if of_file else 0
        return native.Weight(pin.address, pin.nbytes, _rows(weight.shape), weight.shape[-1], weight.type.id, flags, 0)

    def _pin(self, view: memoryview, writable: bool = False) -> Pinned:
        pin = Pinned(view, writable)
        self._pins.append(pin)
        return pin

    def run(self, batch: Batch) -> None:
        """Runs to the end. DeviceError for a batch that the segment cannot hold; nothing has run then."""
        device = self._device
        if device is None:
            raise DeviceError(f"segment {self._name} is closed")
        view = device.view_of(batch)
        self._report.step_s = self._step_s.buffer_info()[0] if device.profiling else 0
        status = native.library().hetrun_cpu_run(self._handle, view.reference, self._report_reference)
        if status:
            native.check(status, f"segment {self._name}", self._report.detail)
        self._release_rows(batch.n_tokens)
        device.record(self._event())

    def _release_rows(self, n_tokens: int) -> None:
        """Gives pages of looked up rows back, not at each token: threads wait while the system does it."""
        self._n_looked_up += n_tokens
        if self._n_looked_up < ROWS_KEPT:
            return
        self._n_looked_up = 0
        for pages in self._looked_up:
            pages.release()

    def _event(self) -> RunEvent:
        if not self._report.step_s:
            return RunEvent(self._name, self._report.seconds, BASIS)
        return RunEvent(self._name, self._report.seconds, BASIS, steps=StepTimes(self._ops, self._step_s[:]))

    def close(self) -> None:
        self._device = None
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            native.library().hetrun_cpu_program_destroy(handle)
        for pin in self._pins:
            pin.close()
        self._pins.clear()
        self._packed = {}
        self._looked_up = []
        self._dequantised = []

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


def _state(bindings: Bindings, kv: KvSpec, segment: str) -> CpuState:
    state = bindings.states.get(kv.name)
    if not isinstance(state, CpuState):
        raise DeviceError(f"segment {segment}: no KV cache {kv.name} of this device is bound")
    if state.spec != kv:
        raise DeviceError(f"segment {segment}: KV cache {kv.name} was made for another KvSpec")
    return state


def _rows(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1])
