"""Instructions of the engine, still without addresses in its memories."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from hetrun_alveo_u280.definition import definition


class Place(enum.Enum):
    """What an instruction reads or writes in DDR."""

    VALUE = "value"  # rows that cross the segment's border, or wait there for the next that reads them
    VECTOR = "vector"  # a constant
    ROTATION = "rotation"  # a table


@dataclass(frozen=True)
class Rotation:
    """A table of cosines and sines, a row for each position.   frequencies: radians a position, one for each pair."""

    frequencies: tuple[float, ...]
    magnitude: float


@dataclass(frozen=True)
class Instruction:
    """One of hls/engine.h.

    op: its name there.   sources: ops of the segment that it does or helps to do, several where it joins them.
    numbers: its members, but for addresses.   hbm: the weight or KV cache that it reads.   ddr: what it reads or writes
    there, by the value's or constant's name.
    """

    op: str
    sources: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    hbm: str | None = None
    ddr: tuple[Place, str | Rotation] | None = None

    def encode(self, hbm: int, ddr: int) -> bytes:
        """Two beats of the program.   hbm: beat of every channel.   ddr: beat of DDR."""
        known = definition()
        members = {"op": known.numbers[f"OP_{self.op}"], **self.numbers, "hbm": hbm, "ddr": ddr}
        return known.records["Instruction"].pack(members)
