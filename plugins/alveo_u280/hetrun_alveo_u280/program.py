"""What a segment becomes: instructions, and what they keep on the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hetrun.device import Segment
from hetrun.errors import DeviceError
from hetrun.ops import Attention, Bias, Embedding, MatMul, Op, RmsNorm, Value
from hetrun_alveo_u280.instruction import Instruction
from hetrun_alveo_u280.kv import kv_beats
from hetrun_alveo_u280.lower import lower
from hetrun_alveo_u280.refusal import refusal
from hetrun_alveo_u280.weights import hbm_bytes, weight_beats

HBM, DDR = "hbm", "ddr"


@dataclass(frozen=True)
class U280Program:
    """A segment and its instructions.   spilled: values for which the vector memory has no room from end to end."""

    segment: Segment
    resident: Mapping[tuple[str, str], int]
    instructions: tuple[Instruction, ...]
    spilled: tuple[Value, ...]

    @cached_property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """Ops that are timed together; of no op the launch and the program's end."""
        return tuple(dict.fromkeys(((), *(i.sources for i in self.instructions))))


def residents(op: Op, device_id: str) -> dict[tuple[str, str], int]:
    """Bytes that an op keeps on the card, by (space, name)."""
    if isinstance(op, (Embedding, MatMul)):
        return {(f"{device_id}/{HBM}", op.weight.name): hbm_bytes(weight_beats(op.weight))}
    if isinstance(op, Attention):
        return {(f"{device_id}/{HBM}", op.kv.name): hbm_bytes(kv_beats(op.kv))}
    if isinstance(op, (RmsNorm, Bias)):
        return {(f"{device_id}/{DDR}", op.weight.name): -(-op.weight.nbytes // 64) * 64}
    return {}


def compile_segment(segment: Segment, device_id: str) -> U280Program:
    """DeviceError for an op that the engine refuses."""
    resident: dict[tuple[str, str], int] = {}
    for op in segment.ops:
        if reason := refusal(op):
            raise DeviceError(f"{device_id}: {op.name}: {reason}")
        resident |= residents(op, device_id)
    instructions, spilled = lower(segment)
    return U280Program(segment, resident, instructions, spilled)
