"""What the reference compiles a segment to. Imports no NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hetrun.device import Segment

# KV format -> the format that holds its rounded values here
KV_STORED_AS = {"f32": "f32", "f16": "f16", "q8_0": "f32", "kv4": "f32", "kv4h": "f32"}
Q8_0_BLOCK = 32


@dataclass(frozen=True)
class ReferenceProgram:
    """A segment that the reference can run.   resident: bytes by (space, name)."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]
