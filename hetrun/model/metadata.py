"""Metadata of a GGUF file: typed values behind bounds-checked reads; arrays stay in the file until they are asked for.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias, Union, overload

from hetrun.errors import ModelFileError

MAX_ARRAY_DEPTH = 4  # an array of arrays has depth 2; llama.cpp accepts 1 and no known model needs more than 2
# Bounds on what no honest file comes near, so that a file made of nothing but tiny items costs seconds at most.
MAX_ENTRIES = 1 << 16  # models have 20 to 100
MAX_ITEMS = 1 << 23  # strings in all arrays of a file; the largest vocabularies have about a million, merges included
ITEMS_PER_ARRAY = 16  # walking over an array inside an array takes as long as over 16 strings
MAX_NAME_BYTES = 65535  # GGUF specification: a key is at most 2**16 - 1 bytes long
REFETCH = "the file is damaged or its download was cut short: pull or copy it again"

_KINDS = (  # index: the number of the kind in the file
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "float32",
    "bool",
    "string",
    "array",
    "uint64",
    "int64",
    "float64",
)
_CODES = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "float32": "f",
    "bool": "?",  # any byte but 0 is true, as ggml reads it
    "uint64": "Q",
    "int64": "q",
    "float64": "d",
}
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}
_U32 = _SCALARS["uint32"]
_U64 = _SCALARS["uint64"]
# The fewest bytes that one value takes: a string is at least its length, an array its element kind and its length.
_LEAST_BYTES = {kind: codec.size for kind, codec in _SCALARS.items()} | {"string": 8, "array": 12}
_LEAST_ENTRY_BYTES = 8 + 1 + 4 + 1  # length of the key, the key, number of the kind, a one-byte value
_CHUNK = 4096  # numbers decoded at a time while iterating

MetadataValue: TypeAlias = Union[bool, int, float, str, "MetadataArray"]


def quoted(name: str) -> str:
    """A name from a file on one line and of bounded length, for messages."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Cursor:
    """A position in the mapped file. Reads move it forward; each one is checked against the file's end first.

    path: what errors call the file.   offset: bytes from the start of the file.   items_left: of MAX_ITEMS.
    """

    __slots__ = ("data", "items_left", "offset", "path", "size_bytes")

    def __init__(self, data: mmap.mmap, path: str, offset: int = 0) -> None:
        self.data = data
        self.path = path
        self.offset = offset
        self.size_bytes = len(data)
        self.items_left = MAX_ITEMS

    def error(
        self, message: str, field: str, *, offset: int | None = None, remedy: str | None = REFETCH
    ) -> ModelFileError:
        """The error to raise for `field`, at the cursor or at `offset`."""
        at = self.offset if offset is None else offset
        return ModelFileError(message, path=self.path, offset=at, field=field, remedy=remedy)

    def require(self, n_bytes: int, field: str) -> None:
        """ModelFileError unless `n_bytes` are left between the cursor and the end of the file."""
        left = self.size_bytes - self.offset
        if n_bytes > left:
            raise self.error(f"{n_bytes} bytes wanted, {left} left in the file", field)

    def u32(self, field: str) -> int:
        self.require(4, field)
        (value,) = _U32.unpack_from(self.data, self.offset)
        self.offset += 4
        return int(value)

    def u64(self, field: str) -> int:
        self.require(8, field)
        (value,) = _U64.unpack_from(self.data, self.offset)
        self.offset += 8
        return int(value)

    def count(self, field: str, least_bytes: int, most: int | None = None) -> int:
        """A number of items, `least_bytes` or more each: ModelFileError, before anything is built, if it cannot be."""
        at = self.offset
        count = self.u64(field)
        if most is not None and count > most:
            raise self.error(f"{count} items, {most} is the limit", field, offset=at)
        left = self.size_bytes - self.offset
        if count * least_bytes > left:
            raise self.error(
                f"{count} items of at least {least_bytes} bytes each, but {left} bytes are left", field, offset=at
            )
        return count

    def string(self, field: str) -> bytes:
        n_bytes = self.u64(f"length of {field}")
        self.require(n_bytes, field)
        start = self.offset
        self.offset += n_bytes
        return self.data[start : self.offset]

    def name(self, field: str) -> str:
        """A key or a tensor's name: valid UTF-8 of 1 to 65535 bytes (ModelFileError otherwise)."""
        at = self.offset
        n_bytes = self.u64(f"length of {field}")
        if not 1 <= n_bytes <= MAX_NAME_BYTES:
            raise self.error(f"a name of {n_bytes} bytes, 1 to {MAX_NAME_BYTES} are allowed", field, offset=at)
        self.offset = at
        name = self.string(field)
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"name {name[:40]!r} is not UTF-8", field, offset=at + 8 + error.start) from None

    def kind(self, field: str) -> str:
        at = self.offset
        number = self.u32(field)
        if number >= len(_KINDS):
            raise self.error(
                f"unknown value type {number}; known are {', '.join(f'{i} {k}' for i, k in enumerate(_KINDS))}",
                field,
                offset=at,
            )
        return _KINDS[number]

    def skip_strings(self, count: int, field: str) -> array[int]:
        """Walk over `count` strings. Gives the offset of each one's bytes, and 8 past the end of the last."""
        starts = array("Q")
        append, unpack, data, size, offset = starts.append, _U64.unpack_from, self.data, self.size_bytes, self.offset
        for i in range(count):  # 0.1 us an item: big vocabularies have 300k tokens and 500k merges
            if offset + 8 > size:
                raise self.error("the file ends before this string", f"{field}[{i}]", offset=offset)
            (length,) = unpack(data, offset)
            offset += 8
            append(offset)
            offset += length
            if offset > size:
                raise self.error(
                    f"a string of {length} bytes ends {offset - size} bytes beyond the end of the file",
                    f"{field}[{i}]",
                    offset=offset - length - 8,
                )
        append(offset + 8)
        self.offset = offset
        return starts


class MetadataArray(Sequence[MetadataValue]):
    """An array of a file's metadata, decoded from the mapped file when it is read; it stays valid after `close`.

    element_kind: "uint8" to "uint64", "int8" to "int64", "float32", "float64", "bool", "string", or "array" (the
    elements are MetadataArrays).
    Strings are decoded as UTF-8 with U+FFFD in place of what is invalid, so that each one can be printed and encoded
    again; two tokens may therefore decode to the same string. `raw` gives the exact bytes.
    """

    __slots__ = ("_count", "_cursor", "_start", "_starts", "element_kind")

    def __init__(self, cursor: Cursor, element_kind: str, count: int, start: int, starts: array[int] | None) -> None:
        """Made by `read_array`. start: offset of the elements. starts: offset of each one, None for numbers."""
        self.element_kind = element_kind
        self._cursor = cursor
        self._count = count
        self._start = start
        self._starts = starts

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> MetadataValue: ...
    @overload
    def __getitem__(self, index: slice) -> list[MetadataValue]: ...
    def __getitem__(self, index: int | slice) -> MetadataValue | list[MetadataValue]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        i = self._position(index)
        if self.element_kind == "string":
            return self._bytes(i).decode("utf-8", "replace")
        if self._starts is not None:
            return read_array(Cursor(self._cursor.data, self._cursor.path, self._starts[i]), f"[{i}]")
        codec = _SCALARS[self.element_kind]
        value: MetadataValue = codec.unpack_from(self._cursor.data, self._start + i * codec.size)[0]
        return value

    def __iter__(self) -> Iterator[MetadataValue]:
        if self.element_kind == "string":
            data = self._cursor.data
            return (data[start:end].decode("utf-8", "replace") for start, end in self._spans())
        if self._starts is not None:
            return (self[i] for i in range(self._count))
        return self._numbers()

    def to_list(self) -> list[Any]:
        """All elements: numbers, strings, or lists of them for nested arrays."""
        if self.element_kind == "string":  # a comprehension, not the generator: 0.4 us a string
            data = self._cursor.data
            return [data[start:end].decode("utf-8", "replace") for start, end in self._spans()]
        return [item.to_list() if isinstance(item, MetadataArray) else item for item in self]

    def raw(self, index: int) -> bytes:
        """The bytes of one string, valid UTF-8 or not. TypeError where the elements are no strings."""
        if self.element_kind != "string":
            raise TypeError(f"raw bytes are for arrays of strings, this one holds {self.element_kind}")
        return self._bytes(self._position(index))

    def __repr__(self) -> str:
        return f"<MetadataArray of {self._count} {self.element_kind}>"

    def _position(self, index: int) -> int:
        i = index + self._count if index < 0 else index
        if not 0 <= i < self._count:
            raise IndexError(f"index {index} in an array of {self._count}")
        return i

    def _bytes(self, i: int) -> bytes:
        assert self._starts is not None
        return self._cursor.data[self._starts[i] : self._starts[i + 1] - 8]

    def _spans(self) -> Iterator[tuple[int, int]]:
        """(start, end) of each string's bytes in the file."""
        assert self._starts is not None
        ends = (start - 8 for start in islice(self._starts, 1, None))
        return zip(self._starts, ends, strict=False)

    def _numbers(self) -> Iterator[MetadataValue]:
        code, size = _CODES[self.element_kind], _SCALARS[self.element_kind].size
        for first in range(0, self._count, _CHUNK):
            n = min(_CHUNK, self._count - first)
            yield from struct.unpack_from(f"<{n}{code}", self._cursor.data, self._start + first * size)


def read_array(cursor: Cursor, field: str, depth: int = 1) -> MetadataArray:
    """The array at the cursor, which moves behind it. Every element's bounds are checked, none is decoded."""
    if depth > MAX_ARRAY_DEPTH:
        raise cursor.error(f"arrays nested more than {MAX_ARRAY_DEPTH} deep", field)
    kind = cursor.kind(f"element type of {field}")
    weight = {"string": 1, "array": ITEMS_PER_ARRAY}.get(kind, 0)
    most = cursor.items_left // weight if weight else None
    count = cursor.count(f"element count of {field}", _LEAST_BYTES[kind], most)
    cursor.items_left -= count * weight
    start = cursor.offset
    starts: array[int] | None = None
    if kind == "string":
        starts = cursor.skip_strings(count, field)
    elif kind == "array":
        starts = array("Q")
        for i in range(count):
            starts.append(cursor.offset)
            read_array(cursor, f"{field}[{i}]", depth + 1)
    else:
        cursor.offset += count * _LEAST_BYTES[kind]
    return MetadataArray(cursor, kind, count, start, starts)


def read_value(cursor: Cursor, field: str) -> MetadataValue:
    """The typed value at the cursor, which moves behind it."""
    kind = cursor.kind(f"type of {field}")
    if kind == "array":
        return read_array(cursor, field)
    if kind == "string":
        return cursor.string(field).decode("utf-8", "replace")
    codec = _SCALARS[kind]
    cursor.require(codec.size, field)
    value: MetadataValue = codec.unpack_from(cursor.data, cursor.offset)[0]
    cursor.offset += codec.size
    return value


def count_entries(cursor: Cursor) -> int:
    """The number of metadata entries, from the file's header."""
    return cursor.count("metadata_kv_count", _LEAST_ENTRY_BYTES, MAX_ENTRIES)


def read_metadata(cursor: Cursor, n_entries: int) -> tuple[dict[str, MetadataValue], dict[str, int]]:
    """The metadata entries at the cursor in file order, and the offset of each one in the file."""
    metadata: dict[str, MetadataValue] = {}
    offsets: dict[str, int] = {}
    for i in range(n_entries):
        at = cursor.offset
        key = cursor.name(f"key {i} of {n_entries}")
        if key in metadata:
            raise cursor.error(f"the key {quoted(key)} stands in the file twice", f"key {i} of {n_entries}", offset=at)
        metadata[key] = read_value(cursor, quoted(key))
        offsets[key] = at
    return metadata, offsets
