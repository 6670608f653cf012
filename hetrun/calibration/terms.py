"""What an op's time is made of: quantities that calibration finds a price for, each by number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from hetrun.ops import Attention, MatMul, Op, Workload

Terms = Mapping[str, float]
"""Quantities by name."""

KEYS = "/kv"
"""End of the term of an attention's bytes of keys and values."""


def by_footprint(term: str, rows: int) -> bool:
    """Whether a term's price depends on the bytes that a step runs through, weights and keys: a cache may hold few of
    them, and what else an op does may go on while it waits for them. With several rows each byte serves all of them.
    """
    return rows == 1 and (term.startswith("matmul/") or term.endswith(KEYS))


def by_context(term: str, rows: int) -> bool:
    """Whether it depends on the keys that a query sees: devices divide long contexts among their threads."""
    return term.endswith("/flops") or (rows > 1 and term.endswith(KEYS))


def terms(op: Op, workload: Workload, again: bool) -> Terms:
    """Quantities of one op. The price of a quantity depends on the op's rows, so that rows are no factor here.

    again: the op is a matmul whose input an earlier one has read: a device readies a value once (quantises it, say).
    """
    if isinstance(op, MatMul):
        kind = f"matmul/{op.weight.type.name}"
        found = {kind: 1.0, f"{kind}/bytes": float(op.weight.nbytes), "matmul/out": float(op.output.width)}
        return found if again else {**found, "matmul/input": 1.0, "matmul/in": float(op.x.width)}
    if isinstance(op, Attention):
        kind = f"attention/{op.kv.format}"
        rows = max(1, workload.n_tokens)
        return {
            kind: 1.0,
            f"{kind}/width": float(op.q.width),
            f"{kind}/flops": op.flops(workload) / rows,
            f"{kind}{KEYS}": op.kv_bytes(workload) / rows,
        }
    return {op.kind: 1.0, f"{op.kind}/width": float(op.output.width)}


def visible_keys(parts: Terms) -> float:
    """Keys that a query sees on average, of the terms of an attention op, or of several that are alike."""
    kind = family(next(name for name in parts if name.startswith("attention/")))
    return parts[f"{kind}/flops"] / (4 * parts[f"{kind}/width"])


def rows_of(op: Op, workload: Workload) -> int:
    return workload.rows(op.output.rows)


def footprint_bytes(ops: Iterable[Op], workload: Workload) -> int:
    """Bytes of weights, and of keys and values, that a step of these ops runs through."""
    parts: dict[str, int] = {}
    for op in ops:
        if isinstance(op, MatMul):
            parts.update({w.name: w.nbytes for w in op.weights})
        elif isinstance(op, Attention):
            parts[op.kv.name] = op.kv_bytes(workload)
    return sum(parts.values())


def with_again(ops: Iterable[Op]) -> Iterator[tuple[Op, bool]]:
    """Each op, and whether it is a matmul of an input that an earlier one has read."""
    seen: set[str] = set()
    for op in ops:
        again = isinstance(op, MatMul) and op.x.name in seen
        if isinstance(op, MatMul):
            seen.add(op.x.name)
        yield op, again


def family(term: str) -> str:
    """The name under which an op of that term counts as measured: its kind, and type or format where it has one."""
    parts = term.split("/")
    return "/".join(parts[:2]) if parts[0] in ("matmul", "attention") else parts[0]
