"""What would make a model fit, or reach a rate: other types, contexts, devices and boards, each of them planned."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from hetrun import api
from hetrun.cli.loading import graph_options, planned_devices, system_of
from hetrun.cli.mixes import mixes
from hetrun.cli.options import Choice
from hetrun.config import load_system
from hetrun.errors import HetrunError
from hetrun.graph.graph import Graph
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import Shape
from hetrun.plan.boards import boards_for
from hetrun.plan.fit import Misfit
from hetrun.plan.place import Request, Task
from hetrun.plan.plan import Plan
from hetrun.plan.rules import Rule
from hetrun.plugins import FoundDevice, Registry
from hetrun.toml_table import shipped

# From the most exact down, as quality goes.
_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q3_K", "Q2_K")
_CACHES = ("q8_0", "kv4")
_WINDOWS = (2044, 1020, 508, 252)
_SHORTEST_CONTEXT = 64

Kind = Literal["type", "mix", "cache", "context", "window", "devices", "both", "boards"]


@dataclass(frozen=True)
class Change:
    """One thing that is different. `kind`s are alternatives: of most the first that helps is enough."""

    kind: Kind
    label: str
    header: Shape
    options: GraphOptions
    devices: Callable[[], Sequence[FoundDevice]]


@dataclass(frozen=True)
class Outcome:
    """A change that helps, and what follows from it.   bytes: of all memories together."""

    kind: Kind
    label: str
    decode_tps: float
    prefill_s: float
    n_bytes: int | None
    basis: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """What is asked for now.   is_file: whether the header is a file's, whose types cannot be chosen by an option.

    kv_type: how keys and values are to be kept on other devices; None leaves it to them.
    """

    header: Shape
    choice: Choice
    request: Request
    rules: Sequence[Rule]
    registry: Registry
    is_file: bool
    kv_type: str | None

    def outcomes(self) -> list[Outcome]:
        """Changes after which a plan keeps to memory and to the target, the best of each kind, planned one by one."""
        print("planning what would change that ...", file=sys.stderr)
        found = list(self._first_of_each(self._single()))
        found += filter(None, [self._boards()])
        return found or list(self._first_of_each(self._double()))

    def memory_basis(self) -> str:
        """Where the limit of the host's memory comes from, to be put behind an error; "" where no system sets it."""
        system = system_of(self.choice)
        if system is None or system.host_capacity is None:
            return ""
        return f"; host memory of {system.name}: {system.host_capacity.basis}"

    @property
    def _options(self) -> GraphOptions:
        return graph_options(self.choice)

    def _devices(self, **changed: object) -> list[FoundDevice]:
        return planned_devices(replace(self.choice, **changed), self.registry)  # type: ignore[arg-type]

    def _single(self) -> Iterator[Change]:
        for header, label in self._types():
            yield Change("type", label, header, self._options, self._devices)
        yield from self._mixes()
        if self.choice.kv_type in ("f16", "f32"):
            for cache in _CACHES:
                options = replace(self._options, kv_format=cache)
                yield Change("cache", f"--kv-type {cache}", self.header, options, self._devices)
        yield from self._contexts()
        for label, devices in self._systems():
            yield Change("devices", label, self.header, self._options, devices)

    def _double(self) -> Iterator[Change]:
        """Other types on other devices, where neither alone helps."""
        for system, devices in self._systems():
            for header, label in self._types():
                yield Change("both", f"{system} and {label}", header, self._options, devices)

    def _types(self) -> Iterator[tuple[Shape, str]]:
        """The model in types that make it smaller."""
        size = sum(w.nbytes for w in self.header.tensors.values())
        for name in _TYPES:
            try:
                other = self.header.quantised(name)
            except HetrunError:
                continue
            if sum(w.nbytes for w in other.tensors.values()) < size:
                yield other, f"a {name} file of the model" if self.is_file else f"--quant {name}"

    def _contexts(self) -> Iterator[Change]:
        for n_ctx in self._shorter():
            yield Change("context", f"--ctx {n_ctx}", self.header, replace(self._options, n_ctx=n_ctx), self._devices)
        if not self.choice.attention.window:
            for window in _WINDOWS:
                if window + 4 < self._n_ctx():
                    options = replace(self._options, sink=4, window=window)
                    label = f"--attention sink=4,window={window}"
                    yield Change("window", label, self.header, options, self._devices)

    def _shorter(self) -> Iterator[int]:
        """Contexts that hold the request, each half of the one before."""
        needed = self.request.prompt_tokens + self.request.gen_tokens
        half = self._n_ctx() // 2
        while half >= max(needed, _SHORTEST_CONTEXT):
            yield half
            half //= 2

    def _mixes(self) -> Iterator[Change]:
        """The model in several types; where none helps alone, the smallest of them with a shorter context."""
        found = mixes(self.header)
        for header, label in found:
            yield Change("mix", label, header, self._options, self._devices)
        for header, label in found[-1:]:
            for n_ctx in self._shorter():
                options = replace(self._options, n_ctx=n_ctx)
                yield Change("mix", f"{label}, with --ctx {n_ctx}", header, options, self._devices)

    def _n_ctx(self) -> int:
        return min((kv.n_ctx for kv in self._graph(self.header, self._options).kv_specs.values()), default=1)

    def _systems(self) -> Iterator[tuple[str, Callable[[], Sequence[FoundDevice]]]]:
        alone: set[str] = set()
        for name in shipped("systems"):
            ids = [device.id for device in load_system(name).devices]
            alone.update(ids if len(ids) == 1 else ())
            if name != self.choice.system:
                yield f"--system {name}", partial(self._devices, system=name, devices=())
        for name in shipped("devices"):
            device = f"model:{name}"
            if name != "null" and device not in alone and device not in self.choice.devices:
                yield f"--device {device}", partial(self._devices, system=None, devices=(device,))

    def _graph(self, header: Shape, options: GraphOptions) -> Graph:
        return api.graph_of(header, options, self.registry)

    def _first_of_each(self, changes: Iterator[Change]) -> Iterator[Outcome]:
        seen: set[str] = set()
        for change in changes:
            key = change.kind if change.kind != "both" else change.label.partition(" and ")[0]
            if key in seen and change.kind != "devices":
                continue
            outcome = self._try(change)
            if outcome:
                seen.add(key)
                yield outcome

    def _try(self, change: Change) -> Outcome | None:
        """None where the change does not help, or cannot be."""
        try:
            devices = change.devices()
            if change.kind in ("devices", "both"):
                graph = api.graph_on(devices, change.header, change.options, self.registry, self.kv_type)
                rules: Sequence[Rule] = ()
            else:
                graph, rules = self._graph(change.header, change.options), self.rules
            task = Task.of(graph, devices, self.request, rules)
            found = task.fit()
        except HetrunError:
            return None
        if isinstance(found, Misfit):
            return None
        return _outcome(change.kind, change.label, task.plan(found.placements))

    def _boards(self) -> Outcome | None:
        try:
            task = Task.of(self._graph(self.header, self._options), self._devices(), self.request, self.rules)
            boards = boards_for(task)
        except HetrunError:
            return None
        if boards is None or boards.n < 2 or boards.step_s["decode"] > (self.request.step_limit_s or float("inf")):
            return None
        plan = task.plan(replace(task.problem, limits={}).cheapest())
        label = f"{boards.n} such boards, cut by layers"
        return Outcome(
            "boards",
            label,
            task.request.n_seqs / boards.step_s["decode"],
            boards.step_s["prefill"] * task.request.n_prefill_steps,
            None,
            (*plan.basis, boards.basis),
        )


def _outcome(kind: Kind, label: str, plan: Plan) -> Outcome:
    decode_s = plan.predicted["decode"].total_s
    return Outcome(
        kind,
        label,
        1.0 / max(decode_s, 1e-12),
        plan.predicted["prefill"].total_s,
        sum(plan.memory.values()),
        plan.basis,
    )
