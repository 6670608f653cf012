"""Drivers that cost what a test says and run nothing: for placement without hardware."""

from __future__ import annotations

from dataclasses import dataclass, field

from hetrun.device import API_VERSION, Cost, DeviceInfo, Link, MemorySpace, Unsupported, residents
from hetrun.plugins import FoundDevice


@dataclass
class FakeDriver:
    """seconds: of every op, or by op kind.   refuses: kinds, with a reason.   watts: while it runs an op."""

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    default_s: float = 1e-3
    refuses: dict[str, str] = field(default_factory=dict)
    watts: float | None = None
    api_version: int = API_VERSION

    def probe(self, config):
        return []

    def estimate(self, info, op, workload):
        if op.kind in self.refuses:
            return Unsupported(self.refuses[op.kind])
        seconds = self.seconds.get(op.kind, self.default_s) * workload.rows(op.output.rows)
        joules = None if self.watts is None else self.watts * seconds
        return Cost(seconds, "analytic:test", joules, residents(op, info.spaces[-1].name))


def fake(name, *, launch_s=0.0, capacity=1 << 40, link=None, watts=None, **options):
    """A device on host memory, or behind `link` where that is given."""
    space = MemorySpace("host", capacity) if link is None else MemorySpace(f"{name}:0/ram", capacity, 64, link, link)
    model = {} if watts is None else {"watts": watts}
    info = DeviceInfo(f"{name}:0", f"fake {name}", "hardware", (space,), Cost(launch_s, "analytic:test"), model)
    return FoundDevice(FakeDriver(name, watts=watts, **options), info, name)


def link(latency_s=0.0, bytes_per_s=1e9):
    return Link(latency_s, bytes_per_s, "analytic:test")
