"""The engine's parameters, registers and formats, read from the header that the hardware is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

HEADER = "hetrun_pynq_z1/_sources/hls/engine.h"
_DEFINE = re.compile(r"^#define HETRUN_PYNQ_(\w+) (0x[0-9a-fA-F]+|\d+)\b", re.MULTILINE)


@dataclass(frozen=True)
class Definition:
    """Numbers of hls/engine.h, by their names without the prefix.

    registers: byte offset by name.   formats: number of each GGUF type that the engine reads.   statuses: the engine's
    errors by number.
    """

    numbers: Mapping[str, int]
    registers: Mapping[str, int]
    formats: Mapping[str, int]
    statuses: Mapping[int, str]

    @property
    def config_word(self) -> int:
        """What the register CONFIG holds."""
        n = self.numbers
        return n["LANES"] | n["PORTS"] << 8 | n["TOKENS"] << 16


def parse(header: str) -> Definition:
    """The definition that the text of a header gives."""
    numbers = {name: int(value, 0) for name, value in _DEFINE.findall(header)}

    def under(prefix: str) -> dict[str, int]:
        return {name[len(prefix) :]: value for name, value in numbers.items() if name.startswith(prefix)}

    statuses = {value: name for name, value in under("STATUS_").items()}
    return Definition(numbers, under("REG_"), under("FORMAT_"), statuses)


@cache
def definition() -> Definition:
    """Of the header that ships with hetrun. HetrunError where it is not installed."""
    from hetrun.resources import resource_path

    return parse(resource_path(HEADER).read_text())


def super_blocks(type_name: str) -> bool:
    """Whether a format of the engine has super-blocks of 256, else blocks of 32."""
    return type_name.endswith("_K")
