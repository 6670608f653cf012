"""Pins and forbids: what the user says about where ops run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, TypeVar

from hetrun.device import Unsupported
from hetrun.errors import PlanError, UsageError
from hetrun.graph.graph import Graph
from hetrun.ops import Op
from hetrun.plan.cost import CostTable
from hetrun.plan.plan import PHASES, Phase
from hetrun.plugins import FoundDevice, select_device

R = TypeVar("R", bound="Rule")


@dataclass(frozen=True)
class Rule:
    """Something about the ops whose names match `pattern` (shell-style), and `device`."""

    pattern: str
    device: str

    option: ClassVar[str]

    @classmethod
    def parse(cls: type[R], text: str) -> R:
        """UsageError where the text is not PATTERN=DEVICE."""
        pattern, sep, device = text.partition("=")
        if not (sep and pattern and device):
            raise UsageError(
                f"{cls.option.removeprefix('--')} {text!r} is not PATTERN=DEVICE",
                remedy=f"for example {cls.option} 'blk.*.ffn_*=reference'",
            )
        return cls(pattern, device)

    def __str__(self) -> str:
        return f"{self.option} '{self.pattern}={self.device}'"


@dataclass(frozen=True)
class Pin(Rule):
    """The ops run on the device. A later pin wins over an earlier one."""

    option: ClassVar[str] = "--pin"


@dataclass(frozen=True)
class Forbid(Rule):
    """The ops do not run on the device."""

    option: ClassVar[str] = "--forbid"


@dataclass(frozen=True)
class OpRules:
    """What the rules say of one op.   forbidden: rules by device."""

    pin: Pin | None
    pinned: str | None
    forbidden: Mapping[str, Forbid]


def resolve(graph: Graph, devices: Sequence[FoundDevice], rules: Iterable[Rule]) -> list[OpRules]:
    """The rules of each op. PlanError for a rule that matches no op, DeviceError for one of an unknown device."""
    pins: list[tuple[Pin, str] | None] = [None] * len(graph.ops)
    forbidden: list[dict[str, Forbid]] = [{} for _ in graph.ops]
    for rule in rules:
        device = select_device(devices, rule.device).info.id
        matches = [i for i, op in enumerate(graph.ops) if fnmatchcase(op.name, rule.pattern)]
        if not matches:
            names = [op.name for op in graph.ops]
            near = difflib.get_close_matches(rule.pattern, names, n=3, cutoff=0.4)
            raise PlanError(
                f"{rule.option.removeprefix('--')} {rule.pattern!r} matches no op",
                remedy=f'near: {", ".join(near or names[:3])}; "hetrun plan --json" lists all',
            )
        for i in matches:
            if isinstance(rule, Pin):
                pins[i] = (rule, device)
            elif isinstance(rule, Forbid):
                forbidden[i][device] = rule
    return [
        OpRules(pin[0], pin[1], forbids) if pin else OpRules(None, None, forbids)
        for pin, forbids in zip(pins, forbidden, strict=True)
    ]


def allowed_devices(tables: Mapping[Phase, CostTable], rules: Sequence[OpRules]) -> list[list[str]]:
    """Devices that accept each op in both phases, within its rules. PlanError where none is left."""
    return [_allowed(tables, op, i, rules[i]) for i, op in enumerate(tables["decode"].graph.ops)]


def _allowed(tables: Mapping[Phase, CostTable], op: Op, index: int, rules: OpRules) -> list[str]:
    refusals: dict[str, str] = {}
    for phase in PHASES:
        for device, answer in tables[phase].answers[index].items():
            if isinstance(answer, Unsupported):
                refusals.setdefault(device, answer.reason)
    if rules.pinned and rules.pinned in refusals:
        raise PlanError(
            f"{op.name} is pinned to {rules.pinned}, which refuses it: {refusals[rules.pinned]}",
            remedy=f"narrow or drop {rules.pin}",
        )
    if rules.pinned and rules.pinned in rules.forbidden:
        raise PlanError(
            f"{op.name} is pinned to {rules.pinned} by {rules.pin}, and {rules.forbidden[rules.pinned]} forbids that",
            remedy="narrow or drop one of them",
        )
    accepted = [d.id for d in tables["decode"].devices if d.id not in refusals]
    left = [d for d in accepted if d not in rules.forbidden]
    if not left:
        reasons = refusals | {d: f"forbidden by {rules.forbidden[d]}" for d in accepted}
        listed = "; ".join(f"{d}: {r}" for d, r in reasons.items())
        remedy = "add a device that does, such as --device cpu"
        if accepted:
            remedy = f"narrow or drop {rules.forbidden[accepted[0]]}, or {remedy}"
        raise PlanError(f"no device runs {op.name} ({op.kind}): {listed}", remedy=remedy)
    return [rules.pinned] if rules.pinned else left
