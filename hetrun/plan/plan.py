"""A plan: which device runs each op in each phase, with the cost of every candidate. Serialisable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from hetrun.errors import PlanError

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

FORMAT = 1


@dataclass(frozen=True)
class Candidate:
    """A device's answer for one op: seconds, joules where it tells them, and basis, or the reason why it refuses."""

    device: str
    seconds: float | None = None
    basis: str | None = None
    refusal: str | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Assignment:
    """One op's device, why, and what the others would have cost."""

    op: str
    device: str
    reason: str
    candidates: tuple[Candidate, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        return next((c for c in self.candidates if c.device == self.device), None)

    @property
    def runner_up(self) -> Candidate | None:
        """The cheapest other device that could run the op."""
        others = [c for c in self.candidates if c.device != self.device and c.seconds is not None]
        return min(others, key=lambda c: c.seconds or 0.0, default=None)


@dataclass(frozen=True)
class PhaseCost:
    """Predicted seconds of one step: inside ops, launches of segments, copies between devices; and its joules, where
    every device that has a part in it tells them.
    """

    ops_s: float
    launch_s: float
    copy_s: float
    n_segments: int
    n_copies: int = 0
    joules: float | None = None

    @property
    def total_s(self) -> float:
        return self.ops_s + self.launch_s + self.copy_s


@dataclass(frozen=True)
class Plan:
    """model: fingerprint of the graph.   predicted: cost of one step of each phase, where the plan was made by cost.

    memory: bytes resident, by space.   basis: where the costs come from.
    gap: how far a better plan may lie below this one, as a share: 0 is proven best, more where memory is tight.
    """

    model: str
    devices: tuple[str, ...]
    prefill: tuple[Assignment, ...]
    decode: tuple[Assignment, ...]
    predicted: Mapping[Phase, PhaseCost]
    memory: Mapping[str, int]
    basis: tuple[str, ...] = ()
    gap: float = 0.0

    def assignments(self, phase: Phase) -> tuple[Assignment, ...]:
        return self.prefill if phase == "prefill" else self.decode

    @cached_property
    def used_devices(self) -> tuple[str, ...]:
        """Devices that run at least one op, in the order of `devices`; then those that an edit brought in."""
        used = dict.fromkeys(a.device for a in (*self.prefill, *self.decode))
        return (*(d for d in self.devices if d in used), *(d for d in used if d not in self.devices))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, text: str, source: str = "the plan") -> Plan:
        """PlanError where the text is not a plan of this format."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise PlanError(
                    f"{source}: plan format {data['format']}, expected {FORMAT}", remedy="make the plan anew"
                )
            return cls(
                model=str(data["model"]),
                devices=tuple(map(str, data["devices"])),
                prefill=tuple(map(_assignment, data["prefill"])),
                decode=tuple(map(_assignment, data["decode"])),
                predicted={phase: PhaseCost(**data["predicted"][phase]) for phase in PHASES},
                memory={str(k): int(v) for k, v in data["memory"].items()},
                basis=tuple(map(str, data["basis"])),
                gap=float(data["gap"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(
                f"{source}: not a saved plan ({type(error).__name__}: {error})",
                remedy="make it with hetrun plan --save",
            ) from error


def _assignment(data: Mapping[str, Any]) -> Assignment:
    candidates = tuple(Candidate(**c) for c in data["candidates"])
    return Assignment(str(data["op"]), str(data["device"]), str(data["reason"]), candidates)
