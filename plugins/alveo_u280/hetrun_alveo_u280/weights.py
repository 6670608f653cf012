"""Weights as the engine reads them: their formats, what they take of HBM, and their packing."""

from __future__ import annotations

from functools import cache

from hetrun.native import address_of
from hetrun.tensor import ALL_TYPES, TensorType, Weight
from hetrun_alveo_u280 import native
from hetrun_alveo_u280.card import BEAT_BYTES, Card
from hetrun_alveo_u280.definition import definition

# A piece of HBM begins at a multiple of 4 KiB, which no burst crosses.
ALIGNMENT_BEATS = 64


@cache
def format_of(tensor_type: TensorType) -> int | None:
    """The engine's format of a type of weights, by its number; None where it has none."""
    number = int(native.library().hetrun_u280_format(tensor_type.id))
    return None if number == native.NO_FORMAT else number


def types() -> list[str]:
    """Names of the types that the engine reads."""
    return [name for name, tensor_type in ALL_TYPES.items() if format_of(tensor_type) is not None]


def weight_beats(weight: Weight) -> int:
    """Beats that a matrix takes in every channel; 0 for one that the engine does not take."""
    return int(native.library().hetrun_u280_channel_beats(weight.type.id, *weight.shape))


def hbm_bytes(channel_beats: int) -> int:
    """What so many beats of every channel take, with what aligns them."""
    pieces = -(-channel_beats // ALIGNMENT_BEATS)
    return pieces * ALIGNMENT_BEATS * BEAT_BYTES * definition().numbers["CHANNELS"]


def write_weight(card: Card, beat: int, weight: Weight, blocks: memoryview) -> None:
    """Packs a matrix into every channel, from `beat` on."""
    source = address_of(blocks)
    beats = memoryview(bytearray(weight_beats(weight) * BEAT_BYTES))
    for channel in range(definition().numbers["CHANNELS"]):
        native.library().hetrun_u280_pack(weight.type.id, *weight.shape, source, channel, address_of(beats))
        card.hbm_write(channel, beat, beats)
