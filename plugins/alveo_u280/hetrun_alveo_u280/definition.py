"""The engine's parameters, instructions and records, read from the header that the hardware is made from."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

HEADER = "hetrun_alveo_u280/_sources/hls/engine.h"
_DEFINE = re.compile(r"^#define HETRUN_U280_(\w+) (0x[0-9a-fA-F]+|\d+)\b", re.MULTILINE)
_MEMBER = re.compile(r"^\s*(uint32_t|int32_t|uint64_t|float) ([\w, \[\]]+);", re.MULTILINE)
_CODES = {"uint32_t": "I", "int32_t": "i", "uint64_t": "Q", "float": "f"}


@dataclass(frozen=True)
class Record:
    """A struct of the header.   fields: its members in order, arrays left out: those are reserved."""

    fields: tuple[str, ...]
    layout: struct.Struct

    def pack(self, values: Mapping[str, float]) -> bytes:
        """Members that are not given are zero. KeyError for one that the struct does not have."""
        if unknown := values.keys() - set(self.fields):
            raise KeyError(f"no member {', '.join(sorted(unknown))}")
        return self.layout.pack(*(values.get(name, 0) for name in self.fields))

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, int]:
        return dict(zip(self.fields, self.layout.unpack(data), strict=True))


@dataclass(frozen=True)
class Definition:
    """Of hls/engine.h.   numbers: its #defines by their names without the prefix.   records: its structs by name.

    statuses: the engine's errors by number.
    """

    numbers: Mapping[str, int]
    records: Mapping[str, Record]
    statuses: Mapping[int, str]

    def under(self, prefix: str) -> dict[str, int]:
        """The numbers whose names begin so, by the rest of their names."""
        return {name[len(prefix) :]: n for name, n in self.numbers.items() if name.startswith(prefix)}


def parse(header: str) -> Definition:
    """The definition that the text of a header gives."""
    numbers = {name: int(value, 0) for name, value in _DEFINE.findall(header)}
    records = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", header, re.MULTILINE | re.DOTALL):
        records[name] = _record(body)
    statuses = {n: name[len("STATUS_") :] for name, n in numbers.items() if name.startswith("STATUS_")}
    return Definition(numbers, records, statuses)


def _record(body: str) -> Record:
    fields: list[str] = []
    layout = "<"
    for kind, names in _MEMBER.findall(body):
        for name in names.split(", "):
            array = re.fullmatch(r"\w+\[(\d+)\]", name)
            if array:
                layout += f"{struct.calcsize(_CODES[kind]) * int(array[1])}x"
            else:
                fields.append(name)
                layout += _CODES[kind]
    return Record(tuple(fields), struct.Struct(layout))


@cache
def definition() -> Definition:
    """Of the header that ships with hetrun. HetrunError where it is not installed."""
    from hetrun.resources import resource_path

    return parse(resource_path(HEADER).read_text())
