"""A hetrun plugin full of broken devices: each is the reference with one fault, as "<name>:0".

`FAULTS` says which check of the kit must catch each. "sound:0" has no fault.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from conformance.sound_driver import Sound, SoundDevice, SoundExecutable, SoundProgram, SoundState

from hetrun.device import Batch, Cost, DeviceInfo, RunEvent, Segment, Unavailable, Unsupported, Workload
from hetrun.errors import AllocationError, DeviceError
from hetrun.hookspecs import hookimpl
from hetrun.ops import Attention, Embedding, KvSpec, Op, Rope
from hetrun.testing import Expectations

FAULTS: dict[str, tuple[type[Sound], str]] = {}


@hookimpl
def hetrun_drivers() -> list[Sound]:
    return [Sound("sound"), *(kind(name) for name, (kind, _) in FAULTS.items()), *OTHERS]


@hookimpl
def hetrun_conformance(driver: Any) -> Expectations | None:
    return EXPECTATIONS.get(driver.name)


def fault(name: str, caught_by: str) -> Any:
    """Registers a broken driver. caught_by: "<module>::<test>", and words that select among its cases."""

    def register(kind: type[Sound]) -> type[Sound]:
        FAULTS[name] = (kind, caught_by)
        return kind

    return register


@fault("rope-in-the-other-layout", "test_ops::test_op rope")
class OtherLayout(Sound):
    def edit_op(self, op: Op) -> Op:
        return replace(op, layout={"half": "interleaved"}.get(op.layout, "half")) if isinstance(op, Rope) else op


@fault("rope-forgets-the-magnitude", "test_ops::test_op magnitude")
class NoMagnitude(Sound):
    def edit_op(self, op: Op) -> Op:
        return replace(op, magnitude=1.0) if isinstance(op, Rope) else op


@fault("attention-forgets-the-scale", "test_ops::test_op attention-f32-4h2kv32d-scale")
class NoScale(Sound):
    def edit_op(self, op: Op) -> Op:
        return replace(op, scale=1.0) if isinstance(op, Attention) else op


@fault("attention-sees-one-key-more", "test_kv::test_decode_beyond_the_wrap window-f16")
class WiderWindow(Sound):
    def edit_kv(self, kv: KvSpec) -> KvSpec:
        return replace(kv, window=kv.window + 1) if kv.window else kv

    def edit_op(self, op: Op) -> Op:
        return replace(op, kv=self.edit_kv(op.kv)) if isinstance(op, Attention) else op


@fault("attention-forgets-the-sinks", "test_kv::test_prefill_in_chunks sink-f16 and not q_sink")
class NoSinks(WiderWindow):
    def edit_kv(self, kv: KvSpec) -> KvSpec:
        return replace(kv, sink=0)


@fault("ignores-slots", "test_kv::test_slots_do_not_mix full-f32")
class OneSlot(Sound):
    def edit_batch(self, batch: Batch) -> Batch:
        return replace(batch, slots=Batch.of([], [], [], [0] * batch.n_tokens).outputs)


@fault("copies-one-token-too-few", "test_kv::test_copy_of_a_prefix full-f32")
class ShortCopy(Sound):
    def copy(self, state: SoundState, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        state.inner.copy(src_slot, dst_slot, max(0, n_tokens - 1))


@fault("copies-to-the-source", "test_kv::test_copy_replaces_what_the_slot_held full-f32")
class BackwardCopy(Sound):
    def copy(self, state: SoundState, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        state.inner.copy(dst_slot, src_slot, n_tokens)


@fault("shares-caches-of-one-name", "test_kv::test_states_do_not_mix full-f32")
class SharedState(Sound):
    def state(self, device: SoundDevice, kv: KvSpec) -> SoundState:
        states = device.__dict__.setdefault("states", {})
        if kv not in states:
            states[kv] = super().state(device, kv)
            states[kv].close = lambda: None
        return states[kv]  # type: ignore[no-any-return]


@fault("writes-a-guard-byte", "test_ops::test_op matmul-F32")
class Overrun(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        output = executable.output
        ctypes.memset(output.ctypes.data + output.nbytes, 0, 1)


@fault("writes-before-the-buffer", "test_ops::test_op matmul-F32")
class Underrun(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        ctypes.memset(executable.output.ctypes.data - 1, 0, 1)


@fault("writes-rows-beyond-the-batch", "test_ops::test_op matmul-F32")
class SpareRows(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        executable.output[-1] = 0.0


@fault("changes-its-input", "test_ops::test_op rms_norm")
class InPlace(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        executable.array(executable.segment.inputs[0].name)[0] += 1.0


@fault("too-coarse", "test_ops::test_op matmul-Q4_1")
class Coarse(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        rows = executable.output[: batch.n_tokens * executable.segment.outputs[0].width]
        step = np.abs(rows).max() / 31  # 5 bits with the sign
        rows[:] = np.round(rows / step) * step


@fault("table-in-fifteen-bits", "test_ops::test_op embedding-Q4_1")
class CoarseTable(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        if isinstance(executable.segment.ops[0], Embedding):
            rows = executable.output[: batch.n_tokens * executable.segment.outputs[0].width]
            step = np.abs(rows).max() / (1 << 15)
            rows[:] = np.round(rows / step) * step


@fault("kv4h-without-rotation", "test_kv::test_rotation_spreads_an_outlier")
class Unrotated(Sound):
    def edit_op(self, op: Op) -> Op:
        return replace(op, kv=self.edit_kv(op.kv)) if isinstance(op, Attention) else op

    def edit_kv(self, kv: KvSpec) -> KvSpec:
        return replace(kv, format="kv4") if kv.format == "kv4h" else kv


@fault("loses-nan", "test_ops::test_nan_stays_in_its_row")
class NoNan(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        np.nan_to_num(executable.output, copy=False)


@fault("loses-nan-of-a-weight", "test_ops::test_nan_in_a_weight_stays_in_its_row")
class NoNanWeight(NoNan):
    pass


@fault("spreads-nan", "test_ops::test_nan_stays_in_its_row add")
class SpreadNan(Sound):
    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        rows = executable.output[: batch.n_tokens * executable.segment.outputs[0].width]
        if np.isnan(rows).any():
            rows[:] = np.nan


@fault("runs-a-row-of-an-empty-batch", "test_ops::test_empty_batch")
class AtLeastOneRow(Sound):
    def edit_batch(self, batch: Batch) -> Batch:
        return batch if batch.n_tokens else Batch.of([0], [0], [0], [0])


@fault("ignores-which-outputs", "test_ops::test_op select_rows")
class FirstOutputs(Sound):
    def edit_batch(self, batch: Batch) -> Batch:
        return replace(batch, outputs=Batch.of([], [], [], range(batch.n_outputs)).outputs)


@fault("differs-from-run-to-run", "test_ops::test_same_input_gives_same_bits add")
class Jitter(Sound):
    noise = itertools.cycle((1.0, 1.0000001))

    def after_run(self, executable: SoundExecutable, batch: Batch) -> None:
        executable.output[0] *= np.float32(next(self.noise))


@fault("reorders-runs", "test_lifecycle::test_runs_keep_their_order")
class Reorders(Sound):
    """Runs in pairs, the later one first."""

    def run(self, executable: SoundExecutable, batch: Batch) -> None:
        waiting = executable.device.__dict__.setdefault("waiting", [])
        waiting.append((executable, batch))
        if len(waiting) == 2:
            while waiting:
                later, its_batch = waiting.pop()
                later.inner.run(its_batch)


@fault("compiles-to-something-else-each-time", "test_contract::test_compile_is_deterministic F32")
class Random(Sound):
    counter = itertools.count()

    def compile(self, info: DeviceInfo, segment: Segment) -> SoundProgram:
        program = super().compile(info, segment)
        return replace(program, resident={**program.resident, ("host", "scratch"): next(self.counter)})


@fault("accepts-what-does-not-compile", "test_contract::test_accepted_op_compiles matmul")
class DoesNotCompile(Sound):
    def compile(self, info: DeviceInfo, segment: Segment) -> SoundProgram:
        if any(w.type.name == "Q5_1" for op in segment.ops for w in op.weights):
            raise DeviceError("no Q5_1 after all")
        return super().compile(info, segment)


@fault("compiles-short-runs-only", "test_contract::test_compile_is_deterministic")
class ShortRuns(Sound):
    def compile(self, info: DeviceInfo, segment: Segment) -> SoundProgram:
        if len(segment.ops) > 4:
            raise DeviceError("the descriptor ring is full")
        return super().compile(info, segment)


@fault("opens-the-device-to-compile", "test_contract::test_accepted_op_compiles scale")
class OpensToCompile(Sound):
    def compile(self, info: DeviceInfo, segment: Segment) -> SoundProgram:
        self.open(info).close()
        return super().compile(info, segment)


@fault("raises-instead-of-refusing", "test_contract::test_unknown_op_is_refused")
class Raises(Sound):
    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        answer = super().estimate(info, op, workload)
        if isinstance(answer, Unsupported):
            raise DeviceError(answer.reason)
        return answer


@fault("accepts-everything", "test_contract::test_unknown_tensor_type_is_refused")
class AcceptsAll(Sound):
    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        return Cost(1e-6, "analytic:a guess")


@fault("refuses-without-a-reason", "test_contract::test_estimate attention")
class NoReason(Sound):
    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        return Unsupported("") if op.kind == "attention" else super().estimate(info, op, workload)


@fault("negative-cost", "test_contract::test_estimate scale")
class Negative(Sound):
    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        answer = super().estimate(info, op, workload)
        return replace(answer, seconds=-answer.seconds) if isinstance(answer, Cost) else answer


@fault("cost-without-a-source", "test_contract::test_estimate scale")
class NoBasis(Sound):
    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        answer = super().estimate(info, op, workload)
        return replace(answer, basis="fast") if isinstance(answer, Cost) else answer


@fault("estimate-remembers", "test_contract::test_estimate scale")
class Remembers(Sound):
    asked = itertools.count()

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        answer = super().estimate(info, op, workload)
        return replace(answer, seconds=1e-6 * next(self.asked)) if isinstance(answer, Cost) else answer


@fault("fuses-at-a-loss", "test_contract::test_fused_ops_cost_no_more_than_alone")
class FusesAtALoss(Sound):
    def fuse(self, info: DeviceInfo, segment: Segment, workload: Workload) -> Mapping[str, Cost]:
        costs = {op.name: self.estimate(info, op, workload) for op in segment.ops}
        return {name: replace(c, seconds=2 * c.seconds) for name, c in costs.items() if isinstance(c, Cost)}


@fault("probe-counts", "test_contract::test_probe_repeats")
class Counts(Sound):
    probes = itertools.count()

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        return [replace(info, description=f"probe {next(self.probes)}") for info in super().probe(config)]


@fault("frees-twice", "test_memory::test_buffer_closes_twice")
class FreesTwice(Sound):
    """Keeps closed buffers for reuse, and takes one back as often as it is closed."""

    def alloc(self, device: SoundDevice, nbytes: int) -> Any:
        free = device.__dict__.setdefault("free", [])
        fitting = [b for b in free if b.nbytes == nbytes]
        if fitting:
            free.remove(fitting[0])
            return fitting[0]
        buffer = device.inner.alloc(nbytes)
        buffer.close = lambda: free.append(buffer)
        return buffer


@fault("swallows-an-allocation-failure", "test_memory::test_absurd_buffer_is_refused")
class NoFailure(Sound):
    def alloc(self, device: SoundDevice, nbytes: int) -> Any:
        try:
            return device.inner.alloc(nbytes)
        except AllocationError:
            return device.inner.alloc(64)


@fault("dies-of-an-allocation-failure", "test_memory::test_absurd_buffer_is_refused")
class Dies(Sound):
    def alloc(self, device: SoundDevice, nbytes: int) -> Any:
        try:
            return device.inner.alloc(nbytes)
        except AllocationError:
            device.close()
            raise


@fault("clips-what-is-too-long", "test_memory::test_write_beyond_the_end_is_refused")
class Clips(Sound):
    def alloc(self, device: SoundDevice, nbytes: int) -> Any:
        buffer = device.inner.alloc(nbytes)
        write = buffer.write
        buffer.write = lambda data, offset=0: write(
            data[: max(0, nbytes - max(0, offset))], max(0, min(offset, nbytes))
        )
        return buffer


@fault("runs-after-close", "test_lifecycle::test_closed_executable_refuses")
class RunsClosed(Sound):
    def run(self, executable: SoundExecutable, batch: Batch) -> None:
        if not executable.closed:
            super().run(executable, batch)


@fault("allocates-after-close", "test_lifecycle::test_closed_device_refuses")
class AllocatesClosed(Sound):
    def alloc(self, device: SoundDevice, nbytes: int) -> Any:
        return bytearray(nbytes) if device.closed else super().alloc(device, nbytes)


@fault("times-without-a-source", "test_lifecycle::test_synchronize_gives_sane_events")
class NoEventBasis(Sound):
    def synchronize(self, device: SoundDevice) -> Sequence[RunEvent]:
        return [replace(event, basis="") for event in device.inner.synchronize()]


@fault("names-steps-anew-in-every-run", "test_lifecycle::test_steps_of_a_profiled_run_are_its_parts")
class NewSteps(Sound):
    def synchronize(self, device: SoundDevice) -> Sequence[RunEvent]:
        events = device.inner.synchronize()
        return [replace(e, steps=e.steps and replace(e.steps, ops=[*e.steps.ops])) for e in events]


@fault("tells-events-twice", "test_lifecycle::test_synchronize_gives_sane_events")
class OldEvents(Sound):
    def synchronize(self, device: SoundDevice) -> Sequence[RunEvent]:
        told = device.__dict__.setdefault("told", [])
        told += device.inner.synchronize()
        return list(told)


class RefusesAll(Sound):
    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        return Unsupported("a paperweight")


class Absent(Sound):
    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        unavailable = Unavailable("no board on the bus", "plug one in")
        return [replace(info, unavailable=unavailable) for info in super().probe(config)]

    def open(self, info: DeviceInfo) -> SoundDevice:
        raise DeviceError("no board on the bus", remedy="plug one in")


class Configured(Sound):
    """Reports as many devices as its settings say."""

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        (info,) = super().probe({})
        return [replace(info, id=f"{self.name}:{i}") for i in range(int(str(config.get("boards", 1))))]


OTHERS = (
    RefusesAll("refuses-all"),
    Absent("absent"),
    Configured("configured"),
    RefusesAll("promises"),
    Sound("stricter"),
    Sound("looser"),
    Coarse("known"),
    Sound("known-too-long"),
    CoarseTable("claims"),
    CoarseTable("claims-less"),
    CoarseTable("claims-too-much"),
)
EXPECTATIONS = {
    "promises": Expectations(must_run=("op/scale-*",)),
    "stricter": Expectations(nmse={"op/matmul-Q4_1-*": 0.0}),
    "looser": Expectations(nmse={"op/matmul-Q4_1-*": 0.5}),
    "known": Expectations(fails_today={"op/matmul-Q4_1-*": "five bits only, until the next bitstream"}),
    "known-too-long": Expectations(fails_today={"op/matmul-Q4_1-*": "long mended"}),
    "claims": Expectations(embeddings={"Q4_1": 1e-8}),
    "claims-less": Expectations(embeddings={"Q4_1": 1e-11, "Q4_0": 1e-8}),
    "claims-too-much": Expectations(embeddings={"Q4_1": 1e-3}),
}
