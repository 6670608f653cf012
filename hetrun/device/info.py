"""What a device is, where its memory lies, and what its work costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hetrun.ops import KvSpec, Op, Workload

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
