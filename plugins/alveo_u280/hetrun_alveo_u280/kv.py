"""The KV cache in HBM, as hls/engine.h lays it out."""

from __future__ import annotations

from hetrun.ops import KvSpec
from hetrun_alveo_u280 import native
from hetrun_alveo_u280.definition import definition


def kv_beats(kv: KvSpec) -> int:
    """Beats that a cache takes in every channel."""
    return int(native.library().hetrun_u280_kv_beats(kv.n_slots, kv.n_cells, kv.n_heads_kv, kv.head_dim))


def prefix_pieces(kv: KvSpec, n_tokens: int) -> list[tuple[int, int]]:
    """(first beat of a slot's, beats) of every channel that hold its first n_tokens positions."""
    n_channels, block = definition().numbers["CHANNELS"], definition().numbers["KV_BLOCK"]
    apart = max(1, n_channels // kv.n_heads_kv)  # cells of a head from one in a channel to the next there
    n_regions = -(-kv.n_heads_kv * apart // n_channels)
    region_beats = kv_beats(kv) // kv.n_slots // n_regions
    n_blocks = -(-kv.n_cells // (apart * block))
    # A ring that has wrapped may hold them anywhere.
    held = -(-min(n_tokens, kv.n_cells) // (apart * block))
    return [(region * region_beats, region_beats // n_blocks * held) for region in range(n_regions)] if held else []
