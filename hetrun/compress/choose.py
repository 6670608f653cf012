"""What becomes of each tensor: schemes for matrices, types for those that are kept, by patterns of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hetrun.compress.encode import GROUP, PLAIN_TYPES
from hetrun.errors import UsageError
from hetrun.graph.graph import Graph
from hetrun.ops import MatMul
from hetrun.tensor import ALL_TYPES, TENSOR_TYPES, TensorType, Weight


@dataclass(frozen=True)
class Scheme:
    """prune: 2 of each 4 weights go.   quantise: to codes of 2 bits.   type_name: of the tensor in the file."""

    name: str
    prune: bool
    quantise: bool
    type_name: str
    meaning: str


SCHEMES: Mapping[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("w2s24", True, True, "W2S24", "2:4 pruned, 2 bits, groups of 64: 2.00 bits a weight"),
        Scheme("w2", False, True, "W2", "2 bits, groups of 64, nothing pruned: 2.25 bits a weight"),
        Scheme(
            "s24", True, False, "Q8_0", "2:4 pruned and kept in Q8_0, to see what pruning alone does: saves no bytes"
        ),
    )
}


@dataclass(frozen=True)
class Treatment:
    """What becomes of one tensor.   scheme: None where its values stay.   type: in the new file.   why: it is kept."""

    weight: Weight
    type: TensorType
    scheme: Scheme | None = None
    why: str = ""

    @property
    def nbytes(self) -> int:
        return self.type.tensor_bytes(self.weight.shape)


def choose(
    graph: Graph, tensors: Mapping[str, Weight], schemes: Sequence[str], keeps: Sequence[str]
) -> dict[str, Treatment]:
    """The treatment of every tensor of the file, by name.

    schemes: "SCHEME" for all matrices of the layers, or "PATTERN=SCHEME"; the last that matches counts.
    keeps: "PATTERN" or "PATTERN=TYPE", before any scheme. Patterns are of tensors ("blk.0.*", with or without
    ".weight") or of the ops that read them ("output", which may read the embedding's table).
    UsageError for a scheme, type or pattern that is not known or matches nothing.
    """
    multiplied = {op.weight.name: op for op in graph.ops if isinstance(op, MatMul)}
    found = {w.name: Treatment(w, w.type, None, _usual_reason(w, multiplied)) for w in tensors.values()}
    names = _names(graph, tensors)
    for text in schemes:
        pattern, _, scheme_name = text.rpartition("=")
        scheme = SCHEMES.get(scheme_name)
        if scheme is None:
            raise UsageError(f"--scheme {text}: no scheme {scheme_name!r}", remedy=_nearest(scheme_name, SCHEMES))
        if pattern:
            matched = _matching(f"--scheme {text}", pattern, names)
        else:
            matched = [name for name, op in multiplied.items() if op.layer is not None]
        for name in matched:
            found[name] = _by_scheme(found[name].weight, scheme, multiplied, asked=bool(pattern), text=text)
    for text in keeps:
        pattern, equals, type_name = text.partition("=")
        kind = TENSOR_TYPES.get(type_name.upper()) if equals else None
        if equals and (kind is None or kind.name not in PLAIN_TYPES):
            known = [t.lower() for t in PLAIN_TYPES]
            raise UsageError(f"--keep {text}: no type {type_name!r}", remedy=_nearest(type_name, known))
        for name in _matching(f"--keep {text}", pattern, names):
            weight = found[name].weight
            if kind is not None and weight.shape[-1] % kind.block_size:
                raise UsageError(
                    f"--keep {text}: {name} has rows of {weight.shape[-1]}, no multiple of {kind}'s {kind.block_size}",
                    remedy="keep it in f16, or as it is (without a type)",
                )
            found[name] = Treatment(weight, kind or weight.type, None, f"--keep {text}")
    return found


def _by_scheme(
    weight: Weight, scheme: Scheme, multiplied: Mapping[str, MatMul], *, asked: bool, text: str
) -> Treatment:
    """asked: by name, so that what cannot be done is an error; else it is kept, and says why."""
    reason = ""
    if weight.name not in multiplied:
        reason = "no matmul reads it"
    elif weight.shape[-1] % GROUP:
        reason = f"its rows of {weight.shape[-1]} are no multiple of {GROUP}"
    if reason and asked:
        raise UsageError(f"--scheme {text}: {weight.name} cannot be compressed: {reason}", remedy="leave it out")
    if reason:
        return Treatment(weight, weight.type, None, reason)
    return Treatment(weight, ALL_TYPES[scheme.type_name], scheme)


def _usual_reason(weight: Weight, multiplied: Mapping[str, MatMul]) -> str:
    if len(weight.shape) == 1:
        return "a vector"
    op = multiplied.get(weight.name)
    if op is None:
        return "no matmul reads it"
    return "outside the layers" if op.layer is None else "no scheme names it"


def _names(graph: Graph, tensors: Mapping[str, Weight]) -> dict[str, set[str]]:
    """What a pattern may match -> tensors."""
    names: dict[str, set[str]] = {}
    for name in tensors:
        names.setdefault(name, set()).add(name)
        names.setdefault(name.removesuffix(".weight"), set()).add(name)
    for op in graph.ops:
        if isinstance(op, MatMul):
            names.setdefault(op.name, set()).add(op.weight.name)
    return names


def _matching(subject: str, pattern: str, names: Mapping[str, set[str]]) -> list[str]:
    found = {tensor for name, tensors in names.items() if fnmatchcase(name, pattern) for tensor in tensors}
    if not found:
        raise UsageError(f"{subject}: {pattern!r} matches no tensor", remedy=_nearest(pattern, names))
    return sorted(found)


def _nearest(text: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(text.lower(), known, n=2, cutoff=0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(known[:8])}{' and more' if len(known) > 8 else ''}"
