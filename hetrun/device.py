"""The device contract: what a plugin implements, and the values that cross it.

Planning needs no hardware: everything that can be pure is on `Driver`, and hardware is touched only behind `open`.
Refusal and cost are one answer (`estimate`), so that they cannot disagree. Data crosses as `memoryview`s: wrap them
with `numpy.frombuffer` or `numpy.asarray` where NumPy is wanted.

Rules that the conformance kit (`hetrun.testing`) checks:
- All keys and values of a batch are written before any query is answered; the positions of a slot ascend without gaps.
- Values crossing segments are float32; a device quantises inside, once a value and segment. Zero rows are legal.
- What `estimate` accepts compiles, in any run of ops.
- `synchronize` finishes every run; runs of one device keep their order.
- Packing of weights depends on the weight alone, the layout of a State on its KvSpec alone.
- `DeviceError`, before anything is written, for a batch larger than the segment's or outside a cache, for a weight that
  is missing or too short, and for every use of a buffer, state, executable or device after its `close`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from hetrun.ops import KvSpec, Op, Rows, Value, Workload

__all__ = [
    "API_VERSION", "COMMON_SETTINGS", "Basis", "Batch", "Bindings", "Buffer", "BuildStep", "Cost", "Described",
    "DesignPoint", "DesignSpace", "Detail", "Device", "DeviceInfo", "Driver", "Executable", "Fusing", "HardwareSources",
    "KvSpec",
    "Link", "MemorySpace", "Profiled", "Program", "Resource", "RunEvent", "Segment", "State", "StepTimes",
    "Unavailable", "Unsupported", "Workload", "residents", "roofline",
]  # fmt: skip

API_VERSION = 1

COMMON_SETTINGS = frozenset(("threads", "modelled"))
"""Settings that every driver's probe may be given beside those of its own table, and ignores if it has no use for them.
threads: int.   modelled: False where only devices that run are wanted."""

Basis = str
"""Where a number comes from: "measured:<where>", "simulated:<model>" or "analytic:<source>"; always shown to the
user.
"""


@dataclass(frozen=True)
class Link:
    """A path for copies: latency_s + bytes / bytes_per_s."""

    latency_s: float
    bytes_per_s: float
    basis: Basis

    def seconds(self, nbytes: int) -> float:
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class MemorySpace:
    """Memory that a device uses. "host" is the host's own; others are "<device id>/<name>".

    upload, download: None for both means that the host addresses the space and nothing is copied.
    """

    name: str
    capacity_bytes: int
    alignment_bytes: int = 64
    upload: Link | None = None
    download: Link | None = None


@dataclass(frozen=True)
class Cost:
    """What an op or a launch takes.

    resident: bytes that stay allocated, by (space, name); one (space, name) on a device is one block that all ops,
    segments and phases naming it share (tied embeddings).
    """

    seconds: float
    basis: Basis
    joules: float | None = None
    resident: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Unsupported:
    """A refusal: the reason, in words for the user."""

    reason: str


@dataclass(frozen=True)
class Unavailable:
    """Why a device cannot be opened here, and what would change that."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class DeviceInfo:
    """A device that a driver found, or knows how to model.

    id: "pynq-z1:0".   spaces: values live in the first.   launch: cost of one run of a segment.
    description: for the user. It names what changes the device's speed (threads, instruction set, clock): what
    "hetrun calibrate" has measured is found again by it.
    model: numbers that `estimate` uses (profile, probe or calibration).
    """

    id: str
    description: str
    backing: Literal["hardware", "emulated", "modelled"]
    spaces: tuple[MemorySpace, ...]
    launch: Cost
    model: Mapping[str, float]
    unavailable: Unavailable | None = None


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


class Driver(Protocol):
    """One kind of device. Only `open` touches hardware (or starts an emulator)."""

    @property
    def name(self) -> str: ...

    @property
    def api_version(self) -> int: ...

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        """Devices at hand, absent ones too with `unavailable` set. No side effects; absence is reported, not raised.

        config: the driver's table of a system file, and COMMON_SETTINGS. ConfigError for any other key or a bad value.
        """

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        """Time of the op inside a run (the launch is counted apart), or the reason why it cannot run here. Pure."""

    def compile(self, info: DeviceInfo, segment: Segment) -> Program:
        """Pure and deterministic; needs no weights and no hardware."""

    def open(self, info: DeviceInfo) -> Device:
        """DeviceError where the device is unavailable or only modelled."""


@runtime_checkable
class Fusing(Protocol):
    """Optional on a driver: some ops of one run take less together than each by itself."""

    def fuse(self, info: DeviceInfo, segment: Segment, workload: Workload) -> Mapping[str, Cost]:
        """Costs by op of those ops of a run for which `estimate`, which sees an op alone, says too much; of the rest it
        holds. Never more seconds than it says, so that a placement that breaks a pattern up costs no less. Pure.
        """


@dataclass(frozen=True)
class Detail:
    """A line about a device.   name: what it tells, "overlay".   missing: what is wrong with it, and what to do."""

    name: str
    value: str
    missing: str | None = None


@runtime_checkable
class Described(Protocol):
    """Optional on a driver: what `hetrun devices` shows below its table."""

    def details(self, info: DeviceInfo) -> Sequence[Detail]:
        """What there is to tell of a device, present or not; nothing where the table says it all. No side effects."""


@dataclass(frozen=True)
class BuildStep:
    """One run of a tool in the project's folder.

    command: words, the tool first.   makes: the file, relative to the folder, without which the step has failed.
    """

    command: tuple[str, ...]
    makes: str


@runtime_checkable
class HardwareSources(Protocol):
    """Optional on a driver: the project that `hetrun build` writes and makes hardware from."""

    def sources(self) -> Mapping[str, str]:
        """File name, relative to the project's folder -> text."""

    def steps(self) -> Sequence[BuildStep]:
        """What makes hardware of them, in order."""


@dataclass(frozen=True)
class Resource:
    """A kind of resource that a design takes of a part.   basis: of `used`, as costs have it."""

    used: float
    capacity: float
    basis: Basis

    @property
    def share(self) -> float:
        return self.used / self.capacity


@dataclass(frozen=True)
class DesignPoint:
    """A design that could be built.

    info: the device that it would be, for the driver's own `estimate`; its model has "watts", the whole system's power
    while the device works, so that joules of a plan are those of the system.   fits: within what the driver fills.
    pass_tokens: rows that share a pass over the weights, which is what a step of prefill is given.
    """

    parameters: Mapping[str, int]
    info: DeviceInfo
    resources: Mapping[str, Resource]
    fits: bool
    pass_tokens: int


@runtime_checkable
class DesignSpace(Protocol):
    """Optional on a driver: the designs that `hetrun explore` sweeps."""

    @property
    def host_profile(self) -> str:
        """The device beside it, an id such as "model:cortex-a9"."""

    def axes(self) -> Mapping[str, Sequence[int]]:
        """Values of each parameter that a sweep takes where it is told no others."""

    def design(self, parameters: Mapping[str, int]) -> DesignPoint:
        """The point with a value for each axis. UsageError for one that cannot be."""


def roofline(op: Op, workload: Workload, info: DeviceInfo, basis: Basis) -> Cost:
    """The simplest cost model, for drivers without a better one: the slower of arithmetic and memory, plus a fixed
    cost.

    Reads `flops_per_s`, `bytes_per_s` and `op_s` of `info.model`, and `watts` where it is given. Weights and KV stay
    in the device's last space.
    """
    model = info.model
    nbytes = op.weight_bytes(workload) + op.activation_bytes(workload) + op.kv_bytes(workload)
    seconds = max(op.flops(workload) / model["flops_per_s"], nbytes / model["bytes_per_s"]) + model.get("op_s", 0.0)
    return Cost(
        seconds,
        basis,
        joules=seconds * model["watts"] if "watts" in model else None,
        resident=residents(op, info.spaces[-1].name),
    )


def residents(op: Op, space: str) -> dict[tuple[str, str], int]:
    """Bytes that an op keeps where weights and KV are stored as they are, by (space, name)."""
    blocks = {(space, w.name): w.nbytes for w in op.weights}
    kv = getattr(op, "kv", None)
    if isinstance(kv, KvSpec):
        blocks[(space, kv.name)] = kv.nbytes
    return blocks
