"""SmolLM2-135M with zeros around it, so that every tensor type fits: n_embd 576 -> 768, 9 heads -> 12, 3 KV heads -> 4.

    python benchmarks/accuracy/padded_model.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out padded-F32.gguf

Rows of 576 are no multiple of a super-block of 256, rows of 768 are. The function is the same: what is added is zero
everywhere, and a norm over 768 numbers of which 192 are zero equals one over 576 with eps * 576 / 768 and a weight
* sqrt(576 / 768). All tensors are F32, dequantised from the file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

WIDTHS = {576: 768, 192: 256}
"""Of embeddings and all query heads; of all KV heads. n_ff and the vocabulary stay."""

SIZES = {"llama.embedding_length": 768, "llama.attention.head_count": 12, "llama.attention.head_count_kv": 4}
EPS = "llama.attention.layer_norm_rms_epsilon"


def write_padded(source: Path, target: Path) -> None:
    """The model with zeros around it."""

    def key(name: str, value: object) -> object:
        return float(value) * 576 / 768 if name == EPS else SIZES.get(name, value)  # type: ignore[arg-type]

    def tensor(values: NDArray[np.float32]) -> NDArray[np.float32]:
        padded = np.pad(values, [(0, WIDTHS.get(n, n) - n) for n in values.shape])
        return padded * np.float32(math.sqrt(576 / 768)) if values.ndim == 1 else padded

    _rewrite(source, target, key, tensor)


def write_float32(source: Path, target: Path) -> None:
    """The same model with all tensors in F32."""
    _rewrite(source, target, lambda name, value: value, lambda values: values)


def _rewrite(
    source: Path,
    target: Path,
    key: Callable[[str, object], object],
    tensor: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    """Writes the model beside `target` first, so that a file under that name is whole."""
    reader = gguf.GGUFReader(source)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        items = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, key(name, field.contents()), kind, items)
    for item in reader.tensors:
        values = dequantize(item.data, item.tensor_type).astype(np.float32)
        writer.add_tensor(item.name, tensor(values.reshape([int(n) for n in reversed(item.shape)])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_padded(args.model, args.out)


if __name__ == "__main__":
    main()
