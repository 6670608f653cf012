"""What a session did, step by step, for reports. Recording is off unless asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from hetrun.device import RunEvent
from hetrun.plan.plan import Phase


@dataclass(frozen=True)
class StepRecord:
    """One step: wall seconds as the host measured them, and each device's own events."""

    phase: Phase
    n_tokens: int
    n_outputs: int
    wall_s: float
    n_segments: int
    n_copies: int
    copied_bytes: int
    events: tuple[tuple[str, RunEvent], ...]


@dataclass
class Trace:
    """Steps in order. With `enabled` off nothing is kept."""

    enabled: bool = False
    steps: list[StepRecord] = field(default_factory=list)

    def device_seconds(self) -> dict[str, float]:
        """Seconds by device, as the devices reported them."""
        seconds: dict[str, float] = {}
        for step in self.steps:
            for device, event in step.events:
                seconds[device] = seconds.get(device, 0.0) + event.seconds
        return seconds
