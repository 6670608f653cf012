"""Shapes: models known by their metadata alone, to plan for without a file (`configs/shapes/*.toml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetrun.errors import UsageError
from hetrun.tensor import ALL_TYPES, Weight
from hetrun.toml_table import TomlTable, find, near

_EVERY_BLOCK = "blk.*."
_MAX_BLOCKS = 1 << 12


@dataclass(frozen=True)
class Shape:
    """What a GGUF file's header would say.   architecture: `general.architecture`."""

    name: str
    description: str
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Weight]

    def quantised(self, type_name: str) -> Shape:
        """The same model with every matrix in that tensor type. UsageError where its rows are no whole blocks of it."""
        wanted = ALL_TYPES.get(type_name.upper())
        if wanted is None:
            raise UsageError(f"no tensor type {type_name!r}", remedy=near(type_name.upper(), ALL_TYPES))
        tensors = {n: replace(w, type=wanted) if len(w.shape) > 1 else w for n, w in self.tensors.items()}
        for weight in tensors.values():
            if weight.shape[-1] % weight.type.block_size:
                raise UsageError(
                    f"{weight.name} has rows of {weight.shape[-1]}, no multiple of {wanted}'s {wanted.block_size}",
                    remedy="choose a type with blocks of 32, such as Q4_0",
                )
        return replace(self, tensors=tensors)


def load_shape(name_or_path: str | Path) -> Shape:
    """The shipped shape of that name, or the one in that file. ConfigError names what is wrong with it."""
    path = find(name_or_path, "shapes", "shape")
    root = TomlTable.read(path)
    description, architecture = root.text("description"), root.text("architecture")
    sizes = root.table("metadata").raw()
    n_blocks = sizes.get("block_count")
    if not isinstance(n_blocks, int) or not 1 <= n_blocks <= _MAX_BLOCKS:
        root.table("metadata").fail("block_count", f"{n_blocks!r} is no number of layers", "give it, from 1 on")
    tensors: dict[str, Weight] = {}
    for pattern, table in root.tables("tensors"):
        weight = _weight(pattern, table)
        for name in _names(pattern, n_blocks):
            tensors[name] = replace(weight, name=name)
    root.done()
    metadata = {f"{architecture}.{key}": value for key, value in sizes.items()}
    return Shape(path.stem, description, architecture, metadata, tensors)


def _names(pattern: str, n_blocks: int) -> list[str]:
    if not pattern.startswith(_EVERY_BLOCK):
        return [pattern]
    return [f"blk.{i}.{pattern.removeprefix(_EVERY_BLOCK)}" for i in range(n_blocks)]


def _weight(name: str, table: TomlTable) -> Weight:
    """`{ shape = [rows, columns], type = "Q4_0" }`, outermost dimension first."""
    shape = table.get("shape", list, "a list of dimensions, outermost first")
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        table.fail("shape", f"{shape!r} is no list of positive numbers", "for example [4096, 4096]")
    type_name = table.text("type")
    if type_name not in ALL_TYPES:
        table.fail("type", f"unknown tensor type {type_name!r}", near(type_name, ALL_TYPES))
    kind = ALL_TYPES[type_name]
    if shape[-1] % kind.block_size:
        table.fail("shape", f"rows of {shape[-1]} are no multiple of {kind}'s block of {kind.block_size}", "check both")
    table.done()
    return Weight(name, kind, tuple(shape))
