"""The tables of `hetrun inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rich.text import Text

from hetrun.model.encodings import is_container
from hetrun.model.gguf_file import ModelFile
from hetrun.model.metadata import MetadataArray, MetadataValue
from hetrun.view.console import console, plain, size, table

_SHOWN_ITEMS = 4
_SHOWN_TEXT = 100


class Support(Protocol):
    """Why a file cannot be tokenized with, or run; None where it can. The memory that running takes, by space."""

    @property
    def tokenizer(self) -> str | None: ...

    @property
    def model(self) -> str | None: ...

    @property
    def memory(self) -> Mapping[str, int]: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def unused(self) -> tuple[str, ...]: ...

    @property
    def tied(self) -> bool: ...


def print_file(file: ModelFile, support: Support, totals: Mapping[str, Mapping[str, int]]) -> None:
    """The file as a whole, its metadata, its tensors, and totals by type (tensors, elements, bytes)."""
    out = console()
    n_elements = sum(w.n_elements for w in file.tensors.values())
    n_bytes = sum(w.nbytes for w in file.tensors.values())
    out.print(plain(file.path, "bold"))
    if len(file.paths) > 1:
        out.print(plain(f"and {len(file.paths) - 1} more: {', '.join(path.name for path in file.paths[1:])}"))
    out.print(
        plain(
            f"GGUF {file.version}, {size(file.size_bytes)}, architecture "
            f"{_architecture(file)}, {len(file.tensors)} tensors, "
            f"{n_elements / 1e6:.1f} M parameters"
            + (f", {8 * n_bytes / n_elements:.2f} bits each" if n_elements else "")
        )
    )
    for what, reason in (("runs here", support.model), ("tokenizer", support.tokenizer)):
        out.print(Text(f"{what}: ").append("yes" if reason is None else "no: ").append(plain(reason or "")))
    if support.tied:
        out.print("output head: the token embeddings (tied)")
    if support.unused:
        more = ", ..." if len(support.unused) > _SHOWN_ITEMS else ""
        names = ", ".join(support.unused[:_SHOWN_ITEMS])
        out.print(plain(f"note: not used, and left out: {len(support.unused)} tensors: {names}{more}"))
    if support.memory:
        taken = ", ".join(f"{space} {size(n)}" for space, n in support.memory.items())
        out.print(plain(f"memory: {taken} with a context of {support.n_ctx}"))

    shown = table("key", "value")
    for key, value in file.metadata.items():
        shown.add_row(plain(key), plain(_short(value)))
    out.print(shown)

    shown = table("tensor", "type", "shape", numbers=("bytes",))
    for w in file.tensors.values():
        shown.add_row(plain(w.name), w.type.name, " x ".join(map(str, w.shape)), f"{w.nbytes:,}")
    out.print(shown)

    counted = ("tensors", "elements", "bytes")
    shown = table("type", numbers=counted)
    for name, numbers in totals.items():
        shown.add_row(name, *(f"{numbers[key]:,}" for key in counted))
    out.print(shown)


def _architecture(file: ModelFile) -> str:
    if is_container(file.metadata):
        return f"{file.architecture}, compressed by hetrun"
    return str(file.metadata.get("general.architecture", "not named"))


def _short(value: MetadataValue) -> str:
    if isinstance(value, MetadataArray):
        items = ", ".join(_short(v) for v in value[:_SHOWN_ITEMS])
        more = ", ..." if len(value) > _SHOWN_ITEMS else ""
        return f"{len(value)} {value.element_kind}: [{items}{more}]"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}... ({len(text)} characters)"
