"""Byte-level BPE: the `tokenizers` library, built from a file's tokens and merges.

The library gets JSON, with merges in their older form ("left right"): for SmolLM2's 49,152 tokens and 48,900 merges the
process then peaks at 39 MB, against 52 MB with Python objects and 59 MB with merges as pairs (measured, x86-64).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from hetrun.errors import TokenizerError
from hetrun.model.vocabulary import Vocabulary

_NEEDS_ESCAPE = re.compile(r'["\\\x00-\x1f]')
# The library would close the gap that a character outside the vocabulary leaves, and merge across it. As a token of its
# own it stays there until it is dropped.
_GAP = "\0gap"
# The library needs 200 bytes a character, so that a long text is encoded in parts. Between two words of the Latin
# alphabet every pre-tokenizer cuts, and none looks across.
_PART_LENGTH = 1 << 16
_BETWEEN_WORDS = re.compile("(?<=[A-Za-z])(?= [A-Za-z])")


class BpeEncoder:
    """texts: all tokens as the file writes them. TokenizerError if tokens or merges contradict themselves."""

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[str]) -> None:
        from tokenizers import Regex, Tokenizer, pre_tokenizers

        assert vocabulary.pre is not None
        self._n_tokens = vocabulary.n_tokens
        source = _model_json(vocabulary, texts)
        try:
            self._library = Tokenizer.from_buffer(source)
        except ValueError as error:
            cause = " ".join(str(error).split())[:200]
            raise TokenizerError(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {cause}") from None
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in vocabulary.pre.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._library.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            cut = _BETWEEN_WORDS.search(text, start + _PART_LENGTH)
            end = cut.start() if cut else len(text)
            ids += self._library.encode(text[start:end], add_special_tokens=False).ids
            start = end
        return [i for i in ids if i != self._n_tokens] if self._n_tokens in ids else ids

    def repair(self, data: bytes) -> str:
        """Text of bytes that are not UTF-8, as llama.cpp decodes it: U+FFFD for a byte that begins no character, and
        characters in more bytes than they need (unicode_cpt_from_utf8). A surrogate becomes U+FFFD here alone.
        """
        found = []
        i = 0
        while i < len(data):
            first = data[i]
            n = 1 if first < 0x80 else 0 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            rest = data[i + 1 : i + n]
            if n == 0 or first >= 0xF8 or len(rest) < n - 1 or any(byte & 0xC0 != 0x80 for byte in rest):
                found.append("\ufffd")
                i += 1
                continue
            point = first if n == 1 else first & (0x7F >> n)
            for byte in rest:
                point = point << 6 | byte & 0x3F
            found.append("\ufffd" if 0xD800 <= point < 0xE000 or point > 0x10FFFF else chr(point))
            i += n
        return "".join(found)


def _model_json(vocabulary: Vocabulary, texts: Sequence[str]) -> bytes:
    entries = [
        f"{_quoted(text)}:{i}"
        for i, text in enumerate(texts)
        if "\ufffd" not in text or vocabulary.is_utf8(i)  # no text encodes to bytes that are not UTF-8
    ]
    entries.append(f"{json.dumps(_GAP)}:{vocabulary.n_tokens}")
    parts = [
        '{"version":"1.0","added_tokens":[],"model":{"type":"BPE","fuse_unk":false,"unk_token":',
        json.dumps(_GAP),
        ',"ignore_merges":true' if vocabulary.pre and vocabulary.pre.ignore_merges else "",
        ',"vocab":{',
        ",".join(entries),
        '},"merges":[',
    ]
    del entries
    parts.append(",".join(map(_quoted, _usable_merges(vocabulary))))
    parts.append("]}}")
    return "".join(parts).encode()


def _usable_merges(vocabulary: Vocabulary) -> Sequence[str]:
    """Merges of two tokens; of equal ones the first, as in llama.cpp, where the library takes the last."""
    merges = vocabulary.merges()
    if len(set(merges)) != len(merges):
        merges = list(dict.fromkeys(merges))
    if any(merge.count(" ") != 1 for merge in merges):
        merges = [merge for merge in merges if merge.count(" ") == 1]  # a byte-level token holds no space
    return merges


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if _NEEDS_ESCAPE.search(text) else f'"{text}"'
