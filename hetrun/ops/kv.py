"""The KV cache of an attention op: its size, and which keys a query sees."""

from __future__ import annotations

from dataclasses import dataclass

from hetrun.errors import GraphError

# Bits of an element, those of its block's scale among them. kv4 and kv4h have 32 more for each head and token.
KV_FORMAT_BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "kv4": 4.0, "kv4h": 4.0}
_KV_HEAD_BITS = {"kv4": 32, "kv4h": 32}


@dataclass(frozen=True)
class KvSpec:
    """The KV cache of one attention op: what it holds and which keys a query sees.

    Key j is visible from query i iff j <= i and (window == 0 or j < sink or j > i - window), in absolute positions.
    n_slots: sequences.   n_ctx: tokens a sequence may reach.   window: 0 means full attention.
    slack: cells beyond sink + window, at least max(max_tokens, max_rollback) - 1, so that a chunk never overwrites a
    key that one of its queries still sees, and a rollback finds its keys.
    format: how each head's key and value is rounded when it is stored; `hetrun.reference.kv` has the meaning.
    """

    name: str
    n_slots: int
    n_ctx: int
    n_heads_kv: int
    head_dim: int
    format: str = "f16"
    sink: int = 0
    window: int = 0
    slack: int = 0

    def __post_init__(self) -> None:
        for field in ("n_slots", "n_ctx", "n_heads_kv", "head_dim"):
            if getattr(self, field) < 1:
                raise GraphError(f"{self.name}: {field} must be at least 1, not {getattr(self, field)}")
        if min(self.sink, self.window, self.slack) < 0:
            raise GraphError(f"{self.name}: sink, window and slack must not be negative")

    @property
    def format_refusal(self) -> str | None:
        """Why heads of this size cannot be stored in this format, or None."""
        n = self.head_dim
        if self.format == "q8_0" and n % 32:
            return f"KV format q8_0 needs heads of a multiple of 32, not {n}"
        if self.format == "kv4" and n % 2:
            return f"KV format kv4 needs heads of an even size, not {n}"
        if self.format == "kv4h" and (n < 2 or n & (n - 1)):
            return f"KV format kv4h needs heads of a power of two, not {n}"
        return None

    @property
    def width(self) -> int:
        """Elements of a token's key (and of its value)."""
        return self.n_heads_kv * self.head_dim

    @property
    def n_cells(self) -> int:
        """Tokens that a slot stores: all of the context, or sink + window + slack where that is less."""
        if self.window == 0:
            return self.n_ctx
        return min(self.n_ctx, self.sink + self.window + self.slack)

    def cell(self, position: int) -> int:
        """Where a slot keeps that position: sinks are pinned, the rest is a ring."""
        if self.n_cells == self.n_ctx or position < self.sink:
            return position
        return self.sink + (position - self.sink) % (self.n_cells - self.sink)

    def n_visible(self, position: int) -> int:
        """Number of keys that the query at `position` sees, itself included."""
        if self.window == 0:
            return position + 1
        return min(position + 1, self.sink + self.window)

    def token_bytes(self) -> int:
        """Bytes of one token's key and value."""
        head_bits = self.head_dim * KV_FORMAT_BITS.get(self.format, 16.0) + _KV_HEAD_BITS.get(self.format, 0)
        return int(2 * self.n_heads_kv * head_bits / 8)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache, all slots."""
        return self.n_slots * self.n_cells * self.token_bytes()
