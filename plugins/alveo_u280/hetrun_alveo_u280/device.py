"""The open card: its memories, loaded segments, launches."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence

from hetrun.device import Batch, Bindings, DeviceInfo, Program, RunEvent, StepTimes
from hetrun.errors import DeviceError
from hetrun.native import address_of
from hetrun.ops import Attention, Embedding, KvSpec, Rope, Value
from hetrun.tensor import Weight
from hetrun_alveo_u280.card import BEAT_BYTES, Card
from hetrun_alveo_u280.cost import run_seconds
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.instruction import Instruction, Place, Rotation
from hetrun_alveo_u280.memory import DdrBuffer, DdrVector, HbmState, HbmWeight, Memories, RotationTable
from hetrun_alveo_u280.program import U280Program
from hetrun_alveo_u280.refusal import kv_refusal
from hetrun_alveo_u280.timing import BASIS, Row, step_timing

MEASURED = "measured:alveo-u280, the whole launch"

WHOLE: Sequence[tuple[str, ...]] = ((),)  # a launch, which is not divided

FIRST_POSITIONS = 1024  # of a table of rotations; it doubles when a step goes beyond


class U280Executable:
    """A program in DDR, with the addresses of weights, caches and values."""

    def __init__(
        self, device: U280Device, program: U280Program, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> None:
        segment = program.segment
        self._device: U280Device | None = device
        self._compiled, self._segment = program, segment
        most = definition().numbers["PASS_TOKENS"] * definition().numbers["MAX_PASSES"]
        if segment.max_tokens > most:
            raise DeviceError(f"segment {segment.name}: steps of {segment.max_tokens} tokens; the engine takes {most}")
        self._states = {
            op.kv.name: self._state(op.kv, bindings) for op in segment.ops if isinstance(op, Attention)
        }  # fmt: skip
        self._buffers = {v.name: self._buffer(v, bindings) for v in (*segment.inputs, *segment.outputs)}
        constants = {w.name: w for op in segment.ops for w in op.weights}
        blocks = {name: self._blocks(weight, weights) for name, weight in constants.items()}
        in_hbm = {i.hbm for i in program.instructions}
        self._weights = {name: device.weight(w, blocks[name]) for name, w in constants.items() if name in in_hbm}
        self._vectors = {name: device.vector(w, blocks[name]) for name, w in constants.items() if name not in in_hbm}
        rotations = [i.ddr[1] for i in program.instructions if i.ddr and i.ddr[0] is Place.ROTATION]
        self._tables = {r: device.table(r) for r in rotations if isinstance(r, Rotation)}
        self._spilled = {v.name: device.alloc(segment.value_bytes(v)) for v in program.spilled}
        self._program = device.memories.put(f"the program of {segment.name}", self._encoded())
        self._rows = device.memories.take_ddr("rows of a step", 16 * segment.max_tokens)

    def _state(self, kv: KvSpec, bindings: Bindings) -> HbmState:
        state = bindings.states.get(kv.name)
        if not isinstance(state, HbmState) or state.kv != kv:
            raise DeviceError(f"segment {self._segment.name}: no cache of this card is bound as {kv.name}")
        return state

    def _buffer(self, value: Value, bindings: Bindings) -> DdrBuffer:
        buffer, needed = bindings.values.get(value.name), self._segment.value_bytes(value)
        if not isinstance(buffer, DdrBuffer) or buffer.nbytes < needed:
            held = "nothing" if buffer is None else f"{buffer.nbytes} bytes of a {type(buffer).__name__}"
            raise DeviceError(
                f"segment {self._segment.name}: value {value.name} needs {needed} bytes of the card's DDR, has {held}"
            )
        return buffer

    def _blocks(self, weight: Weight, weights: Mapping[str, memoryview]) -> memoryview:
        view = weights.get(weight.name)
        if view is None or view.nbytes != weight.nbytes:
            held = "nothing" if view is None else f"{view.nbytes} bytes"
            raise DeviceError(
                f"segment {self._segment.name}: weight {weight.name} has {weight.nbytes} bytes, but was given {held}"
            )
        return view

    def _encoded(self) -> bytes:
        """The program. Tables stand elsewhere once they have grown."""
        self._begins = {rotation: table.begin for rotation, table in self._tables.items()}
        return b"".join(i.encode(self._hbm(i), self._ddr(i)) for i in self._compiled.instructions)

    def _hbm(self, instruction: Instruction) -> int:
        name = instruction.hbm
        if name is None:
            return 0
        return self._states[name].begin if name in self._states else self._weights[name].begin

    def _ddr(self, instruction: Instruction) -> int:
        if instruction.ddr is None:
            return 0
        place, name = instruction.ddr
        if isinstance(name, Rotation):
            return self._begins[name]
        if place is Place.VECTOR:
            return self._vectors[name].begin
        return (self._buffers.get(name) or self._spilled[name]).begin

    def run(self, batch: Batch) -> None:
        """Runs to the end. DeviceError for a batch that the segment cannot hold, and where the engine fails."""
        device = self._device
        if device is None:
            raise DeviceError(f"segment {self._segment.name} is closed")
        self._check(batch)
        if batch.n_tokens == 0:
            return
        self._hold_rotations(device, max(batch.positions) + 1)
        device.launch(self._compiled, self._scalars(device, batch), batch)

    def _check(self, batch: Batch) -> None:
        segment = self._segment
        if batch.n_tokens > segment.max_tokens or batch.n_outputs > segment.max_outputs:
            raise DeviceError(
                f"segment {segment.name}: {batch.n_tokens} tokens and {batch.n_outputs} outputs; it was compiled for "
                f"{segment.max_tokens} and {segment.max_outputs}"
            )
        for part in (*self._buffers.values(), *self._states.values()):
            _ = part.begin  # DeviceError where it is closed
        for op in segment.ops:
            if isinstance(op, Attention):
                _check_range(f"{op.kv.name}: position", batch.positions, op.kv.n_ctx)
                _check_range(f"{op.kv.name}: slot", batch.slots, op.kv.n_slots)
            elif isinstance(op, Rope):
                _check_range(f"{op.name}: position", batch.positions, 1 << 31)
            elif isinstance(op, Embedding):
                _check_range(f"{op.weight.name}: token", batch.tokens, op.weight.shape[0])

    def _hold_rotations(self, device: U280Device, n_positions: int) -> None:
        for table in self._tables.values():
            table.hold(n_positions)
        if any(table.begin != self._begins[rotation] for rotation, table in self._tables.items()):
            device.memories.card.ddr_write(self._program.begin * BEAT_BYTES, memoryview(self._encoded()))

    def _scalars(self, device: U280Device, batch: Batch) -> dict[str, int]:
        """The kernel's arguments. One row is told by them alone, more stand in a table."""
        numbers = {number: i for i, number in enumerate(batch.outputs)}
        if batch.n_tokens > 1:
            row = definition().records["Row"].layout
            columns = zip(batch.tokens, batch.positions, batch.slots, strict=True)
            table = b"".join(row.pack(*values, numbers.get(i, -1)) for i, values in enumerate(columns))
            device.memories.card.ddr_write(self._rows.begin * BEAT_BYTES, memoryview(table))
        return {
            "VERSION": definition().numbers["VERSION"],
            "PROGRAM": self._program.begin,
            "ROWS": self._rows.begin,
            "N_TOKENS": batch.n_tokens,
            "TOKEN": batch.tokens[0],
            "POSITION": batch.positions[0],
            "SLOT": batch.slots[0],
            "OUTPUT": numbers.get(0, -1),
        }

    def close(self) -> None:
        device, self._device = self._device, None
        if device is None:
            return
        for buffer in self._spilled.values():
            buffer.close()
        self._program.free()
        self._rows.free()
        self._weights, self._vectors, self._tables = {}, {}, {}


def _check_range(what: str, numbers: memoryview, end: int) -> None:
    """DeviceError where one is not in [0, end)."""
    if len(numbers) and not (min(numbers) >= 0 and max(numbers) < end):
        bad = next(n for n in numbers if not 0 <= n < end)
        raise DeviceError(f"{what} {bad} is not within 0 to {end - 1}")


class U280Device:
    """One card. Its runs are done when they return."""

    def __init__(self, info: DeviceInfo, card: Card) -> None:
        self._id = info.id
        self._measured = info.backing == "hardware"
        self._launch_s, self._clock_hz = info.launch.seconds, info.model["clock_hz"]
        self._profiling = False
        self._memories: Memories | None = Memories(card)
        self._report = self._memories.take_ddr("the report", BEAT_BYTES)
        self._events: list[RunEvent] = []
        self._weights: weakref.WeakValueDictionary[tuple[str, int], HbmWeight] = weakref.WeakValueDictionary()
        self._vectors: weakref.WeakValueDictionary[tuple[str, int], DdrVector] = weakref.WeakValueDictionary()
        self._tables: weakref.WeakValueDictionary[Rotation, RotationTable] = weakref.WeakValueDictionary()
        self._parts: weakref.WeakSet[DdrBuffer | HbmState | U280Executable] = weakref.WeakSet()

    @property
    def memories(self) -> Memories:
        if self._memories is None:
            raise DeviceError(f"{self._id} is closed")
        return self._memories

    def alloc(self, nbytes: int) -> DdrBuffer:
        buffer = DdrBuffer(self.memories, nbytes)
        self._parts.add(buffer)
        return buffer

    def state(self, kv: KvSpec) -> HbmState:
        """DeviceError for a format that the engine does not keep."""
        memories = self.memories
        if reason := kv_refusal(kv):
            raise DeviceError(f"{self._id}: {kv.name}: {reason}")
        state = HbmState(memories, kv)
        self._parts.add(state)
        return state

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> U280Executable:
        _ = self.memories  # DeviceError where it is closed
        if not isinstance(program, U280Program):
            raise DeviceError(f"{self._id}: a {type(program).__name__} is no program of this engine")
        executable = U280Executable(self, program, weights, bindings)
        self._parts.add(executable)
        return executable

    def weight(self, weight: Weight, blocks: memoryview) -> HbmWeight:
        """A matrix in HBM, packed once for all segments that hold it."""
        key = (weight.name, address_of(blocks))
        found = self._weights.get(key)
        if found is None:
            found = self._weights[key] = HbmWeight(self.memories, weight, blocks)
        return found

    def vector(self, weight: Weight, blocks: memoryview) -> DdrVector:
        key = (weight.name, address_of(blocks))
        found = self._vectors.get(key)
        if found is None:
            found = self._vectors[key] = DdrVector(self.memories, weight, blocks)
        return found

    def table(self, rotation: Rotation) -> RotationTable:
        found = self._tables.get(rotation)
        if found is None:
            found = self._tables[rotation] = RotationTable(self.memories, rotation)
            found.hold(FIRST_POSITIONS)
        return found

    def profile(self, on: bool) -> None:
        """Whether events tell the time of each op, by the cycle model. A card tells that of the whole launch alone."""
        _ = self.memories
        self._profiling = on

    def launch(self, program: U280Program, scalars: Mapping[str, int], batch: Batch) -> None:
        card, name = self.memories.card, program.segment.name
        begin = time.perf_counter()
        report = card.run({**scalars, "REPORT": self._report.begin})
        wall_s = time.perf_counter() - begin
        counters = {
            "wall_s": wall_s,
            "passes": float(report.n_passes),
            "weight_beats": float(report.weight_beats),
            "kv_beats": float(report.kv_beats),
        }
        if self._measured:
            counters |= {"cycles": float(report.cycles), "stall_cycles": float(report.stall_cycles)}
            whole = StepTimes(WHOLE, [wall_s]) if self._profiling else None
            event = RunEvent(name, wall_s, MEASURED, counters, whole)
        elif self._profiling:
            steps = self._steps(program, batch)
            event = RunEvent(name, sum(steps.seconds), BASIS, counters, steps)
        else:
            # What ops add up to is within 5% of the step as a whole, which takes ten times as long to work out.
            event = RunEvent(name, self._launch_s + run_seconds(program.segment, batch), BASIS, counters)
        self._events.append(event)

    def _steps(self, program: U280Program, batch: Batch) -> StepTimes:
        """Instructions of the same ops together; the launch is in front."""
        numbers = {number: i for i, number in enumerate(batch.outputs)}
        places = zip(batch.positions, batch.slots, strict=True)
        rows = [Row(position, slot, numbers.get(i, -1)) for i, (position, slot) in enumerate(places)]
        cycles = dict.fromkeys(program.steps, 0)
        of_instruction = step_timing(program.instructions, rows).of_instruction
        for instruction, n in zip(program.instructions, of_instruction, strict=True):
            cycles[instruction.sources] += n
        seconds = {ops: n / self._clock_hz for ops, n in cycles.items()}
        seconds[()] += self._launch_s
        return StepTimes(program.steps, list(seconds.values()))

    def synchronize(self) -> Sequence[RunEvent]:
        _ = self.memories
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        memories, self._memories = self._memories, None
        if memories is None:
            return
        for part in list(self._parts):
            part.close()
        memories.card.close()
