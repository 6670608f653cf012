"""Small GGUF files for tests: written by the gguf package, or packed by hand where no writer would write them."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import gguf

from hetrun.model.gguf_file import ModelFile

Kind = gguf.GGUFValueType


def written(fill, alignment=None):
    """The bytes that GGUFWriter writes after fill(writer)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if alignment is not None:
            writer.add_custom_alignment(alignment)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def opened(data):
    """An open ModelFile of those bytes; the file itself is gone, the mapping is not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        return ModelFile.open(path)


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values):
    return struct.pack(f"<{len(values)}Q", *values)


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return u64(len(data)) + data


def entry(key, kind, payload):
    return text(key) + u32(kind) + payload


def tensor(name, dims, kind=0, offset=0, n_dims=None):
    """dims: in the file's order, the row first."""
    return text(name) + u32(len(dims) if n_dims is None else n_dims) + u64(*dims) + u32(kind) + u64(offset)


def gguf_bytes(entries=(), infos=(), data=b"", *, version=3, n_entries=None, n_tensors=None, alignment=32):
    counts = u64(len(infos) if n_tensors is None else n_tensors, len(entries) if n_entries is None else n_entries)
    head = b"GGUF" + u32(version) + counts + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


ARCHITECTURE = entry("general.architecture", Kind.STRING, text("llama"))
