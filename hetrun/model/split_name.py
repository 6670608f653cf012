"""Names of the parts of a split model: NAME-00001-of-00003.gguf, as llama.cpp's tools write and look for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


@dataclass(frozen=True)
class SplitName:
    """stem: what the names of all parts begin with.   number: of this part, from 1.   count: of parts."""

    stem: str
    number: int
    count: int

    @classmethod
    def parse(cls, name: str) -> SplitName | None:
        """None for a name of another form, without folders, and for numbers that cannot be."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        found = cls(match[1], int(match[2]), int(match[3]))
        return found if 1 <= found.number <= found.count else None

    def part(self, number: int) -> str:
        """The name of another part."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}.gguf"
