"""What runs: segments and their programs, batches, events, and the memory of an open device."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from hetrun.device.info import Basis
from hetrun.ops import KvSpec, Op, Rows, Value


@dataclass(frozen=True)
class Segment:
    """A maximal run of ops on one device: what a driver compiles.

    inputs, outputs: values that cross the segment's border.   max_tokens, max_outputs: rows a step may have.
    """

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    max_tokens: int
    max_outputs: int

    def max_rows(self, rows: Rows) -> int:
        return self.max_tokens if rows == "tokens" else self.max_outputs

    def value_bytes(self, value: Value) -> int:
        """Bytes of a buffer that holds `value` for any step."""
        return 4 * value.width * self.max_rows(value.rows)


@dataclass(frozen=True)
class Batch:
    """The tokens of one step: int32 vectors on the host, immutable, one object a step.

    tokens, positions, slots: one entry a token.   outputs: ascending indices of the tokens whose logits are wanted.
    """

    tokens: memoryview
    positions: memoryview
    slots: memoryview
    outputs: memoryview

    @classmethod
    def of(cls, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], outputs: Sequence[int]) -> Batch:
        if not len(tokens) == len(positions) == len(slots):
            raise ValueError(f"{len(tokens)} tokens, {len(positions)} positions, {len(slots)} slots")
        return cls(*(memoryview(array("i", v)).toreadonly() for v in (tokens, positions, slots, outputs)))

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_outputs(self) -> int:
        return len(self.outputs)

    def rows(self, rows: Rows) -> int:
        return self.n_tokens if rows == "tokens" else self.n_outputs


@dataclass(frozen=True)
class StepTimes:
    """What the steps of one run took, in the order in which they ran.

    ops: for each step the names of the ops that it does or helps to do, several where the device fuses them, none where
    it serves the whole segment. The same object for every run of an executable.   seconds: one number a step.
    """

    ops: Sequence[tuple[str, ...]]
    seconds: Sequence[float]


@dataclass(frozen=True)
class RunEvent:
    """One run as the device timed it.   counters: cycles, stalls and the like, device-specific.

    steps: its parts, where the device is `Profiled` and asked for them.
    """

    segment: str
    seconds: float
    basis: Basis
    counters: Mapping[str, float] = field(default_factory=dict)
    steps: StepTimes | None = None


class Buffer(Protocol):
    """Memory for one value, on the device."""

    @property
    def nbytes(self) -> int: ...

    def write(self, data: memoryview, offset: int = 0) -> None:
        """Copies bytes in, after the device's earlier runs. ValueError beyond the end."""

    def read(self, out: memoryview, offset: int = 0) -> None:
        """Copies bytes out, after the device's earlier runs. ValueError beyond the end."""

    def host_view(self) -> memoryview | None:
        """The bytes themselves (writable, format "B") where the host addresses them, else None."""

    def close(self) -> None:
        """Frees the memory; a second call does nothing."""


class State(Protocol):
    """The KV cache of one KvSpec. It holds no lengths: positions say it all, so a rollback needs no device call."""

    def copy(self, src_slot: int, dst_slot: int, n_tokens: int) -> None:
        """Makes the first n_tokens positions of dst_slot those of src_slot."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Bindings:
    """What an executable reads and writes: a buffer for each input and output value, a state for each KvSpec, by
    name.
    """

    values: Mapping[str, Buffer]
    states: Mapping[str, State]


class Program(Protocol):
    """A compiled segment without weights.   resident: bytes by (space, name) that loading will take."""

    @property
    def segment(self) -> Segment: ...

    @property
    def resident(self) -> Mapping[tuple[str, str], int]: ...


class Executable(Protocol):
    """A program with weights and bindings."""

    def run(self, batch: Batch) -> None:
        """Runs the segment on a batch; may return before it is done."""

    def close(self) -> None: ...


class Device(Protocol):
    """An open device. Every method raises `DeviceError` after `close`."""

    def alloc(self, nbytes: int) -> Buffer:
        """AllocationError where there is no memory left. A device whose first space is "host" runs on any buffer with a
        host_view; others take only their own."""

    def state(self, kv: KvSpec) -> State:
        """AllocationError where there is no memory left."""

    def load(self, program: Program, weights: Mapping[str, memoryview], bindings: Bindings) -> Executable:
        """weights: read-only uint8 GGUF blocks by name, valid until close. Binds once: a run does not bind anew."""

    def synchronize(self) -> Sequence[RunEvent]:
        """Finishes every run; returns their events since the last call, or nothing where the device does not time
        itself.
        """

    def close(self) -> None:
        """Frees everything; a second call does nothing."""


@runtime_checkable
class Profiled(Protocol):
    """Optional on a device: it can time the steps of its runs. Without it a segment is timed as a whole."""

    def profile(self, on: bool) -> None:
        """Whether events of later runs carry `steps`. Off at first."""
