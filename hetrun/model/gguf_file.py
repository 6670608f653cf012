"""The GGUF file: a bounded, read-only mapping whose tensors are views on their raw blocks.

Nothing a file says is trusted: every count, length, offset and size is checked against the bytes that are there before
anything is built from it, so that time and memory are bounded by the file's size. The `gguf` package needs NumPy
and takes 1.9 s for SmolLM2 where this takes 0.02 s (measured on one x86-64 core).

What cannot be caught: a file that is cut while it is mapped. Reading what is gone ends the process with SIGBUS, so a
model is replaced by renaming a new file over it, never by writing into it.
Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

from hetrun.errors import ModelFileError, ModelNotFoundError
from hetrun.model.encodings import architecture_of, decoded_weights, is_container
from hetrun.model.metadata import (
    REFETCH,
    Cursor,
    MetadataArray,
    MetadataValue,
    count_entries,
    quoted,
    read_metadata,
)
from hetrun.tensor import TENSOR_TYPES, Weight, tensor_type_of_id

__all__ = ["MetadataArray", "MetadataValue", "ModelFile"]

VERSIONS = (2, 3)  # they differ only in that 3 may be big-endian
DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT = 8  # GGUF specification: a multiple of 8. Kernels rely on it to load block scales and float64.
MAX_ALIGNMENT = 1 << 30  # a huge page; more than that pads every tensor to a gigabyte
MAX_DIMS = 4
MAX_TENSORS = 1 << 18  # a model of 60 layers with 256 separate experts has 46,000; a hostile file then costs seconds
MAX_ELEMENTS = (1 << 63) - 1  # ggml counts elements in an int64
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # length of the name, the name, n_dims (0 for a scalar), type, offset

_LOOKALIKES = (  # first bytes: what such a file is
    (b"PK\x03\x04", "a ZIP archive, perhaps a PyTorch checkpoint"),
    (b"lmgg", "a GGML file from before GGUF"),
    (b"tjgg", "a GGML file from before GGUF"),
    (b"fmgg", "a GGML file from before GGUF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "a web page"),
)


class _TensorInfo(NamedTuple):
    """weight: name, type, shape.   offset: of its data in the data section.   entry: of this entry in the file."""

    weight: Weight
    offset: int
    entry: int


class ModelFile:
    """A GGUF file, mapped into memory. Made by `ModelFile.open`; use it as a context manager or call `close`.

    path: where it was opened.   paths: of all files, several where the model is split.   version: of the GGUF format,
    2 or 3.   size_bytes: of the whole.
    alignment: bytes, a power of two from 8; each tensor's blocks start at a multiple of it in the file, and in memory
    too as far as the page size goes.
    tensors: {name: Weight} in file order, shapes outermost dimension first; those in an encoding of ours
    (hetrun.model.encodings) as what they mean, not as the bytes they are stored as.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        """Parses `data`; ModelFileError where it is no valid GGUF file."""
        cursor = Cursor(data, str(path))
        self.path = path
        self.paths: tuple[Path, ...] = (path,)
        self.size_bytes = len(data)
        self.version = _read_version(cursor)
        n_tensors = cursor.count("tensor_count", _LEAST_TENSOR_BYTES, MAX_TENSORS)
        metadata, offsets = read_metadata(cursor, count_entries(cursor))
        self._entries = dict(zip(offsets, pairwise([*offsets.values(), cursor.offset]), strict=True))
        self.alignment = _alignment(cursor, metadata, offsets)
        infos = _read_tensor_infos(cursor, n_tensors)
        self._starts = _place(cursor, infos, self.alignment)
        stored = {name: info.weight for name, info in infos.items()}
        self.tensors: Mapping[str, Weight] = MappingProxyType(dict(decoded_weights(metadata, stored, str(path))))
        self._metadata: Mapping[str, MetadataValue] | None = MappingProxyType(metadata)
        self._view: memoryview | None = memoryview(data)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFile:
        """Map and check the GGUF file at `path`, GGUF 2 or 3, little-endian; of a split model all parts, whichever is
        named.

        Raises ModelNotFoundError where nothing is there, ModelFileError where it cannot be read or is not valid, and
        where parts are missing or do not belong together.
        """
        file = cls.open_single(path)
        if file.metadata.get("split.count", 0) in (0, 1):  # 0: parts that were merged again
            return file
        from hetrun.model.split_file import open_split

        return open_split(file)

    @staticmethod
    def open_single(path: str | os.PathLike[str]) -> ModelFile:
        """As `open`, but of a split model this part alone."""
        name = os.fsdecode(path)
        data = _map(name)
        try:
            file = ModelFile(Path(name), data)
            file.release_pages()  # the header was walked once, megabytes of it, and little of it is read again
            return file
        except BaseException:
            data.close()
            raise

    def release_pages(self) -> None:
        """Give back the memory of pages read so far. What is read again comes back by itself, from the page cache."""
        data = None if self._view is None else self._view.obj
        if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the mapping. From here on `metadata`, `architecture` and `blocks` raise ValueError.

        Views from `blocks` and arrays from `metadata` that are still held stay valid: the mapping goes with the last of
        them, so nothing that was handed out ever reads freed memory.
        """
        self._view = None
        self._metadata = None

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """All entries in file order; numbers, bools and strings as Python values, arrays decoded when they are read."""
        if self._metadata is None:
            raise ValueError(f"{self.path} is closed")
        return self._metadata

    @property
    def architecture(self) -> str:
        """The model's architecture, such as "llama": `general.architecture`, or what a file with encoded tensors says.

        ModelFileError where it is missing or no string.
        """
        if is_container(self.metadata):
            return architecture_of(self.metadata, str(self.path))
        field = "general.architecture"
        value = self.metadata.get(field)
        if isinstance(value, str) and value:
            return value
        message = "names no architecture" if value is None else f"{value!r} is no name of an architecture"
        raise ModelFileError(message, path=str(self.path), field=field, remedy=REFETCH)

    def metadata_bytes(self, key: str) -> bytes:
        """An entry of the metadata as it stands in the file: name, type and value. KeyError where there is none."""
        if self._view is None:
            raise ValueError(f"{self.path} is closed")
        start, end = self._entries[key]
        return bytes(self._view[start:end])

    def blocks(self, name: str) -> memoryview:
        """The raw blocks of a tensor: a read-only view, uint8 [nbytes], in the mapping (no copy).

        ModelFileError where the file holds no tensor of that name.
        """
        if self._view is None:
            raise ValueError(f"{self.path} is closed")
        if name not in self._starts:
            raise ModelFileError(
                f"holds no tensor {quoted(name)}",
                path=str(self.path),
                remedy="it may hold only a vocabulary: use the complete file",
            )
        start = self._starts[name]
        return self._view[start : start + self.tensors[name].nbytes]

    def __repr__(self) -> str:
        return f"<ModelFile {self.path}: GGUF {self.version}, {len(self.tensors)} tensors, {self.size_bytes} bytes>"


def _map(path: str) -> mmap.mmap:
    """A read-only mapping of the regular, non-empty file at `path`."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(path) from None
    except ValueError:  # a null byte in the path
        raise _not_found(repr(path)) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _not_found(path[:80] + "...") from None
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise ModelFileError("is a directory", path=path, remedy="name the .gguf file in it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise ModelFileError("is not a regular file", path=path, remedy="save the model to a file first")
    if status.st_size == 0:
        raise ModelFileError("is empty", path=path, remedy=REFETCH)
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise _not_found(path) from None
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, PermissionError):
            raise _unreadable(path, error) from None
        raise ModelFileError(
            f"{status.st_size} bytes cannot be mapped into memory: {error}",
            path=path,
            remedy="use a smaller model, or raise the limit on address space (ulimit -v; 2 to 3 GB on 32 bits)",
        ) from None


def _not_found(path: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{path}: no such file", remedy="check the path, or fetch a model with hetrun pull")


def _unreadable(path: str, error: OSError) -> ModelFileError:
    remedy = "give yourself the right to read it (chmod +r)" if isinstance(error, PermissionError) else None
    return ModelFileError(f"cannot be read: {error.strerror}", path=path, remedy=remedy)


def _read_version(cursor: Cursor) -> int:
    start = cursor.data[:32]
    if start[:4] != b"GGUF":
        kind = next((kind for magic, kind in _LOOKALIKES if start.startswith(magic)), None)
        if kind is None and start[8:10] == b'{"':
            kind = "a safetensors file"
        guess = f", it looks like {kind}" if kind else ""
        raise cursor.error(
            f"not a GGUF file: it begins with {start[:8]!r}{guess}",
            "magic",
            remedy="name a .gguf file, or convert the model with llama.cpp's convert_hf_to_gguf.py",
        )
    cursor.offset = 4
    version = cursor.u32("version")
    if version in VERSIONS:
        return version
    swapped = int.from_bytes(start[4:8], "big")
    if version & 0xFFFF == 0 and 0 < swapped <= 0xFFFF:
        raise cursor.error(
            f"a big-endian GGUF {swapped} file, hetrun reads little-endian ones",
            "version",
            offset=4,
            remedy="convert it with gguf-convert-endian of the gguf package",
        )
    remedy = "update hetrun, or convert the model to GGUF 3" if version > max(VERSIONS) else "convert the model again"
    raise cursor.error(f"GGUF version {version}, hetrun reads 2 and 3", "version", offset=4, remedy=remedy)


def _alignment(cursor: Cursor, metadata: Mapping[str, MetadataValue], offsets: Mapping[str, int]) -> int:
    field = "general.alignment"
    value = metadata.get(field, DEFAULT_ALIGNMENT)
    if isinstance(value, int) and MIN_ALIGNMENT <= value <= MAX_ALIGNMENT and value & (value - 1) == 0:
        return value
    message = f"{quoted(str(value))} is no power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}"
    raise cursor.error(message, field, offset=offsets[field])


def _read_tensor_infos(cursor: Cursor, n_tensors: int) -> dict[str, _TensorInfo]:
    infos: dict[str, _TensorInfo] = {}
    for i in range(n_tensors):
        entry = cursor.offset
        name = cursor.name(f"name of tensor {i} of {n_tensors}")
        field = f"tensor {quoted(name)}"
        if name in infos:
            raise cursor.error("two tensors have this name", field, offset=entry)
        infos[name] = _read_tensor_info(cursor, name, field, entry)
    return infos


def _read_tensor_info(cursor: Cursor, name: str, field: str, entry: int) -> _TensorInfo:
    n_dims = cursor.u32(f"number of dimensions of {field}")
    if n_dims > MAX_DIMS:
        raise cursor.error(f"{n_dims} dimensions, {MAX_DIMS} is the limit", field, offset=cursor.offset - 4)
    dims_at = cursor.offset
    # The file lists the row first. A scalar has no dimensions there, and is one row of one element here.
    shape = tuple(reversed([cursor.u64(f"dimension {i} of {field}") for i in range(n_dims)])) or (1,)
    if 0 in shape:
        raise cursor.error(f"a dimension of 0 in {list(shape)}", field, offset=dims_at)
    if prod(shape) > MAX_ELEMENTS:
        raise cursor.error(f"more than 2**63 - 1 elements in {list(shape)}", field, offset=dims_at)
    type_id = cursor.u32(f"type of {field}")
    tensor_type = tensor_type_of_id(type_id)
    if tensor_type is None:
        known = ", ".join(f"{t.id} {t.name}" for t in TENSOR_TYPES.values())
        raise cursor.error(
            f"tensor {quoted(name)} has the unknown type {type_id}; known are {known}",
            f"type of {field}",
            offset=cursor.offset - 4,
            remedy="quantize the model to a known type, or update hetrun",
        )
    if shape[-1] % tensor_type.block_size:
        raise cursor.error(
            f"a row of {shape[-1]} is no multiple of {tensor_type.name}'s block of {tensor_type.block_size}",
            field,
            offset=dims_at,
        )
    return _TensorInfo(Weight(name, tensor_type, shape), cursor.u64(f"data offset of {field}"), entry)


def _place(cursor: Cursor, infos: Mapping[str, _TensorInfo], alignment: int) -> dict[str, int]:
    """{name: offset of its blocks in the file}: aligned, inside the file, and no two of them overlapping."""
    section = -(-cursor.offset // alignment) * alignment
    end, before = 0, ""
    for info in sorted(infos.values(), key=lambda info: info.offset):
        name, n_bytes = info.weight.name, info.weight.nbytes
        field = f"data offset of tensor {quoted(name)}"
        if info.offset % alignment:
            raise cursor.error(f"{info.offset} is no multiple of the alignment {alignment}", field, offset=info.entry)
        if info.offset < end:
            raise cursor.error(f"its data overlaps that of tensor {quoted(before)}", field, offset=info.entry)
        end, before = info.offset + n_bytes, name
        if section + end > cursor.size_bytes:
            raise cursor.error(
                f"its data ends at byte {section + end}, the file at {cursor.size_bytes}", field, offset=info.entry
            )
    return {name: section + info.offset for name, info in infos.items()}
