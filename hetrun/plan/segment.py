"""Cuts a placed graph into segments: maximal runs of ops on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetrun.device import Segment
from hetrun.graph.graph import Graph
from hetrun.ops import Value


def runs(placement: Sequence[str]) -> list[tuple[str, int, int]]:
    """(device, first op, end) of each maximal run of ops on one device."""
    result: list[tuple[str, int, int]] = []
    start = 0
    for i in range(1, len(placement) + 1):
        if i == len(placement) or placement[i] != placement[start]:
            result.append((placement[start], start, i))
            start = i
    return result


def last_readers(graph: Graph) -> dict[str, int]:
    """The number of the last op that reads each value that is read."""
    return {v.name: i for i, op in enumerate(graph.ops) for v in op.inputs}


def segment_of(
    graph: Graph, last_reader: Mapping[str, int], start: int, end: int, max_tokens: int, max_outputs: int
) -> Segment:
    """Ops `start` to before `end`.   last_reader: `last_readers` of the graph."""
    ops = graph.ops[start:end]
    made = {op.name for op in ops}
    inputs: dict[str, Value] = {v.name: v for op in ops for v in op.inputs if v.name not in made}
    outputs = tuple(op.output for op in ops if last_reader.get(op.name, -1) >= end or op.output == graph.output)
    name = ops[0].name if len(ops) == 1 else f"{ops[0].name}..{ops[-1].name}"
    return Segment(name, ops, tuple(inputs.values()), outputs, max_tokens, max_outputs)


def cut(graph: Graph, placement: Sequence[str], max_tokens: int, max_outputs: int) -> list[tuple[str, Segment]]:
    """(device, segment) in the order in which they run. Names depend on the ops alone, so that phases share
    segments.
    """
    readers = last_readers(graph)
    return [
        (device, segment_of(graph, readers, start, end, max_tokens, max_outputs))
        for device, start, end in runs(placement)
    ]
