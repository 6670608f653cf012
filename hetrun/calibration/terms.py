"""What an op's time is made of: quantities that calibration finds a price for, each by number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from hetrun.ops import Attention, MatMul, Op, Workload

Terms = Mapping[str, float]
"""Quantities by name."""

BY_FOOTPRINT = ("matmul/",)
"""Beginnings of terms whose price for one token depends on the bytes of weights that a step runs through: a cache may
hold few of them, and what else a matmul does may go on while it waits for them."""

BY_CONTEXT = ("/flops", "/kv")
"""Ends of terms whose price depends on the keys that a query sees: devices divide long contexts among their threads."""


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
            f"{kind}/kv": op.kv_bytes(workload) / rows,
        }
    return {op.kind: 1.0, f"{op.kind}/width": float(op.output.width)}


def visible_keys(parts: Terms) -> float:
    """Keys that a query sees on average, of the terms of an attention op, or of several that are alike."""
    kind = family(next(name for name in parts if name.startswith("attention/")))
    return parts[f"{kind}/flops"] / (4 * parts[f"{kind}/width"])


def rows_of(op: Op, workload: Workload) -> int:
    return workload.rows(op.output.rows)


def footprint_bytes(ops: Iterable[Op]) -> int:
    """Bytes of weights that a step of these ops runs through."""
    return sum({w.name: w.nbytes for op in ops if isinstance(op, MatMul) for w in op.weights}.values())


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
