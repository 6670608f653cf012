"""Division of a device's memory that the host only knows by addresses."""

from __future__ import annotations

from bisect import insort


class FreeList:
    """First fit over a range of addresses, in bytes or any other unit.   alignment: of every piece's length."""

    def __init__(self, begin: int, end: int, alignment: int = 64) -> None:
        self._free = [(begin, end)]  # in order, none adjacent
        self._alignment = alignment

    @property
    def n_free(self) -> int:
        return sum(end - begin for begin, end in self._free)

    def take(self, n: int) -> int | None:
        """The first address of a piece, or None where none is large enough."""
        n = self._rounded(n)
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= n:
                rest = [(begin + n, end)] if end - begin > n else []
                self._free[i : i + 1] = rest
                return begin
        return None

    def give_back(self, begin: int, n: int) -> None:
        insort(self._free, (begin, begin + self._rounded(n)))
        joined: list[tuple[int, int]] = []
        for piece in self._free:
            if joined and joined[-1][1] == piece[0]:
                joined[-1] = (joined[-1][0], piece[1])
            else:
                joined.append(piece)
        self._free = joined

    def _rounded(self, n: int) -> int:
        return -(-n // self._alignment) * self._alignment
