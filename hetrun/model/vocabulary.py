"""The tokens of a GGUF file: bytes, kinds, and the ids that mean something to a runtime.

Nothing here is a copy of the token table: a token's bytes come from the file's own array when they are asked for, so
that a vocabulary of 100,000 tokens costs its kinds, one byte each. The rules are llama.cpp's (llama_vocab::load).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from hetrun.errors import TokenizerError, UnsupportedModelError
from hetrun.model.pretokenizers import PreTokenizer, pre_tokenizer

# Attributes of a token. A GGUF file gives one kind (tokenizer.ggml.token_type); rules by text may add others.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, LSTRIP, RSTRIP = (1 << i for i in range(8))
SPECIAL = CONTROL | USER_DEFINED | UNKNOWN  # matched in the text as a whole, before anything else
HIDDEN = CONTROL | UNKNOWN  # matched only when special tokens are parsed, and left out when they are skipped
_ATTRIBUTE_OF_TYPE = (0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)  # GGUF token types 0 to 6
_NORMAL_TYPE = 1

_END_OF_GENERATION = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
# Roles that llama.cpp finds by text where the file gives no id: the key of that id, whether the token ends generation
# (an infilling model is done when it begins another file), and the texts.
_ROLES = (
    ("fim_pre", False, ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
                        "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>")),
    ("fim_suf", False, ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
                        "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>")),
    ("fim_mid", False, ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
                        "\u2581<MID>", "<|code_middle|>", "<|middle|>")),
    ("fim_pad", True, ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    ("fim_rep", True, ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    ("fim_sep", True, ("<|file_sep|>",)),
)  # fmt: skip
_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss
_STRIPPED = ("<mask>", "<s>", "</s>", "<unk>", "<|endoftext|>")
_WANTED = frozenset(
    (*_END_OF_GENERATION, *_ALWAYS_SHOWN, *_STRIPPED, *(text for _, _, texts in _ROLES for text in texts))
)

# llama.cpp's ids where the file names none: Falcon's for byte-level BPE, Llama's for SentencePiece.
_DEFAULT_IDS = {"bpe": {"bos": 11, "eos": 11}, "spm": {"bos": 1, "eos": 2, "unknown": 0}}
_ALGORITHMS = {"gpt2": "bpe", "llama": "spm"}

_BYTES_OF_CHARS = {chr(b): b for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
_BYTES_OF_CHARS |= {chr(256 + i): b for i, b in enumerate(sorted(set(range(256)) - set(_BYTES_OF_CHARS.values())))}
_LATIN_OF_CHARS = {ord(c): b for c, b in _BYTES_OF_CHARS.items()} | {
    b: 0x100 for b in range(256) if chr(b) not in _BYTES_OF_CHARS
}


class Specials(NamedTuple):
    """attributes: of the tokens whose attributes are not simply those of their kind.   eog_ids: end generation."""

    attributes: Mapping[int, int]
    eog_ids: frozenset[int]


class Vocabulary:
    """The tokens of one file. TokenizerError if the metadata are missing or contradict themselves,
    UnsupportedModelError for a tokenizer that hetrun does not have.

    algorithm: "bpe" (byte-level) or "spm" (SentencePiece).   pre: of "bpe" alone.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        model = self._text("tokenizer.ggml.model", required=True)
        if model not in _ALGORITHMS:
            raise UnsupportedModelError(
                f"tokenizer {model[:80]!r} (tokenizer.ggml.model) is not supported",
                remedy="supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)",
            )
        self.algorithm = _ALGORITHMS[model]
        self.pre = self._pre() if self.algorithm == "bpe" else None
        self.tokens = self._array("tokenizer.ggml.tokens", required=True)
        self.n_tokens = len(self.tokens)
        if self.n_tokens == 0:
            raise TokenizerError("tokenizer.ggml.tokens is empty")
        if not isinstance(self.tokens[0], str):
            raise TokenizerError("tokenizer.ggml.tokens holds something other than strings")
        self.types = self._types()
        self.bos_id = self._id("bos")
        self.eos_id = self._id("eos")
        self.unknown_id = self._id("unknown")
        self._role_ids = {name: self._id(name, _OLD_KEYS.get(name, name)) for name, _, _ in _ROLES}
        self._end_ids = [i for i in (self.eos_id, self._id("eot"), self._id("eom")) if i is not None]
        default_add_bos = self.pre.add_bos if self.pre else True
        self.add_bos = self._flag("tokenizer.ggml.add_bos_token", default_add_bos)
        self.add_eos = self._flag("tokenizer.ggml.add_eos_token", False)
        self.add_space_prefix = self._flag("tokenizer.ggml.add_space_prefix", self.algorithm == "spm")
        if self.algorithm == "bpe":
            self.add_space_prefix = False
        for adds, name, token_id in ((self.add_bos, "bos", self.bos_id), (self.add_eos, "eos", self.eos_id)):
            if adds and token_id is None:
                raise TokenizerError(
                    f"tokenizer.ggml.add_{name}_token is true, but tokenizer.ggml.{name}_token_id is missing"
                )

    def text(self, token_id: int) -> str:
        """A token as the file writes it; llama.cpp's name for an empty one."""
        return str(self.tokens[token_id]) or f"[EMPTY_{token_id}]"

    def texts(self) -> list[str]:
        """Every token as the file writes it, those that are not UTF-8 with U+FFFD inside: see `is_utf8`."""
        listed: list[str] = self.tokens.to_list() if hasattr(self.tokens, "to_list") else list(self.tokens)
        if "" in listed:
            listed = [text or f"[EMPTY_{i}]" for i, text in enumerate(listed)]
        return listed

    def is_utf8(self, token_id: int) -> bool:
        raw = getattr(self.tokens, "raw", None)
        return raw is None or raw(token_id) == self.tokens[token_id].encode()

    def scores(self) -> Sequence[float]:
        """Of "spm": the higher, the earlier a piece is put together. All 0 where the file has none."""
        scores = self._array("tokenizer.ggml.scores")
        if scores is None:
            return [0.0] * self.n_tokens
        self._check_length("tokenizer.ggml.scores", scores)
        return [float(score) for score in scores]

    def merges(self) -> list[str]:
        """Of "bpe": "left right", the earlier the sooner."""
        merges = self._array("tokenizer.ggml.merges", required=True)
        if len(merges) and not isinstance(merges[0], str):
            raise TokenizerError("tokenizer.ggml.merges holds something other than strings")
        listed: list[str] = merges.to_list() if hasattr(merges, "to_list") else list(merges)
        return listed

    def attributes(self, token_id: int) -> int:
        found = self.specials.attributes.get(token_id)
        return _ATTRIBUTE_OF_TYPE[self.types[token_id]] if found is None else found

    def special_ids(self) -> list[int]:
        """Tokens that are matched in the text as a whole: the longest first, among equals the lowest id."""
        candidates = {i for i, kind in enumerate(self.types) if _ATTRIBUTE_OF_TYPE[kind] & SPECIAL}
        candidates.update(self.specials.attributes)
        chosen = sorted(i for i in candidates if self.attributes(i) & SPECIAL and self.is_utf8(i))
        return sorted(chosen, key=lambda i: len(self.text(i).encode()), reverse=True)

    def piece(self, token_id: int) -> bytes:
        """What a token adds to the text: nothing for a token that is marked unused or has an unknown kind."""
        attributes = self.attributes(token_id)
        if attributes & SPECIAL:
            return self.raw(token_id)
        if attributes & NORMAL:
            if self.algorithm == "spm":
                return self.raw(token_id).replace(b"\xe2\x96\x81", b" ")
            return b"".join(
                bytes((_BYTES_OF_CHARS[c],)) if c in _BYTES_OF_CHARS else c.encode() for c in self.text(token_id)
            )
        return self._byte(token_id) if attributes & BYTE else b""

    def pieces(self) -> list[bytes]:
        """`piece` of every token: quicker for all than one by one."""
        found = []
        by_text = self.specials.attributes
        spaces = self.algorithm == "spm"
        for i, text in enumerate(self.texts()):
            if self.types[i] != _NORMAL_TYPE or i in by_text or "\ufffd" in text:
                found.append(self.piece(i))
            elif spaces:
                found.append(text.replace("\u2581", " ").encode())
            else:
                try:
                    found.append(text.translate(_LATIN_OF_CHARS).encode("latin-1"))
                except UnicodeEncodeError:  # a character of no byte
                    found.append(self.piece(i))
        return found

    @cached_property
    def specials(self) -> Specials:
        return self.find_specials(self.tokens)

    def find_specials(self, texts: Iterable[str]) -> Specials:
        """The roles that tokens have by their text. texts: of all tokens, in order."""
        ids = {text: i for i, text in enumerate(texts) if text in _WANTED}
        attributes = {i: _ATTRIBUTE_OF_TYPE[self.types[i]] for i in ids.values()}
        ending: set[int] = set()
        for name, ends, role_texts in _ROLES:
            token_id = self._role_ids[name]
            if token_id is None:
                token_id = next((ids[text] for text in role_texts if text in ids), None)
                if token_id is not None:
                    attributes[token_id] |= CONTROL
            if ends and token_id is not None:
                ending.add(token_id)
        for text in _END_OF_GENERATION:
            if text in ids:
                ending.add(ids[text])
                attributes[ids[text]] |= CONTROL
        for text in _ALWAYS_SHOWN:
            if text in ids:
                attributes[ids[text]] = USER_DEFINED
        ending.update(self._end_ids)

        def ends_generation(*names: str) -> bool:
            return any(ids.get(name) in ending for name in names)

        calls, returns = ends_generation("<|call|>", "<|calls|>"), ends_generation("<|return|>", "<|flush|>")
        if calls and returns and ends_generation("<|end|>"):  # harmony, solar-open: it ends a message, not the answer
            ending.remove(ids["<|end|>"])
            attributes[ids["<|end|>"]] = USER_DEFINED
        if ends_generation("<|tool_response>") and ends_generation("</s>"):  # gemma 4 has an ordinary </s>
            ending.remove(ids["</s>"])
            attributes[ids["</s>"]] = NORMAL
        self._add_strips(ids, attributes)
        found = Specials(attributes, frozenset(ending))
        self.__dict__["specials"] = found
        return found

    def _add_strips(self, ids: Mapping[str, int], attributes: dict[int, int]) -> None:
        """Tokens that swallow the white space beside them: the file does not say, llama.cpp goes by names."""
        pre = self._text("tokenizer.ggml.pre")
        if any(name in pre for name in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
            if "<mask>" in ids:
                attributes[ids["<mask>"]] |= LSTRIP
        elif any(name in self._text("general.name").lower() for name in ("phi-3", "phi3")):
            for i, kind in enumerate(self.types):
                current = attributes.get(i, _ATTRIBUTE_OF_TYPE[kind])
                if current & SPECIAL:
                    attributes[i] = current | RSTRIP
            for text in ("<unk>", "<s>", "<|endoftext|>"):
                if text in ids:
                    attributes[ids[text]] &= ~RSTRIP
            if "</s>" in ids:
                attributes[ids["</s>"]] |= RSTRIP

    def raw(self, token_id: int) -> bytes:
        """A token as the file writes it."""
        raw = getattr(self.tokens, "raw", None)
        return (raw(token_id) if raw else b"") or self.text(token_id).encode()

    def _byte(self, token_id: int) -> bytes:
        text = self.text(token_id)
        try:
            return bytes((int(text[3:5], 16),))
        except ValueError:
            raise TokenizerError(f"token {token_id} is marked as a byte, but reads {text[:20]!r}, not <0x41>") from None

    def _pre(self) -> PreTokenizer:
        name = self._text("tokenizer.ggml.pre")
        if not name:
            warnings.warn(
                "tokenizer.ggml.pre is missing, using 'default', which may cut text unlike training", stacklevel=2
            )
        return pre_tokenizer(name or "default")

    def _types(self) -> bytes:
        key = "tokenizer.ggml.token_type"
        types = self._array(key)
        if types is None:
            return bytes((_NORMAL_TYPE,)) * self.n_tokens
        self._check_length(key, types)
        known = range(len(_ATTRIBUTE_OF_TYPE))
        if not isinstance(types[0], int):
            raise TokenizerError(f"{key} holds something other than integers")
        return bytes(kind if kind in known else 0 for kind in types)

    def _array(self, key: str, *, required: bool = False) -> Any:
        value = self._metadata.get(key)
        if value is None:
            if required:
                raise TokenizerError(f"{key} is missing", remedy="convert the model again, with its tokenizer")
        elif isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise TokenizerError(f"{key} is no array")
        return value

    def _text(self, key: str, *, required: bool = False) -> str:
        value = self._metadata.get(key, "")
        if not isinstance(value, str):
            raise TokenizerError(f"{key} is no string")
        if required and not value:
            raise TokenizerError(f"{key} is missing", remedy="convert the model again, with its tokenizer")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(key, default)
        if not isinstance(value, bool):
            raise TokenizerError(f"{key} is neither true nor false")
        return value

    def _id(self, *names: str) -> int | None:
        """The id under the first of these names that the file has, or llama.cpp's for it if there is such a token."""
        for name in names:
            key = f"tokenizer.ggml.{name}_token_id"
            value = self._metadata.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TokenizerError(f"{key} is no integer")
            if not 0 <= value < self.n_tokens:
                raise TokenizerError(f"{key} is {value}, but there are {self.n_tokens} tokens")
            return value
        if names[0] == "bos" and self.pre is not None and not self.pre.has_default_bos:
            return None
        default = _DEFAULT_IDS[self.algorithm].get(names[0])
        return default if default is not None and default < self.n_tokens else None

    def _check_length(self, key: str, values: Sequence[Any]) -> None:
        if len(values) != self.n_tokens:
            raise TokenizerError(f"{key} has {len(values)} entries for {self.n_tokens} tokens")
