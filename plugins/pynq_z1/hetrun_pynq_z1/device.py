"""The open engine: memory, packed weights, loaded segments."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from hetrun.device import Batch, Bindings, DeviceInfo, Program, RunEvent, State
from hetrun.errors import AllocationError, DeviceError
from hetrun.free_list import FreeList
from hetrun.native import address_of
from hetrun.ops import GatedActivation, KvSpec, MatMul, Value
from hetrun.tensor import Weight
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.board import Block, Board
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.program import PynqProgram
from hetrun_pynq_z1.timing import BASIS, launches_seconds
from hetrun_pynq_z1.weights import LoadedWeight, Memory, PackedWeight, StreamedWeight

MEASURED = "measured:pynq-z1, the whole launch"

# Names of streamed weights: the upper half of the engine's addresses, where the board has no memory.
NAMES = (1 << 31, (1 << 32) - 64)


class PynqBuffer:
    """A value in the board's memory, which the host addresses too."""

    def __init__(self, device_id: str, board: Board, nbytes: int) -> None:
        self._subject = f"{device_id}: a buffer of {nbytes} bytes"
        if nbytes < 0:
            raise AllocationError(f"{self._subject} cannot be")
        self._memory: Memory | None = Memory(board, board.allocate(nbytes))
        self.nbytes = nbytes

    @property
    def block(self) -> Block:
        if self._memory is None:
            raise DeviceError(f"{self._subject} is closed")
        return self._memory.block

    def write(self, data: memoryview, offset: int = 0) -> None:
        source = memoryview(data).cast("B")
        self._slice(offset, source.nbytes)[:] = source

    def read(self, out: memoryview, offset: int = 0) -> None:
        target = memoryview(out).cast("B")
        target[:] = self._slice(offset, target.nbytes)

    def host_view(self) -> memoryview:
        return self.block.view

    def close(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.free()

    def _slice(self, offset: int, nbytes: int) -> memoryview:
        view = self.block.view
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{self._subject}: bytes {offset} to {offset + nbytes} are beyond its end")
        return view[offset : offset + nbytes]


class PynqExecutable:
    """The launches of a segment, with addresses of weights and values."""

    def __init__(
        self, device: PynqDevice, program: PynqProgram, weights: Mapping[str, memoryview], bindings: Bindings
    ) -> None:
        segment, launches = program.segment, program.launches
        self._device: PynqDevice | None = device
        self._segment = segment
        self._launches = launches
        ops = launches.matmuls
        self._weights = [device.loaded(op.weight, self._blocks(op.weight, weights)) for op in ops]
        # Inputs of the segment are bound, so what is not is made here.
        own = [value for value in launches.stored if value.name not in bindings.values]
        self._scratch = {value.name: device.alloc(segment.value_bytes(value)) for value in own}
        self._buffers = {value.name: self._buffer(value, bindings) for value in launches.stored}
        self._wave_of = {op.name: i for i, wave in enumerate(launches.waves) for op in wave}
        self._numbers = {value.name: i for i, value in enumerate(launches.inputs)}
        self._arrays = native.Arrays(
            list(self._matmuls()),
            [self._input(value) for value in launches.inputs],
            [self._gated(wave, op) for wave, op in launches.hosted],
            [w.named() for w in dict.fromkeys(self._weights) if isinstance(w, StreamedWeight)],
        )
        device.window(self._arrays.window_bytes(max(segment.max_tokens, segment.max_outputs)))

    def _matmuls(self) -> Iterator[native.Matmul]:
        """Of each op, one for each part of its weight; those of a gate and its up meet row by row."""
        ops, waiting = self._launches.matmuls, 0
        for i, op in enumerate(ops):
            if self._launches.mode(op) == "GATE":
                waiting += 1
                continue
            group = range(i - waiting, i + 1)
            waiting = 0
            starts = sorted({first for j in group for first in self._weights[j].starts} | {op.weight.shape[0]})
            for first, end in pairwise(starts):
                for j in group:
                    yield self._matmul(ops[j], self._weights[j], first, end - first)

    def _matmul(self, op: MatMul, weight: LoadedWeight, first_row: int, n_rows: int) -> native.Matmul:
        mode, written = self._launches.mode(op), self._launches.written(op)
        out = self._buffers[written.name].block.address if written else 0
        if mode.startswith("CODES"):
            out = self._numbers[self._launches.fused[op.name].op.name]
        return native.Matmul(
            definition().formats[op.weight.type.name],
            n_rows,
            op.weight.shape[1],
            self._numbers[op.x.name],
            weight.address(first_row),
            out,
            op.weight.shape[0],
            first_row,
            op.output.rows == "outputs",
            self._wave_of[op.name],
            definition().numbers[f"MODE_{mode}"],
        )

    def _gated(self, wave: int, op: GatedActivation) -> native.Gated:
        gate, up, out = (self._buffers[v.name].block for v in (op.gate, op.up, op.output))
        return native.Gated(
            *(address_of(block.view) for block in (gate, up, out)),
            self._written_here(op.gate),
            self._written_here(op.up),
            op.output.width,
            op.output.rows == "outputs",
            wave,
        )

    def _blocks(self, weight: Weight, weights: Mapping[str, memoryview]) -> memoryview:
        view = weights.get(weight.name)
        if view is None or view.nbytes != weight.nbytes:
            held = "nothing" if view is None else f"{view.nbytes} bytes"
            raise DeviceError(
                f"segment {self._segment.name}: weight {weight.name} has {weight.nbytes} bytes, but was given {held}"
            )
        return view

    def _buffer(self, value: Value, bindings: Bindings) -> PynqBuffer:
        if value.name in self._scratch:
            return self._scratch[value.name]
        buffer, needed = bindings.values.get(value.name), self._segment.value_bytes(value)
        if not isinstance(buffer, PynqBuffer) or buffer.nbytes < needed:
            held = "nothing" if buffer is None else f"{buffer.nbytes} bytes of a {type(buffer).__name__}"
            raise DeviceError(
                f"segment {self._segment.name}: value {value.name} needs {needed} bytes of the engine's memory and "
                f"has {held}"
            )
        return buffer

    def _input(self, value: Value) -> native.Input:
        coded = value.name in self._launches.coded
        data = 0 if coded else address_of(self._buffers[value.name].block.view)
        return native.Input(data, self._written_here(value), value.width, value.rows == "outputs")

    def _written_here(self, value: Value) -> int:
        """The address of floats that the engine has written in an earlier launch, or 0."""
        made = {v.name for op in self._launches.matmuls if (v := self._launches.written(op))}
        return self._buffers[value.name].block.address if value.name in made else 0

    def run(self, batch: Batch) -> None:
        """Runs to the end. DeviceError for a batch that the segment cannot hold, and where the engine fails."""
        device, segment = self._device, self._segment
        if device is None:
            raise DeviceError(f"segment {segment.name} is closed")
        if batch.n_tokens > segment.max_tokens or batch.n_outputs > segment.max_outputs:
            raise DeviceError(
                f"segment {segment.name}: {batch.n_tokens} tokens and {batch.n_outputs} outputs; it was compiled for "
                f"{segment.max_tokens} and {segment.max_outputs}"
            )
        for buffer in self._buffers.values():
            _ = buffer.block  # DeviceError where it is closed
        device.launch(segment.name, self._arrays, batch, launches_seconds(self._launches, batch))

    def close(self) -> None:
        self._device = None
        for buffer in self._scratch.values():
            buffer.close()
        self._scratch = {}
        self._weights = []


class PynqDevice:
    """One engine. Its runs are done when they return.

    staging_bytes: of the board's memory, through which weights pass that stay in the host's; 0: weights are resident.
    """

    def __init__(self, info: DeviceInfo, board: Board, timeout_s: float, staging_bytes: int = 0) -> None:
        self._id = info.id
        self._measured = info.backing == "hardware"
        self._timeout_s = timeout_s
        self._launch_s = info.launch.seconds
        self._board: Board | None = board
        self._events: list[RunEvent] = []
        self._weights: weakref.WeakValueDictionary[tuple[str, int], LoadedWeight] = weakref.WeakValueDictionary()
        self._staging = Memory(board, board.allocate(staging_bytes)) if staging_bytes else None
        self._names = FreeList(*NAMES)
        self._window: Memory | None = None
        self._parts: weakref.WeakSet[PynqBuffer | PynqExecutable] = weakref.WeakSet()

    def _open_board(self) -> Board:
        if self._board is None:
            raise DeviceError(f"{self._id} is closed")
        return self._board

    def alloc(self, nbytes: int) -> PynqBuffer:
        buffer = PynqBuffer(self._id, self._open_board(), nbytes)
        self._parts.add(buffer)
        return buffer

    def state(self, kv: KvSpec) -> State:
        self._open_board()
        raise DeviceError(f"{self._id}: {kv.name}: the engine has no attention", remedy="place attention on the cpu")

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> PynqExecutable:
        self._open_board()
        if not isinstance(program, PynqProgram):
            raise DeviceError(f"{self._id}: a {type(program).__name__} is no program of this engine")
        executable = PynqExecutable(self, program, weights, bindings)
        self._parts.add(executable)
        return executable

    def loaded(self, weight: Weight, blocks: memoryview) -> LoadedWeight:
        """The weight as the engine reads it, packed once for all segments that hold it."""
        key = (weight.name, address_of(blocks))
        found = self._weights.get(key)
        if found is None:
            board = self._open_board()
            streamed = self._staging is not None
            found = StreamedWeight(self._names, weight, blocks) if streamed else PackedWeight(board, weight, blocks)
            self._weights[key] = found
        return found

    def window(self, nbytes: int) -> None:
        """Sees that launches have as much memory for activations and descriptors."""
        if self._window is None or self._window.block.view.nbytes < nbytes:
            if self._window is not None:
                self._window.free()
            self._window = None
            self._window = Memory(self._open_board(), self._open_board().allocate(nbytes))

    def launch(
        self,
        name: str,
        arrays: native.Arrays,
        batch: Batch,
        engine_s: float,
    ) -> None:
        """engine_s: what the engine takes on the board, and what the host does for it."""
        board = self._open_board()
        assert self._window is not None
        staging = arrays.staging(_window(self._staging.block)) if self._staging else None
        report = native.Report()
        with board.engine:
            begin = time.perf_counter()
            status = native.library().hetrun_pynq_run(
                board.seam,
                _window(self._window.block),
                *arrays.arguments,
                batch.n_tokens,
                batch.n_outputs,
                staging,
                self._timeout_s,
                report,
            )
            wall_s = time.perf_counter() - begin
            board.check()
            if status != native.OK:
                self._fail(name, status, report)
        self._events.append(
            RunEvent(
                name,
                wall_s if self._measured else engine_s + report.n_launches * self._launch_s,
                MEASURED if self._measured else BASIS,
                {
                    "wall_s": wall_s,
                    "busy_cycles": float(report.busy_cycles),
                    "descriptors": float(report.n_descriptors),
                    "launches": float(report.n_launches),
                    "copied_bytes": float(report.copied_bytes),
                },
            )
        )

    def _fail(self, name: str, status: int, report: native.Report) -> None:
        subject = f"{self._id}: segment {name}"
        if status == native.TIMEOUT:
            self._open_board().reset()
            raise DeviceError(
                f"{subject}: the engine did not finish within {self._timeout_s:g} s and was reset",
                remedy="run it again; if it repeats, power-cycle the board, or raise timeout_s",
            )
        if status == native.NO_INTERRUPT:
            raise DeviceError(
                f"{subject}: the engine finished, but its interrupt did not come within {self._timeout_s:g} s",
                remedy='set wait = "poll" in the system file',
            )
        if status == native.ENGINE_ERROR:
            meaning = definition().statuses.get(report.status, f"status {report.status}")
            raise DeviceError(f"{subject}: the engine refused descriptor {report.n_descriptors}: {meaning}")
        raise DeviceError(f"{subject}: its launch needs more memory than was set aside")

    def synchronize(self) -> Sequence[RunEvent]:
        self._open_board()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        board, self._board = self._board, None
        if board is None:
            return
        for part in list(self._parts):
            part.close()
        if self._window is not None:
            self._window.free()
            self._window = None
        if self._staging is not None:
            self._staging.free()
        board.close()


def _window(block: Block) -> native.Window:
    return native.Window(address_of(block.view), block.address, block.view.nbytes)
