"""Programs of the U280 engine for its timing models: layers of any shape, with no values in them."""

from __future__ import annotations

from dataclasses import dataclass

from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.instruction import Instruction, Place
from hetrun_alveo_u280.timing import Row


@dataclass(frozen=True)
class Layer:
    """format: of its matrices, as HETRUN_U280_FORMAT_* has it.   n_vocab: 0 for no embedding and no head."""

    format: str
    n_embd: int
    n_ff: int
    n_heads: int
    n_heads_kv: int
    head_dim: int
    n_vocab: int = 0
    n_cells: int = 512
    n_slots: int = 8
    sink: int = 0
    window: int = 0
    sink_queries: bool = False  # of their own, which meet the keys of sinks


def program(layer: Layer, n_layers: int = 1) -> list[Instruction]:
    """A decoder's step, as hetrun_alveo_u280.lower orders it."""
    kv = layer.n_heads_kv * layer.head_dim
    q = layer.n_heads * layer.head_dim
    known: list[Instruction] = []
    if layer.n_vocab:
        known.append(_matrix("EMBED", "embd", layer, layer.n_vocab, layer.n_embd))
    for number in range(n_layers):
        known += [_vector("NORM", layer.n_embd), _vector("QUANTIZE", layer.n_embd)]
        known += [_matrix("MATMUL", f"q{number}", layer, q, layer.n_embd), _rope(q, layer)]
        known += [_matrix("MATMUL", f"k{number}", layer, kv, layer.n_embd), _rope(kv, layer)]
        known += [_matrix("MATMUL", f"v{number}", layer, kv, layer.n_embd), _attend(f"kv{number}", layer)]
        known += [_vector("QUANTIZE", q), _matrix("MATMUL", f"o{number}", layer, layer.n_embd, q, flag="ADD")]
        known += [_vector("NORM", layer.n_embd), _vector("QUANTIZE", layer.n_embd)]
        known.append(_matrix("MATMUL", f"gate{number}", layer, layer.n_ff, layer.n_embd))
        known.append(_matrix("MATMUL", f"up{number}", layer, layer.n_ff, layer.n_embd, flag="GATE"))
        known.append(_vector("QUANTIZE", layer.n_ff))
        known.append(_matrix("MATMUL", f"down{number}", layer, layer.n_embd, layer.n_ff, flag="ADD"))
    if layer.n_vocab:
        known += [_vector(op, layer.n_embd, outputs=True) for op in ("SELECT", "NORM", "QUANTIZE")]
        known.append(_matrix("MATMUL", "output", layer, layer.n_vocab, layer.n_embd, outputs=True))
    return [*known, Instruction("END", ())]


def decode(n_seqs: int, n_past: int) -> list[Row]:
    """A token of each sequence behind n_past."""
    return [Row(position=n_past, slot=i, output=i, token=37 * i) for i in range(n_seqs)]


def prefill(n_tokens: int, n_past: int = 0) -> list[Row]:
    """Tokens of one sequence; the logits of the last."""
    return [Row(position=n_past + i, output=0 if i == n_tokens - 1 else -1, token=i) for i in range(n_tokens)]


def encoded(steps: list[Instruction], rows: list[Row]) -> tuple[bytes, bytes]:
    """PROGRAM and ROWS of kernels/alveo_u280/systemc, matrices and caches 2^16 beats apart."""
    names = list(dict.fromkeys(i.hbm for i in steps if i.hbm))
    data = b"".join(i.encode(names.index(i.hbm) << 16 if i.hbm else 0, 1 if i.ddr else 0) for i in steps)
    return data, b"".join(definition().records["Row"].pack(vars(row)) for row in rows)


def _rows(outputs: bool) -> int:
    return definition().numbers["ROWS_OUTPUTS" if outputs else "ROWS_TOKENS"]


def _vector(op: str, n: int, outputs: bool = False) -> Instruction:
    return Instruction(op, (), {"n": n, "group": n, "rows": _rows(outputs)})


def _rope(n: int, layer: Layer) -> Instruction:
    return Instruction(
        "ROPE", (), {"n": n, "group": layer.head_dim, "n_pairs": layer.head_dim // 2, "rows": _rows(False)}
    )


def _matrix(
    op: str, name: str, layer: Layer, n_rows: int, n_columns: int, outputs: bool = False, flag: str = ""
) -> Instruction:
    known = definition().numbers
    numbers = {
        "rows": _rows(outputs),
        "n_rows": n_rows,
        "n_columns": n_columns,
        "format": known[f"FORMAT_{layer.format}"],
    }
    if flag:
        numbers["flags"] = known[f"FLAG_{flag}"]
    return Instruction(op, (), numbers, name, (Place.VALUE, name) if outputs else None)


def _attend(name: str, layer: Layer) -> Instruction:
    fields = ("n_heads", "n_heads_kv", "head_dim", "n_slots", "n_cells", "sink", "window")
    n_ctx = 1 << 20 if layer.window else layer.n_cells
    d = 16 if layer.sink_queries else 0
    return Instruction("ATTEND", (), {"n_ctx": n_ctx, "d": d, **{f: getattr(layer, f) for f in fields}}, name)
