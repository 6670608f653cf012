"""Answers held to a JSON schema or a grammar: before each token, the bits of those that may come next.

The grammars are those of the `llguidance` package, an extra (`pip install 'hetrun[grammar]'`), imported here alone.
"""

from __future__ import annotations

import ctypes
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from hetrun.errors import UsageError
from hetrun.model.tokenizer import Tokenizer
from hetrun.run.sample import Sampler, masked

# Between the tokens of JSON: a space, or a line break and what indents. Where any white space may stand for ever, small
# models write it for ever.
_WHITE_SPACE = r"[ ]|\n[ ]{0,32}"
_WORD_BITS = 32


@dataclass(frozen=True)
class Grammar:
    """What a text must be.   text: the schema (JSON), or the grammar (Lark or GBNF).   name: what errors call it."""

    kind: Literal["json_schema", "grammar"]
    text: str
    name: str

    @classmethod
    def of(cls, json_schema: str | Mapping[str, Any] | None, grammar: str | None) -> Grammar:
        """From the arguments of the API, one of which is None. UsageError where none is."""
        if json_schema is not None and grammar is not None:
            raise UsageError("a JSON schema and a grammar exclude each other", remedy="give one of them")
        if json_schema is None:
            return cls("grammar", grammar or "", "the grammar")
        text = json_schema if isinstance(json_schema, str) else json.dumps(json_schema)
        return cls("json_schema", text, "the JSON schema")

    def check(self) -> None:
        """UsageError where it is wrong by itself, or the package is missing. What needs a vocabulary is not checked."""
        self.compiled()

    def compiled(self) -> str:
        """As llguidance takes it."""
        llguidance = _package()
        if self.kind == "json_schema":
            schema = self._json_schema()
            options = {"whitespace_pattern": _WHITE_SPACE} if schema.startswith("{") else None
            compiled = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=options)
        else:
            try:
                compiled = llguidance.grammar_from("grammar", self.text)
            except ValueError as error:  # of a grammar in GBNF
                raise self.error(str(error).rpartition("to Lark: ")[2]) from None
        failed, said = llguidance.LLMatcher.validate_grammar_with_warnings(compiled)
        if failed:
            raise self.error(said[0])
        return str(compiled)

    def error(self, cause: str) -> UsageError:
        # Below the first line is a drawing of where in the grammar.
        remedy = (
            "llguidance's docs/json_schema.md lists the keywords it knows"
            if self.kind == "json_schema"
            else "write it as llguidance takes it: Lark (start: ...) or GBNF (root ::= ...)"
        )
        return UsageError(f"{self.name}: {_first_line(cause)}", remedy=remedy)

    def _json_schema(self) -> str:
        try:
            schema = json.loads(self.text)
        except ValueError as error:
            raise UsageError(f"{self.name} is no JSON: {error}", remedy="correct it there") from None
        except RecursionError:
            raise UsageError(f"{self.name} nests too deeply", remedy="make it flatter") from None
        return json.dumps(schema)


class TokenTable:
    """The vocabulary as llguidance has it: made once for a model (0.1 s for 50,000 tokens), used by many constraints.

    end_ids: tokens that end an answer, wherever the grammar lets it end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        llguidance = _package()
        pieces = tokenizer.pieces()
        self.n_tokens = len(pieces)
        self.end_ids = sorted(tokenizer.eog_ids)
        hidden = tokenizer.hidden_ids()
        # Grammars end with one token. A model that has none gets one that is never chosen.
        self.end_id = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(self.end_ids), len(pieces))
        if self.end_id == len(pieces):
            pieces.append(b"<end>")
        special = sorted({*hidden, *self.end_ids, self.end_id})
        view = _Vocabulary(tokenizer, pieces, special, self.end_id)
        slices = llguidance.LLTokenizer.json_slices()
        self.library: Any = llguidance.LLTokenizer(llguidance.TokenizerWrapper(view), slices=slices)


class Constraint:
    """One text in the making: `choose` takes a token that may come next, `accept` goes on behind it."""

    def __init__(self, grammar: Grammar, table: TokenTable) -> None:
        """UsageError where the grammar names special tokens that the model lacks."""
        llguidance = _package()
        self._grammar = grammar
        self._table = table
        self._matcher: Any = llguidance.LLMatcher(table.library, grammar.compiled(), log_level=0)
        self._check()
        n_words = -(-int(table.library.vocab_size) // _WORD_BITS)
        self._mask = (ctypes.c_uint32 * n_words)()
        self._masked: ctypes.Array[ctypes.c_float] | None = None
        self._prepared = False

    @property
    def complete(self) -> bool:
        """Whether nothing more may come."""
        return bool(self._matcher.is_stopped())

    def choose(self, sampler: Sampler, logits: memoryview[float]) -> int:
        """What the sampler takes of the tokens that may come, after `prepare` or without it.

        Where it takes the most likely token, and that one may come, no other needs to be looked at: a fortieth of the
        time, and most tokens of a model that was asked for what it is held to.
        """
        if sampler.takes_best and not self._prepared:
            token = sampler.draw(logits)
            if self._may_come(token):
                sampler.keep(token)
                return token
            self.prepare()
        return sampler.choose(self.allowed(logits))

    def prepare(self) -> None:
        """Finds the tokens that may come next. May run while a device works on their logits."""
        self._matcher.unsafe_compute_mask_ptr(ctypes.addressof(self._mask), ctypes.sizeof(self._mask))
        self._check()
        end = self._table.end_id
        if self._mask[end // _WORD_BITS] >> end % _WORD_BITS & 1:
            for i in self._table.end_ids:
                self._mask[i // _WORD_BITS] |= 1 << i % _WORD_BITS
        self._prepared = True

    def allowed(self, logits: memoryview[float]) -> memoryview[float]:
        """The logits, float32 [n_vocab], NaN for tokens that `prepare` did not find; valid until the next call."""
        if self._masked is None or len(self._masked) != len(logits):
            self._masked = (ctypes.c_float * len(logits))()
        return masked(logits, self._mask, self._table.n_tokens, self._masked)

    def accept(self, token: int) -> None:
        """Goes on behind a token that was allowed, and does not end the answer."""
        self._matcher.consume_token(token)
        self._check()
        self._prepared = False

    def _may_come(self, token: int) -> bool:
        if token in self._table.end_ids:
            return bool(self._matcher.is_accepting())
        return token < self._table.n_tokens and bool(self._matcher.validate_tokens([token]))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._grammar.error(str(self._matcher.get_error()))


class _Vocabulary:
    """What llguidance asks a tokenizer for."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], special: list[int], end_id: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = pieces
        self.special_token_ids = special
        self.eos_token_id = end_id
        self.bos_token_id = tokenizer.bos_id

    def __call__(self, text: bytes) -> list[int]:
        """The ids of text that must come as it is, such as a key of an object."""
        return self._tokenizer.encode(text, add_special=False, add_prefix=False)


def _package() -> ModuleType:
    try:
        return import_module("llguidance")
    except ImportError as error:
        machine = platform.machine()
        remedy = "pip install 'hetrun[grammar]'"
        if machine not in ("x86_64", "aarch64", "AMD64", "arm64"):
            remedy += f"; it has no wheel for {machine}, so that needs a Rust compiler: rustup.rs"
        raise UsageError(f"JSON schemas and grammars need the package llguidance ({error})", remedy=remedy) from None


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it is not valid"]
    # A regular expression's error names its cause last.
    cause = next((line for line in lines if line.startswith("error: ")), "")
    return f"{lines[0]} {cause}".strip() if cause and cause not in lines[0] else lines[0]
