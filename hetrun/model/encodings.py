"""Tensors in encodings of our own, as `hetrun compress` writes them: described in metadata, stored as bytes.

Such a file is valid GGUF whose `general.architecture` is "hetrun", so that other programs refuse it by name instead of
misreading it. What it is to us stands in the keys below; docs/compression.md defines them and each encoding's bits.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hetrun.errors import ModelFileError
from hetrun.model.metadata import REFETCH, MetadataArray, MetadataValue, quoted
from hetrun.tensor import ENCODED_TYPES, Weight

CONTAINER = "hetrun"
"""`general.architecture` of a file with encoded tensors."""

VERSION = 1
"""Of the encodings and of the keys that describe them."""

ARCHITECTURE_KEY = "hetrun.architecture"
VERSION_KEY = "hetrun.encoding.version"
NAMES_KEY = "hetrun.encoding.tensors"
TYPES_KEY = "hetrun.encoding.types"
COLUMNS_KEY = "hetrun.encoding.columns"
OWN_KEYS = frozenset((ARCHITECTURE_KEY, VERSION_KEY, NAMES_KEY, TYPES_KEY, COLUMNS_KEY))

_AGAIN = "compress the model again, or update hetrun"


def is_container(metadata: Mapping[str, MetadataValue]) -> bool:
    return metadata.get("general.architecture") == CONTAINER


def decoded_weights(
    metadata: Mapping[str, MetadataValue], tensors: Mapping[str, Weight], path: str
) -> Mapping[str, Weight]:
    """The tensors as the model has them: those that are encoded in their type and shape, the others as they are.

    tensors: as the file stores them.   ModelFileError for another version, an unknown encoding or damaged metadata.
    """
    if not is_container(metadata):
        return tensors
    reader = _Reader(metadata, path)
    version = reader.number(VERSION_KEY)
    if version != VERSION:
        raise ModelFileError(
            f"was compressed in version {version} of the encodings, this hetrun reads {VERSION}",
            path=path,
            field=VERSION_KEY,
            remedy=_AGAIN if version < VERSION else "update hetrun, or compress the model again with this one",
        )
    names, types, columns = reader.strings(NAMES_KEY), reader.strings(TYPES_KEY), reader.numbers(COLUMNS_KEY)
    if not len(names) == len(types) == len(columns):
        raise reader.error(
            f"{len(names)} tensors, {len(types)} types and {len(columns)} widths of encoded tensors", NAMES_KEY
        )
    if len(set(names)) != len(names):
        raise reader.error("names a tensor twice", NAMES_KEY)
    found = dict(tensors)
    for name, type_name, n_columns in zip(names, types, columns, strict=True):
        found[name] = _decoded(reader, tensors.get(name), name, type_name, n_columns)
    return found


def architecture_of(metadata: Mapping[str, MetadataValue], path: str) -> str:
    """The architecture of a file with encoded tensors. ModelFileError where it names none."""
    return _Reader(metadata, path).string(ARCHITECTURE_KEY)


def _decoded(reader: _Reader, stored: Weight | None, name: str, type_name: str, n_columns: int) -> Weight:
    if stored is None:
        raise reader.error(f"names the tensor {quoted(name)}, which the file does not hold", NAMES_KEY)
    kind = ENCODED_TYPES.get(type_name)
    if kind is None:
        near = difflib.get_close_matches(type_name, ENCODED_TYPES, n=1)
        hint = f" (the nearest is {near[0]})" if near else ""
        raise reader.error(
            f"tensor {quoted(name)} has the unknown encoding {quoted(type_name)}{hint}; known are "
            f"{', '.join(ENCODED_TYPES)}",
            TYPES_KEY,
            remedy="update hetrun, or compress the model again with this one",
        )
    if stored.type.name != "I8" or len(stored.shape) != 2:
        raise reader.error(
            f"tensor {quoted(name)} in encoding {kind} must be a matrix of I8, not {stored.type} {list(stored.shape)}",
            TYPES_KEY,
        )
    if n_columns < 1 or n_columns % kind.block_size:
        raise reader.error(
            f"tensor {quoted(name)} has rows of {n_columns}, no multiple of {kind}'s {kind.block_size}", COLUMNS_KEY
        )
    if kind.row_bytes(n_columns) != stored.shape[1]:
        raise reader.error(
            f"tensor {quoted(name)} has {stored.shape[1]} bytes a row, but {n_columns} columns of {kind} take "
            f"{kind.row_bytes(n_columns)}",
            COLUMNS_KEY,
        )
    return Weight(name, kind, (stored.shape[0], n_columns))


class _Reader:
    """Typed access to the keys of this module."""

    def __init__(self, metadata: Mapping[str, MetadataValue], path: str) -> None:
        self._metadata = metadata
        self._path = path

    def error(self, message: str, field: str, remedy: str = REFETCH) -> ModelFileError:
        return ModelFileError(message, path=self._path, field=field, remedy=remedy)

    def _value(self, key: str) -> MetadataValue:
        value = self._metadata.get(key)
        if value is None:
            raise self.error(f"is a compressed file, but has no key {key}", key)
        return value

    def string(self, key: str) -> str:
        value = self._value(key)
        if not isinstance(value, str) or not value:
            raise self.error(f"{value!r} is no name", key)
        return value

    def number(self, key: str) -> int:
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{value!r} is no whole number", key)
        return value

    def strings(self, key: str) -> Sequence[str]:
        return self._array(key, "string", ("string",))

    def numbers(self, key: str) -> Sequence[int]:
        return self._array(key, "whole number", ("uint32", "uint64", "int32", "int64"))

    def _array(self, key: str, what: str, kinds: tuple[str, ...]) -> list[Any]:
        value = self._value(key)
        if not isinstance(value, MetadataArray) or value.element_kind not in kinds:
            raise self.error(f"is no list of {what}s", key)
        return value.to_list()
