"""The engine's vector memory while a segment is compiled: which value stands where, and which gives way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from hetrun.free_list import FreeList
from hetrun.ops import Value

WORD_FLOATS = 64  # of the vector memory: values begin at a multiple


def floats_of(values: Sequence[Value]) -> int:
    """Floats of a row that the values take, each once."""
    return sum(-(-v.width // WORD_FLOATS) * WORD_FLOATS for v in {v.name: v for v in values}.values())


class VectorMemory:
    """Values of a row, by the offsets of their first floats."""

    def __init__(
        self,
        n_floats: int,
        uses: Mapping[str, Sequence[int]],
        load: Callable[[Value], None],
        store: Callable[[Value], None],
    ) -> None:
        """uses: numbers of the ops that read each value.   load: called when a value has got its place and must come
        from DDR.   store: called before a value loses its place.
        """
        self._free = FreeList(0, n_floats, WORD_FLOATS)
        self._uses = uses
        self._load, self._store = load, store
        self._values: dict[str, Value] = {}
        self._at: dict[str, int] = {}

    def offset(self, value: Value) -> int:
        return self._at[value.name]

    def bring(self, operands: Sequence[Value], result: Value | None, op: int) -> None:
        """Sees that an op's operands are here, and that its result has a place.

        op: its number. All of them together fit: `floats_of` is at most the memory's.
        """
        if not self._bring(operands, result, op):
            # What must stay is scattered so that the rest has no room: all goes, and comes back side by side.
            for value in list(self._values.values()):
                self._evict(value)
            placed = self._bring(operands, result, op)
            assert placed, f"op {op} does not fit"

    def release(self, op: int) -> None:
        """Frees the values that no op behind this one reads."""
        for value in list(self._values.values()):
            if max(self._uses.get(value.name, ()), default=-1) <= op:
                self._give_back(value)

    def _bring(self, operands: Sequence[Value], result: Value | None, op: int) -> bool:
        wanted = [*operands, *([result] if result else [])]
        kept = {value.name for value in wanted}
        for value in wanted:
            if value.name in self._at:
                continue
            if not self._place(value, kept, op):
                return False
            if value is not result:
                self._load(value)
        return True

    def _place(self, value: Value, kept: Set[str], op: int) -> bool:
        """kept: names of values that do not give way."""
        while (offset := self._free.take(value.width)) is None:
            rivals = [v for name, v in self._values.items() if name not in kept]
            if not rivals:
                return False
            self._evict(max(rivals, key=lambda v: min(use for use in self._uses[v.name] if use >= op)))
        self._at[value.name] = offset
        self._values[value.name] = value
        return True

    def _evict(self, value: Value) -> None:
        self._store(value)
        self._give_back(value)

    def _give_back(self, value: Value) -> None:
        del self._values[value.name]
        self._free.give_back(self._at.pop(value.name), value.width)
