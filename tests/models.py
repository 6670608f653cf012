"""Tiny llama models with random weights, written by the gguf package: whole models that load in milliseconds."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun.testing.blocks import random_blocks

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", "and", "ing", " the", " and", " of", " to", " in", "er", "on", "it", "is")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llama(
    path: str | Path,
    n_layers: int = 2,
    quant: str = "Q8_0",
    seed: int = 0,
    *,
    n_ctx: int = 512,
    architecture: str = "llama",
    tied: bool = False,
    chat_template: str | None = CHAT_TEMPLATE,
    metadata: Mapping[str, Any] | None = None,
    vocab_only: bool = False,
    split: int = 0,
    small_first: bool = False,
) -> Path:
    """Writes a llama model and returns its path. The same arguments give the same file.

    quant: type of every matrix, the output head apart.   tied: no output head, the embedding serves.
    metadata: keys under the architecture's name, in place of the usual ones ({"context_length": 1 << 20}).
    vocab_only: no tensors and no architecture's keys.
    split: into files of that many tensors at most, the first of none with `small_first`; returned is the first's path.
    The head never prefers control tokens or bytes that are not printable: answers are readable and of full length.
    """
    path = Path(path)
    tokens, merges = _vocabulary()
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split, small_first_shard=small_first)
    writer.add_name(f"tiny {architecture} {quant}")
    _add_tokenizer(writer, tokens, merges, chat_template)
    if not vocab_only:
        wide = TENSOR_TYPES[quant].block_size > 32
        sizes = {
            "context_length": n_ctx,
            "embedding_length": 256 if wide else 64,
            "block_count": n_layers,
            "feed_forward_length": 512 if wide else 160,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            **(metadata or {}),
        }
        for key, value in sizes.items():
            writer.add_uint32(f"{architecture}.{key}", value)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        for weight in _weights(sizes, n_layers, quant, len(tokens), tied):
            _add_tensor(writer, weight, seed, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if split else path


def _vocabulary() -> tuple[list[str], list[str]]:
    """(tokens, merges) of a byte-level BPE: 256 bytes, the steps to each word, and the control tokens."""
    letters = _byte_letters()
    tokens = [letters[byte] for byte in range(256)]
    merges: list[str] = []
    for word in WORDS:
        left = letters[ord(word[0])]
        for character in word[1:]:
            right = letters[ord(character)]
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    return [*tokens, *CONTROL_TOKENS], merges


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary, as GPT-2 numbers them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + i) for i, byte in enumerate(list(hidden))})
    return [letters[byte] for byte in range(256)]


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str], merges: list[str], template: str | None) -> None:
    n_plain = len(tokens) - len(CONTROL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * n_plain + [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(n_plain + CONTROL_TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(n_plain + CONTROL_TOKENS.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _weights(sizes: Mapping[str, Any], n_layers: int, quant: str, n_vocab: int, tied: bool) -> list[Weight]:
    matrix, vector = TENSOR_TYPES[quant], TENSOR_TYPES["F32"]
    n_embd, n_ff = sizes["embedding_length"], sizes["feed_forward_length"]
    n_kv = n_embd // sizes["attention.head_count"] * sizes["attention.head_count_kv"]
    weights = [Weight("token_embd.weight", matrix, (n_vocab, n_embd))]
    for layer in range(n_layers):
        matrices = {
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_kv, n_embd),
            "attn_v": (n_kv, n_embd),
            "attn_output": (n_embd, n_embd),
            "ffn_gate": (n_ff, n_embd),
            "ffn_up": (n_ff, n_embd),
            "ffn_down": (n_embd, n_ff),
        }
        weights += [Weight(f"blk.{layer}.{name}.weight", matrix, shape) for name, shape in matrices.items()]
        weights += [Weight(f"blk.{layer}.{name}.weight", vector, (n_embd,)) for name in ("attn_norm", "ffn_norm")]
    weights.append(Weight("output_norm.weight", vector, (n_embd,)))
    if not tied:
        weights.append(Weight("output.weight", TENSOR_TYPES["F16"], (n_vocab, n_embd)))
    return weights


def _add_tensor(writer: gguf.GGUFWriter, weight: Weight, seed: int, tokens: list[str]) -> None:
    kind = gguf.GGMLQuantizationType[weight.type.name]
    if weight.type.block_size == 256 or weight.type.name == "NVFP4":
        seeded = Weight(f"{seed}:{weight.name}", weight.type, weight.shape)
        blocks = np.frombuffer(random_blocks(seeded), np.uint8).reshape(weight.shape[0], -1)
        writer.add_tensor(weight.name, blocks, raw_dtype=kind)
        return
    rng = np.random.default_rng([seed, zlib.crc32(weight.name.encode())])
    values = rng.normal(0.0, weight.shape[-1] ** -0.5, weight.shape).astype(np.float32)
    if len(weight.shape) == 1:
        values = 1.0 + 0.1 * rng.normal(size=weight.shape).astype(np.float32)
    if weight.name == "output.weight":
        # Logits of a spread of 3: far enough apart that two correct devices choose the same token.
        values *= 3.0
        values[[not _is_readable(token) for token in tokens]] = 0.0
    if weight.type.name == "F32":
        writer.add_tensor(weight.name, values)
    elif weight.type.name == "F16":
        writer.add_tensor(weight.name, values.astype(np.float16))
    else:
        writer.add_tensor(weight.name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _is_readable(token: str) -> bool:
    space = _byte_letters()[0x20]
    return token not in CONTROL_TOKENS and all(" " < c < "\x7f" or c == space for c in token)
