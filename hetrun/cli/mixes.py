"""The same model in several tensor types at once, where one type for all matrices would lose more than it must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hetrun.model.shape import Shape, load_shape
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun.toml_table import shipped

# (gate and up, output), from the most exact down. Gate and up are half of a llama, and the head comes out a step finer,
# as the mixes of llama.cpp have it.
_LADDER = (("Q5_K", "Q6_K"), ("Q4_K", "Q5_K"), ("Q3_K", "Q4_K"), ("Q2_K", "Q3_K"))


def mixes(header: Shape) -> list[tuple[Shape, str]]:
    """(shape, what it is called) of each that is smaller, the largest first."""
    found = [*_ladder(header), *_relatives(header)]
    unique = {_nbytes(shape): (shape, label) for shape, label in reversed(found)}
    return [unique[n] for n in sorted(unique, reverse=True) if n < _nbytes(header)]


def _ladder(header: Shape) -> Iterator[tuple[Shape, str]]:
    for gate_up, output in _LADDER:
        tensors = dict(header.tensors)
        changed = {"gate and up": "", "output": ""}
        for name, weight in header.tensors.items():
            part, wanted = ("output", output) if name == "output.weight" else ("gate and up", gate_up)
            if part == "gate and up" and not {"ffn_gate", "ffn_up"} & set(name.split(".")):
                continue
            lowered = replace(weight, type=TENSOR_TYPES[wanted])
            if weight.shape[-1] % lowered.type.block_size == 0 and lowered.nbytes < weight.nbytes:
                tensors[name] = lowered
                changed[part] = wanted
        label = ", ".join(f"{part} in {wanted}" for part, wanted in changed.items() if wanted)
        if label:
            yield replace(header, tensors=tensors), label


def _relatives(header: Shape) -> Iterator[tuple[Shape, str]]:
    """Shipped shapes that are this model in other types."""
    sizes = _sizes(header)
    for name in shipped("shapes"):
        shape = load_shape(name)
        if shape.architecture == header.architecture and _sizes(shape) == sizes:
            tensors: dict[str, Weight] = {n: replace(w, type=shape.tensors[n].type) for n, w in header.tensors.items()}
            yield replace(header, tensors=tensors), f"the types of --shape {name} ({shape.description})"


def _sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in shape.tensors.items()}


def _nbytes(shape: Shape) -> int:
    return sum(weight.nbytes for weight in shape.tensors.values())
