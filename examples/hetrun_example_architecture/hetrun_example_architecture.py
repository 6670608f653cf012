"""Two architectures that hetrun does not ship, added by a hook."""

from __future__ import annotations

from collections.abc import Sequence

from hetrun.hookspecs import hookimpl
from hetrun.model.architectures import Architecture, DecoderBuilder, DecoderFamily
from hetrun.ops import Add, Value


class ParallelBuilder(DecoderBuilder):
    """Attention and feed-forward both read the block's input, and both are added to it."""

    def block(self, blk: str, layer: int, x: Value) -> Value:
        attention = self.attention(blk, layer, self.norm(f"{blk}.attn_norm", x, x.width))
        feed_forward = self.feed_forward(blk, layer, self.norm(f"{blk}.ffn_norm", x, x.width))
        both = self.emit(Add(f"{blk}.both", attention, feed_forward))
        return self.emit(Add(f"{blk}.add", both, x))


FAMILIES = (
    # Llama with the gate of Gemma: data alone.
    DecoderFamily("example-gelu", rope_layout="interleaved", activation="gelu"),
    # Blocks wired in another way: data, and one method.
    DecoderFamily("example-parallel", rope_layout="interleaved", builder=ParallelBuilder),
)


@hookimpl
def hetrun_architectures() -> Sequence[Architecture]:
    return [Architecture(family.name, family.build) for family in FAMILIES]
