"""Text to tokens and back, as llama.cpp does it, from the metadata of a GGUF file.

Decoding reads the file's own token table. Only encoding builds maps (and, for byte-level BPE, imports the `tokenizers`
library), when it is first asked to; `release_encoder` gives them back, so that a run holds them while it needs them.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from hetrun.errors import TokenizerError
from hetrun.model.bpe_encoder import BpeEncoder
from hetrun.model.spm_encoder import SpmEncoder
from hetrun.model.token_stream import TokenStream
from hetrun.model.vocabulary import CONTROL, HIDDEN, LSTRIP, RSTRIP, Vocabulary

__all__ = ["TokenStream", "Tokenizer"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_C_WHITE_SPACE = " \t\n\v\f\r"


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def repair(self, data: bytes) -> str: ...


class Tokenizer:
    """Byte-level BPE (tokenizer.ggml.model "gpt2") or SentencePiece BPE ("llama").

    n_vocab: number of tokens; ids are 0 to n_vocab - 1.   bos_id, eos_id: None where the model has none.
    add_bos, add_eos: what `encode` adds to a text.   eog_ids: tokens at which generation ends.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._encoder: _Encoder | None = None
        self._specials: list[tuple[int, str, int]] | None = None
        self.n_vocab = vocabulary.n_tokens
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """metadata: of a GGUF file, by key; arrays are sequences (`MetadataArray`s or lists).

        TokenizerError if keys are missing or contradict each other; UnsupportedModelError for a tokenizer or
        pre-tokenizer that hetrun does not have. What only encoding needs (merges, scores) is checked when it does.
        """
        return cls(Vocabulary(metadata))

    @property
    def eog_ids(self) -> frozenset[int]:
        return self._vocabulary.specials.eog_ids

    def encode(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False, add_prefix: bool = True
    ) -> list[int]:
        """The ids of a text. Bytes that are no UTF-8 become what llama.cpp makes of them: byte tokens (SentencePiece)
        or U+FFFD.

        add_special: put the beginning- and end-of-sequence tokens around it, where the model wants them.
        parse_special: read the text of control tokens ("<|im_start|>") as these tokens: for prompts made by a chat
        template, not for what a stranger wrote. Tokens that the model's users defined are always read so.
        add_prefix: put the space before a text that SentencePiece models begin with; False where it goes on in a word.
        Lone surrogates, which no UTF-8 text has, count as U+FFFD.
        """
        # A byte that is not UTF-8 is a lone surrogate until its encoder sees it; no other surrogate is left.
        text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else _without_surrogates(text)
        vocabulary, encoder = self._vocabulary, self._built_encoder()
        ids: list[int] = []
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        after_special = add_prefix
        for fragment in self._fragments(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                prefix = " " if vocabulary.add_space_prefix and after_special else ""
                fragment = prefix + fragment
                if _SURROGATE.search(fragment):
                    fragment = encoder.repair(fragment.encode("utf-8", "surrogateescape"))
                ids += encoder.encode(fragment)
            after_special = isinstance(fragment, int)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of tokens; what is no UTF-8 becomes U+FFFD. TokenizerError for an id outside the vocabulary.

        skip_special: leave out control tokens. The space that `encode` puts before a text (SentencePiece) is dropped.
        Spaces before punctuation stay, also where llama.cpp's detokenizer cleans them up: decoding loses nothing.
        """
        pieces: list[bytes] = []
        at_start = self._vocabulary.add_space_prefix
        for token_id in ids:
            piece = self._piece(token_id, skip_special)
            if at_start and not self._vocabulary.attributes(token_id) & CONTROL:
                piece = piece.removeprefix(b" ")
                at_start = False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def stream(self, skip_special: bool = True) -> TokenStream:
        """Decodes what continues a text, token by token; unlike `decode` it drops no leading space."""
        return TokenStream(partial(self._piece, skip_special=skip_special))

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, control tokens as they are written. TokenizerError for an unknown id."""
        return self._piece(token_id, skip_special=False)

    def pieces(self) -> list[bytes]:
        """`token_bytes` of every token, in order."""
        return self._vocabulary.pieces()

    def hidden_ids(self) -> list[int]:
        """Tokens that are no part of what a reader sees: control tokens and the unknown one."""
        return [i for i in range(self.n_vocab) if self._vocabulary.attributes(i) & HIDDEN]

    def token_text(self, token_id: int) -> str:
        """A token for people to read, with U+FFFD where it is part of a character. TokenizerError for an unknown id."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def release_encoder(self) -> None:
        """Give the memory of the maps that `encode` needs back to the system. `encode` builds them again."""
        self._encoder = None
        try:
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory otherwise: 19 MB after SmolLM2's
        except (AttributeError, OSError, TypeError):  # another C library, which has no such call
            return

    def _piece(self, token_id: int, skip_special: bool) -> bytes:
        if not 0 <= token_id < self.n_vocab:
            raise TokenizerError(f"token {token_id} is not in the vocabulary: ids are 0 to {self.n_vocab - 1}")
        if skip_special and self._vocabulary.attributes(token_id) & HIDDEN:
            return b""
        return self._vocabulary.piece(token_id)

    def _built_encoder(self) -> _Encoder:
        if self._encoder is None:
            vocabulary = self._vocabulary
            texts = vocabulary.texts()
            if len(set(texts)) != len(texts):
                _refuse_equal_tokens(vocabulary, texts)
            if "specials" not in vocabulary.__dict__:
                vocabulary.find_specials(texts)
            encoder = BpeEncoder if vocabulary.algorithm == "bpe" else SpmEncoder
            self._encoder = encoder(vocabulary, texts)
        return self._encoder

    def begins_special(self, text: str) -> bool:
        """Whether a text for `encode(parse_special=True)` begins with a special token."""
        return any(text.startswith(token) for _, token, _ in self._listed_specials())

    def _listed_specials(self) -> list[tuple[int, str, int]]:
        """(id, text, attributes) of each special token, in the order in which they are looked for: thousands in some
        models.
        """
        if self._specials is None:
            vocabulary = self._vocabulary
            ids = vocabulary.special_ids()
            self._specials = [(i, vocabulary.text(i), vocabulary.attributes(i)) for i in ids]
        return self._specials

    def _fragments(self, text: str, parse_special: bool) -> list[str | int]:
        """The text cut at its special tokens, in which longer tokens go before shorter ones."""
        fragments: list[str | int] = [text] if text else []
        for token_id, token, attributes in self._listed_specials():
            if token in text and (parse_special or not attributes & HIDDEN):
                fragments = [part for fragment in fragments for part in _cut(fragment, token, token_id, attributes)]
        return fragments


def _cut(fragment: str | int, token: str, token_id: int, attributes: int) -> list[str | int]:
    if isinstance(fragment, int) or token not in fragment:
        return [fragment]
    pieces = fragment.split(token)
    parts: list[str | int] = []
    for i, piece in enumerate(pieces):
        if i > 0:
            parts.append(token_id)
            piece = piece.lstrip(_C_WHITE_SPACE) if attributes & RSTRIP else piece
        if i < len(pieces) - 1 and attributes & LSTRIP:
            piece = piece.rstrip(_C_WHITE_SPACE)
        if piece:
            parts.append(piece)
    return parts


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _refuse_equal_tokens(vocabulary: Vocabulary, texts: list[str]) -> None:
    first: dict[bytes, int] = {}
    for i, text in enumerate(texts):
        same = first.setdefault(vocabulary.raw(i), i)
        if same != i:
            raise TokenizerError(f"tokens {same} and {i} of tokenizer.ggml.tokens are the same: {text[:40]!r}")
