"""Makes the vocabularies of this folder and llama.cpp's ids for them.

    pip install gguf tokenizers llama-cpp-python==0.3.36
    python tests/golden/tokenizer/make_goldens.py vocabularies    # *.gguf
    python tests/golden/tokenizer/make_goldens.py goldens SmolLM2-135M-Instruct.Q4_1.gguf    # goldens.json

The vocabularies are small and nasty rather than good: equal scores, pieces whose parts are no tokens, a missing byte,
words that no merge reaches, user-defined tokens inside one another. None holds a NUL: llama.cpp ends a token there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from sample_text import STRINGS, random_strings

FOLDER = Path(__file__).parent
PRE_TOKENIZERS = (
    "default",
    "gpt-2",
    "smollm",
    "falcon",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
MISSING_BYTE = "\u0101"  # byte 0x01 in the byte-level alphabet


def train(vocab_size: int, *, byte_level: bool) -> tuple[list[str], list[str]]:
    """Tokens and merges ("left right") of a BPE over the sample text.

    The byte-level one is trained on text that is not cut into words, so that its merges cross every place where some
    pre-tokenizer cuts: a cut in the wrong place changes the ids.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else []
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False) if byte_level else pre_tokenizers.Metaspace()
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    plain = [text for text in random_strings(1, 3000) + STRINGS * 10 if "<" not in text and "\0" not in text]
    tokenizer.train_from_iterator(plain, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, merges


def byte_level_vocabulary() -> dict[str, Any]:
    tokens, merges = train(1800, byte_level=True)
    tokens = [token for token in tokens if MISSING_BYTE not in token]
    merges = [merge for merge in merges if MISSING_BYTE not in merge]
    entries = [(token, NORMAL) for token in tokens]
    entries[:0] = [("<|endoftext|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<unk>", UNKNOWN)]
    entries += [
        (text, NORMAL) for text in ("\u0120tokenization", "retokenized", "\u0120queen", "WORLD") if text not in tokens
    ]
    entries += [
        ("<tool>", USER_DEFINED),
        ("<tool_call>", USER_DEFINED),
        ("<aba>", USER_DEFINED),
        ("ab><", USER_DEFINED),
    ]
    entries += [("</s>", CONTROL), ("<s>", CONTROL)]
    entries += [("[unused1]", UNUSED), ("", NORMAL), ("[PAD]", CONTROL)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [text for text, _ in entries],
        "tokenizer.ggml.token_type": [kind for _, kind in entries],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": len(entries) - 1,
    }


def sentencepiece_vocabulary(*, phrases: bool) -> dict[str, Any]:
    """phrases: with tokens that hold a space inside, so that words cannot be encoded apart."""
    tokens, _ = train(700, byte_level=False)
    dropped = {"q", "z", "Z", "<", "\u4e2d"}  # pieces that hold them stay
    pieces = [token for token in tokens if token not in dropped]
    pieces += [f"of{SPACE}the", f"a{SPACE}", f"{SPACE}in{SPACE}the"] if phrases else []
    pieces += [text for text in ("<s", "s>", SPACE * 2, SPACE * 4, "zz") if text not in pieces]
    entries = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    entries += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
    entries += [(piece, NORMAL, -float(i // 7)) for i, piece in enumerate(pieces)]
    entries += [("<tool>", USER_DEFINED, 0.0), ("<tool_call>", USER_DEFINED, 0.0), ("<|im_start|>", CONTROL, 0.0)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in entries],
        "tokenizer.ggml.token_type": [kind for _, kind, _ in entries],
        "tokenizer.ggml.scores": [score for _, _, score in entries],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write_vocabulary(path: Path, metadata: Mapping[str, Any]) -> None:
    """A GGUF file with the sizes that llama.cpp asks of a llama model, a vocabulary, and no tensor."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_vocabulary(path: Path) -> dict[str, Any]:
    """The tokenizer's metadata as plain values, read by the gguf package."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


class LlamaCpp:
    """llama.cpp's tokenizer of a GGUF file."""

    def __init__(self, path: Path) -> None:
        from llama_cpp import Llama

        self.llama = Llama(str(path), vocab_only=True, verbose=False)

    def encode(self, text: str | bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return self.llama.tokenize(data, add_bos=add_special, special=parse_special)

    def eog_ids(self) -> set[int]:
        import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        return {i for i in range(self.llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, i)}

    def piece(self, token_id: int) -> bytes:
        import ctypes

        import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        buffer = ctypes.create_string_buffer(1024)
        n = llama_cpp.llama_token_to_piece(vocab, token_id, buffer, len(buffer), 0, True)
        return buffer.raw[:n]


@contextmanager
def llama_cpp_of(metadata: Mapping[str, Any]) -> Iterator[LlamaCpp]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(path, metadata)
        yield LlamaCpp(path)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each vocabulary under each pre-tokenizer, and with the other settings of beginning, end and prefix."""
    byte_level = read_vocabulary(FOLDER / "byte_level.gguf")
    for pre in PRE_TOKENIZERS:
        yield f"byte_level-{pre}", byte_level | {"tokenizer.ggml.pre": pre}
    bos_eos = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    yield "byte_level-bos-eos", byte_level | {"tokenizer.ggml.pre": "qwen2"} | bos_eos
    yield "byte_level-phi3", byte_level | {"tokenizer.ggml.pre": "gpt-2", "general.name": "Phi-3 mini"}
    sentencepiece = read_vocabulary(FOLDER / "sentencepiece.gguf")
    yield "sentencepiece", sentencepiece
    yield (
        "sentencepiece-no-prefix",
        sentencepiece
        | {
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_eos_token": True,
        },
    )
    yield "sentencepiece-phrases", read_vocabulary(FOLDER / "sentencepiece_phrases.gguf")


def golden_texts() -> list[str]:
    return STRINGS + [text for text in random_strings(2, 150) if text not in STRINGS]


def make_goldens(smollm2: Path) -> dict[str, Any]:
    """texts, and for each variant and setting of parse_special the ids: an index into `ids` a text."""
    texts = golden_texts()
    index: dict[tuple[int, ...], int] = {}

    def answer(llama: LlamaCpp) -> dict[str, Any]:
        found: dict[str, Any] = {"eog_ids": sorted(llama.eog_ids())}
        for mode in ("plain", "parsed"):
            encoded = (llama.encode(text, add_special=True, parse_special=mode == "parsed") for text in texts)
            found[mode] = [index.setdefault(tuple(ids), len(index)) for ids in encoded]
        return found

    answers = {"smollm2": answer(LlamaCpp(smollm2))}
    for name, metadata in variants():
        with llama_cpp_of(metadata) as llama:
            answers[name] = answer(llama)
    return {"made_by": "llama-cpp-python 0.3.36", "texts": texts, "ids": list(index), "answers": answers}


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["vocabularies"]:
        write_vocabulary(FOLDER / "byte_level.gguf", byte_level_vocabulary())
        write_vocabulary(FOLDER / "sentencepiece.gguf", sentencepiece_vocabulary(phrases=False))
        write_vocabulary(FOLDER / "sentencepiece_phrases.gguf", sentencepiece_vocabulary(phrases=True))
    elif arguments[:1] == ["goldens"]:
        text = json.dumps(make_goldens(Path(arguments[1])), ensure_ascii=True, separators=(",", ":"))
        (FOLDER / "goldens.json").write_text(text + "\n")
    else:
        print(__doc__, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
