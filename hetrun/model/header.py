"""A model's header: metadata of one architecture with types and bounds, and its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hetrun.errors import ModelFileError, UnsupportedModelError
from hetrun.tensor import Weight

_LIMIT = 1 << 24  # no dimension of a real model comes near


class Tensors(Mapping[str, Weight]):
    """The tensors of a model by name.   blocks: their raw blocks, or None where only shapes are known."""

    def __init__(self, weights: Mapping[str, Weight], blocks: Callable[[str], memoryview] | None = None) -> None:
        self._weights = weights
        self._blocks = blocks

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def floats(self, name: str, n: int) -> tuple[float, ...]:
        """The values of a small vector; ones where only shapes are known, as plans do not depend on them.

        UnsupportedModelError where it is no float32 vector of n elements.
        """
        weight = self._weights[name]
        if weight.shape != (n,) or weight.type.name != "F32":
            raise UnsupportedModelError(
                f"tensor {name} is {weight.type} {list(weight.shape)}, but the metadata asks for F32 {[n]}",
                remedy="the file's metadata and tensors disagree: convert it again or pull another copy",
            )
        if self._blocks is None:
            return (1.0,) * n
        return tuple(memoryview(bytes(self._blocks(name))).cast("f"))


class Keys:
    """Typed, bounded access to the metadata of one architecture.

    defaults: values of keys that files of this architecture may leave out.
    """

    def __init__(self, arch: str, metadata: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.arch = arch
        self.metadata = metadata
        self.defaults = defaults or {}

    def name(self, key: str) -> str:
        return f"{self.arch}.{key}"

    def has(self, key: str) -> bool:
        """Whether the file, or what its architecture takes for granted, has the key."""
        return self.name(key) in self.metadata or key in self.defaults

    def value(self, key: str, default: Any = None) -> Any:
        """As the file has it. ModelFileError where it has not, and nothing stands for it."""
        value = self.metadata.get(self.name(key), self.defaults.get(key, default))
        if value is None:
            raise ModelFileError("the metadata lacks this key", field=self.name(key), remedy="convert the model again")
        return value

    def size(self, key: str, *, default: int | None = None, least: int = 1) -> int:
        return self._integer(key, self.value(key, default), least)

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelFileError(f"expected a finite number, found {value!r:.60}", field=self.name(key))
        return float(value)

    def positive(self, key: str, *, default: float | None = None) -> float:
        number = self.number(key, default=default)
        if number <= 0:
            raise ModelFileError(f"expected a positive number, found {number}", field=self.name(key))
        return number

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise ModelFileError(f"expected true or false, found {value!r:.60}", field=self.name(key))
        return value

    def per_layer(self, key: str, n_layers: int, *, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """One value for every layer; files give a number for all, or an array."""
        value = self.value(key, default)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != n_layers:
                raise ModelFileError(f"{len(value)} entries for {n_layers} layers", field=self.name(key))
            return tuple(self._integer(key, v, 1) for v in value)
        return (self._integer(key, value, 1),) * n_layers

    def layers_but_every(self, key: str, n_layers: int) -> tuple[bool, ...]:
        """A flag for every layer; files give an array of them, or a period: all but every n-th layer, 0 for all."""
        value = self.value(key, 0)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != n_layers or not all(isinstance(v, (bool, int)) for v in value):
                raise ModelFileError(f"expected a flag for each of {n_layers} layers", field=self.name(key))
            return tuple(bool(v) for v in value)
        period = self._integer(key, value, 0)
        return tuple(period == 0 or (layer + 1) % period != 0 for layer in range(n_layers))

    def _integer(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LIMIT:
            raise ModelFileError(
                f"expected an integer from {least} to {_LIMIT}, found {value!r:.60}", field=self.name(key)
            )
        return value
