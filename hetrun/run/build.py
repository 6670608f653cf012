"""Makes a plan runnable: opens its devices, compiles and loads its segments, and lays out the values between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from hetrun.device import Batch, Bindings, Buffer, Device, Executable, Segment, State
from hetrun.errors import DeviceError, HetrunError, PluginError
from hetrun.graph.graph import Graph
from hetrun.ops import Attention, KvSpec, Value
from hetrun.plan.cost import HOST, values_domain
from hetrun.plan.plan import PHASES, Phase, Plan
from hetrun.plan.segment import cut
from hetrun.plugins import FoundDevice, select_device
from hetrun.run.layout import Place, Run, lives, share, waits

T = TypeVar("T")


@dataclass(frozen=True)
class Copy:
    """Moves one value from the memory where it was made into another that a later segment reads.

    made_on: the device that made it.
    """

    value: Value
    made_on: str
    source: Buffer
    target: Buffer

    def run(self, batch: Batch) -> None:
        nbytes = 4 * self.value.width * batch.rows(self.value.rows)
        if nbytes == 0:
            return
        source, target = self.source.host_view(), self.target.host_view()
        if source is not None:
            self.target.write(source[:nbytes])
        elif target is not None:
            self.source.read(target[:nbytes])
        else:
            staging = memoryview(bytearray(nbytes))
            self.source.read(staging)
            self.target.write(staging)


@dataclass(frozen=True)
class Step:
    """One segment of a phase: devices to wait for, copies to make, then one run."""

    device: str
    segment: Segment
    executable: Executable
    waits: tuple[str, ...]
    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Runtime:
    """A loaded plan. `close` frees executables, states, buffers and devices, in that order.

    found: the devices, as their drivers describe them.
    """

    graph: Graph
    plan: Plan
    max_tokens: int
    max_outputs: int
    steps: Mapping[Phase, tuple[Step, ...]]
    states: Mapping[str, State]
    logits: Mapping[Phase, Buffer]
    devices: Mapping[str, Device]
    found: Mapping[str, FoundDevice]
    resources: ExitStack

    def close(self) -> None:
        self.resources.close()


def build(
    graph: Graph,
    plan: Plan,
    found: Sequence[FoundDevice],
    weights: Callable[[str], memoryview],
    max_tokens: int,
    max_outputs: int,
) -> Runtime:
    """Opens and loads everything, or frees what it had opened and raises what went wrong.

    weights: raw blocks of a tensor of the file by its name, valid until the runtime is closed.
    """
    with ExitStack() as resources:
        builder = _Builder(graph, plan, found, weights, max_tokens, max_outputs, resources)
        runtime = builder.runtime()
        return replace(runtime, resources=resources.pop_all())


class _Builder:
    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        found: Sequence[FoundDevice],
        weights: Callable[[str], memoryview],
        max_tokens: int,
        max_outputs: int,
        resources: ExitStack,
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.found = {d: select_device(found, d) for d in plan.used_devices}
        self.blocks = {name: weight.blocks(weights) for name, weight in graph.weights.items()}
        self.max_tokens = max_tokens
        self.max_outputs = max_outputs
        self.resources = resources
        self.devices = {d: self.open(d) for d in plan.used_devices}
        self.placements: dict[Phase, dict[str, str]] = {
            phase: {a.op: a.device for a in plan.assignments(phase)} for phase in PHASES
        }
        self.users = self.devices_of_values()
        self.runs: dict[Phase, list[Run]] = {phase: self.cut(phase) for phase in PHASES}
        self.layout = self.shared_buffers()
        self.buffers: dict[int, Buffer] = {}
        self.states: dict[str, State] = {}
        self.executables: dict[tuple[str, Segment], Executable] = {}

    def runtime(self) -> Runtime:
        steps = {phase: self.steps(phase) for phase in PHASES}
        logits = {
            phase: self.buffer(self.graph.output, self.placements[phase][self.graph.output.name]) for phase in PHASES
        }
        return Runtime(
            self.graph,
            self.plan,
            self.max_tokens,
            self.max_outputs,
            steps,
            self.states,
            logits,
            self.devices,
            self.found,
            self.resources,
        )

    def devices_of_values(self) -> dict[str, list[str]]:
        """Devices that make or read each value, in any phase."""
        users: dict[str, list[str]] = {}
        for placement in self.placements.values():
            for op in self.graph.ops:
                for name in (op.name, *(v.name for v in op.inputs)):
                    users.setdefault(name, []).append(placement[op.name])
        return users

    def open(self, device_id: str) -> Device:
        entry = self.found[device_id]
        if entry.info.unavailable:
            raise DeviceError(f"{device_id}: {entry.info.unavailable.reason}", remedy=entry.info.unavailable.remedy)
        if entry.info.backing == "modelled":
            raise DeviceError(
                f"{device_id} is only modelled: it can be planned for, not run",
                remedy="choose devices that are here: hetrun devices",
            )
        device = self.guard(device_id, lambda: entry.driver.open(entry.info))
        self.resources.callback(device.close)
        return device

    def cut(self, phase: Phase) -> list[Run]:
        placement = [a.device for a in self.plan.assignments(phase)]
        return cut(self.graph, placement, self.max_tokens, self.max_outputs)

    def shared_buffers(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(number, bytes) of the buffer of each value in each memory."""
        needed: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
        for phase, runs in self.runs.items():
            for key, life in lives(runs, self.domain, self.graph.output.name).items():
                needed.setdefault(key, {})[phase] = life
        sizes = {
            v.name: segment.value_bytes(v)
            for runs in self.runs.values()
            for _, segment in runs
            for v in (*segment.inputs, *segment.outputs)
        }
        return share([Place(key, sizes[key[0]], by_phase) for key, by_phase in needed.items()])

    def steps(self, phase: Phase) -> tuple[Step, ...]:
        runs = self.runs[phase]
        made_on = {op.name: device for device, segment in runs for op in segment.ops}
        here: set[tuple[str, str]] = set()  # (value, domain) that hold the value of this step
        steps = []
        for (device, segment), awaited in zip(runs, waits(runs), strict=True):
            copies = []
            for value in segment.inputs:
                source = made_on[value.name]
                domain = self.domain(value, device)
                if domain != self.domain(value, source) and (value.name, domain) not in here:
                    here.add((value.name, domain))
                    copies.append(Copy(value, source, self.buffer(value, source), self.buffer(value, device)))
            steps.append(Step(device, segment, self.executable(device, segment), awaited, tuple(copies)))
        return tuple(steps)

    def executable(self, device_id: str, segment: Segment) -> Executable:
        """The loaded segment; phases that have the same segment on the same device share it."""
        key = (device_id, segment)
        if key not in self.executables:
            entry = self.found[device_id]
            values = {v.name: self.buffer(v, device_id) for v in (*segment.inputs, *segment.outputs)}
            states = {op.kv.name: self.state(op.kv, device_id) for op in segment.ops if isinstance(op, Attention)}
            names = {w.name for op in segment.ops for w in op.weights}
            program = self.guard(device_id, lambda: entry.driver.compile(entry.info, segment))
            blocks = {name: self.blocks[name] for name in names}
            executable = self.guard(
                device_id, lambda: self.devices[device_id].load(program, blocks, Bindings(values, states))
            )
            self.resources.callback(executable.close)
            self.executables[key] = executable
        return self.executables[key]

    def domain(self, value: Value, device_id: str) -> str:
        """The memory in which `device_id` sees the value.

        Devices on host memory take any buffer that the host addresses, so where one device with stricter needs (an
        overlay on shared memory) reads or writes the value too, its buffer serves all of them.
        """
        if not self.on_host(device_id):
            return device_id
        stricter = (
            d for d in self.users[value.name] if not self.on_host(d) and values_domain(self.found[d].info) == HOST
        )
        return next(stricter, HOST)

    def on_host(self, device_id: str) -> bool:
        return self.found[device_id].info.spaces[0].name == HOST

    def buffer(self, value: Value, device_id: str) -> Buffer:
        domain = self.domain(value, device_id)
        number, nbytes = self.layout[value.name, domain]
        if number not in self.buffers:
            owner = device_id if domain == HOST else domain
            buffer = self.guard(owner, lambda: self.devices[owner].alloc(nbytes))
            self.resources.callback(buffer.close)
            self.buffers[number] = buffer
        return self.buffers[number]

    def state(self, kv: KvSpec, device_id: str) -> State:
        if kv.name not in self.states:
            state = self.guard(device_id, lambda: self.devices[device_id].state(kv))
            self.resources.callback(state.close)
            self.states[kv.name] = state
        return self.states[kv.name]

    def guard(self, device_id: str, call: Callable[[], T]) -> T:
        """Errors of the contract pass; anything else that a plugin raises is named as its fault."""
        try:
            return call()
        except HetrunError:
            raise
        except Exception as error:
            fault = f"the driver raised {type(error).__name__}: {error}"
            raise PluginError.broken_contract(device_id, self.found[device_id].plugin, fault) from error
