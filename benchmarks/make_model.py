"""Writes llama models with random weights in the shape of TinyLlama-1.1B: the weights are valid, the text is noise.

    python benchmarks/make_model.py --type Q4_K_M --out q4_k_m.gguf [--layers 22]

The same arguments give the same file. Which tensor gets which type is llama.cpp's choice for the file type
(llama_tensor_get_type without an importance matrix), so that a file costs what a real one does.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

N_EMBD, N_FF, N_LAYERS, N_HEADS, N_KV_HEADS, N_VOCAB, N_CTX = 2048, 5632, 22, 32, 4, 32_000, 16_384
FILE_TYPES = ("Q4_0", "Q4_K_M", "Q3_K_S", "Q2_K", "Q8_0")
FLOAT_TYPES = ("F16", "BF16")
SPREAD = 0.03  # of weights, as trained matrices of this width have

# Byte offset in a block of each float16 scale, and the scale that gives uniformly random codes about that spread, and a
# mean of zero.
SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 6.5e-3),),
    "Q8_0": ((0, 4.0e-4),),
    "Q2_K": ((80, 2.8e-3), (82, 4.2e-3)),
    "Q3_K": ((108, 7e-4),),
    "Q4_K": ((0, 2.0e-4), (2, 1.5e-3)),
    "Q6_K": ((208, 2.2e-5),),
}


def tensor_type(file_type: str, name: str, layer: int, n_layers: int) -> str:
    """The type of a matrix: its name without "blk.N." and ".weight"."""
    if file_type in FLOAT_TYPES:
        return file_type
    if name == "output":
        return "Q8_0" if file_type == "Q8_0" else "Q6_K"
    if file_type == "Q4_K_M":
        eighth = n_layers // 8
        more = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
        return "Q6_K" if name in ("attn_v", "ffn_down") and more else "Q4_K"
    if file_type == "Q2_K":
        return {"attn_v": "Q4_K", "ffn_down": "Q3_K", "attn_output": "Q3_K"}.get(name, "Q2_K")
    return {"Q3_K_S": "Q3_K"}.get(file_type, file_type)


def tensors(file_type: str, n_layers: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, type, shape) of each tensor, in file order."""
    n_kv = N_EMBD // N_HEADS * N_KV_HEADS
    matrices = {
        "attn_q": (N_EMBD, N_EMBD),
        "attn_k": (n_kv, N_EMBD),
        "attn_v": (n_kv, N_EMBD),
        "attn_output": (N_EMBD, N_EMBD),
        "ffn_gate": (N_FF, N_EMBD),
        "ffn_up": (N_FF, N_EMBD),
        "ffn_down": (N_EMBD, N_FF),
    }
    yield "token_embd.weight", tensor_type(file_type, "token_embd", -1, n_layers), (N_VOCAB, N_EMBD)
    for layer in range(n_layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", "F32", (N_EMBD,)
        for name, shape in matrices.items():
            yield f"blk.{layer}.{name}.weight", tensor_type(file_type, name, layer, n_layers), shape
    yield "output_norm.weight", "F32", (N_EMBD,)
    yield "output.weight", tensor_type(file_type, "output", -1, n_layers), (N_VOCAB, N_EMBD)


def random_tensor(name: str, type_name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """float32 [n] for vectors; uint8 [rows, bytes a row] for matrices."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(f"{name} {type_name} {shape}".encode())))
    if type_name == "F32":
        return (1.0 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if type_name in FLOAT_TYPES:
        values = np.float32(SPREAD) * rng.standard_normal(shape, np.float32)
        stored: NDArray[np.uint8] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name]).view(np.uint8)
        return stored
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    n_blocks = shape[0] * shape[1] // block_size
    blocks = np.frombuffer(rng.bytes(n_blocks * block_bytes), np.uint8).reshape(n_blocks, block_bytes).copy()
    for offset, scale in SCALES[type_name]:
        scales = (scale * rng.uniform(0.5, 1.5, n_blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(n_blocks, 2)
    return blocks.reshape(shape[0], -1)


def write_model(path: Path, file_type: str, n_layers: int = N_LAYERS) -> None:
    """Writes the model beside `path` first, so that a file under that name is whole."""
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(f"random {file_type}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(n_layers)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_dimension_count(N_EMBD // N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer)
    kinds = {name: (type_name, shape) for name, type_name, shape in tensors(file_type, n_layers)}
    for name, (type_name, shape) in kinds.items():
        kind = gguf.GGMLQuantizationType[type_name]
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_elements = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_elements // block_size * block_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (type_name, shape) in kinds.items():
        writer.write_tensor_data(random_tensor(name, type_name, shape))
    writer.close()
    partial.rename(path)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    special = [b"<unk>", b"<s>", b"</s>"]
    texts = [*special, *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    rest = N_VOCAB - len(texts)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*texts, *(f"w{i}".encode() for i in range(rest))])
    writer.add_token_scores([0.0] * len(texts) + [-float(i) for i in range(rest)])
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * rest])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=(*FILE_TYPES, *FLOAT_TYPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=N_LAYERS)
    args = parser.parse_args()
    write_model(args.out, args.type, args.layers)


if __name__ == "__main__":
    main()
