"""Writes a GGUF file: entries of another one as they stand there, entries of ours, and tensors one after the other.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO

from hetrun.model.encodings import (
    ARCHITECTURE_KEY,
    COLUMNS_KEY,
    CONTAINER,
    NAMES_KEY,
    OWN_KEYS,
    TYPES_KEY,
    VERSION,
    VERSION_KEY,
)
from hetrun.model.gguf_file import ModelFile
from hetrun.tensor import ENCODED_TYPES, TENSOR_TYPES, TensorType, Weight

Entry = str | int | list[str] | list[int]
_UINT32, _STRING, _ARRAY = 4, 8, 9

# What the new file says otherwise: its types are others, and it is whole.
_LEFT_OUT = frozenset(("general.architecture", "general.file_type", "split.count", "split.no", "split.tensors.count"))


def stored_as(weight: Weight, kind: TensorType) -> tuple[TensorType, tuple[int, ...]]:
    """Type and shape of a tensor in the file: rows of bytes for our own encodings."""
    if kind.name not in ENCODED_TYPES:
        return kind, weight.shape
    return TENSOR_TYPES["I8"], (weight.shape[0], kind.row_bytes(weight.shape[1]))


def metadata_of(source: ModelFile, tensors: Mapping[str, tuple[Weight, TensorType]], notes: Mapping[str, str]) -> bytes:
    """All entries: the source's, and what describes the encoded tensors; returns their number and bytes.

    notes: how the file was made, under keys of ours.
    """
    encoded = {name: (w, kind) for name, (w, kind) in tensors.items() if kind.name in ENCODED_TYPES}
    own: dict[str, Entry] = {"general.architecture": CONTAINER if encoded else source.architecture}
    if encoded:
        own |= {
            ARCHITECTURE_KEY: source.architecture,
            VERSION_KEY: VERSION,
            NAMES_KEY: list(encoded),
            TYPES_KEY: [kind.name for _, kind in encoded.values()],
            COLUMNS_KEY: [w.shape[1] for w, _ in encoded.values()],
        }
    own |= notes
    dropped = _LEFT_OUT | OWN_KEYS | own.keys()
    copied = [source.metadata_bytes(key) for key in source.metadata if key not in dropped]
    # general.architecture comes first, as readers expect.
    entries = [_entry(key, value) for key, value in own.items()]
    return struct.pack("<Q", len(entries) + len(copied)) + entries[0] + b"".join(copied) + b"".join(entries[1:])


def write(
    file: BinaryIO,
    metadata: bytes,
    alignment: int,
    tensors: Sequence[tuple[Weight, TensorType]],
    data: Callable[[str], Iterable[bytes | memoryview]],
) -> None:
    """metadata: of `metadata_of`.   data: the bytes of a tensor, in pieces."""
    infos, offset = [], 0
    for weight, kind in tensors:
        stored, shape = stored_as(weight, kind)
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(_text(weight.name) + dims + struct.pack("<IQ", stored.id, offset))
        offset += _padded(kind.tensor_bytes(weight.shape), alignment)
    head = b"GGUF" + struct.pack("<IQ", 3, len(tensors)) + metadata + b"".join(infos)
    file.write(head + bytes(-len(head) % alignment))
    for weight, kind in tensors:
        written = 0
        for piece in data(weight.name):
            file.write(piece)
            written += len(piece)
        assert written == kind.tensor_bytes(weight.shape), f"{weight.name}: {written} bytes"
        file.write(bytes(-written % alignment))


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, value: Entry) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", _UINT32, value)
    kind = _STRING if isinstance(value[0], str) else _UINT32
    items = b"".join(_text(item) if isinstance(item, str) else struct.pack("<I", item) for item in value)
    return _text(key) + struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
