"""Answers held to JSON schemas and grammars; `jsonschema` and a regular expression say whether they keep to them."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import require
from golden.tokenizer.make_goldens import FOLDER, read_vocabulary
from models import tiny_llama

import hetrun
from hetrun.errors import UsageError
from hetrun.model.tokenizer import Tokenizer
from hetrun.run import constraint
from hetrun.run.constraint import Constraint, Grammar, TokenTable
from hetrun.run.sample import Sampler, Sampling, masked


@pytest.fixture(autouse=True, scope="module")
def package() -> None:
    require.require_module("llguidance", "pip install 'hetrun[grammar]'")


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": PERSON,
    "choice": {"enum": ["red", "green", 3, None]},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "nested": {
        "type": "object",
        "properties": {
            "people": {"type": "array", "items": {"$ref": "#/$defs/p"}, "minItems": 1, "maxItems": 2},
            "kind": {"const": "list"},
        },
        "required": ["people", "kind"],
        "additionalProperties": False,
        "$defs": {"p": PERSON},
    },
    "either": {"anyOf": [{"type": "string", "pattern": "^[a-c]{2,5}$"}, {"type": "array", "maxItems": 0}]},
    "format": {"type": "string", "format": "date"},
    "number": {"type": "number", "minimum": -1, "maximum": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hetrun.api.Model]:
    with hetrun.load(tiny_llama(tmp_path_factory.mktemp("model") / "m.gguf"), devices=["cpu"]) as loaded:
        yield loaded


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_sampled_json_is_of_the_schema(
    model: hetrun.api.Model, schema: dict[str, Any], seed: int, require_module: Callable[[str, str], ModuleType]
) -> None:
    jsonschema = require_module("jsonschema", "pip install 'jsonschema>=4'")
    generation = model.generate(
        "x", json_schema=schema, max_tokens=400, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed
    )
    value = json.loads(generation.finish())
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    assert list(checker.iter_errors(value)) == []
    assert generation.finish_reason == "end"


def test_the_most_likely_token_is_taken_of_those_allowed(model: hetrun.api.Model) -> None:
    assert model.generate("x", grammar='start: "the" | "and"', max_tokens=9).finish() in ("the", "and")


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('start: ("a" | "b")~3 WORD\nWORD: /[x-z]{2}/', "[ab]{3}[x-z]{2}"),
        ('root ::= item ("," item)?\nitem ::= [0-9] [0-9]', r"\d\d(,\d\d)?"),
        ("start: /[\u03b1-\u03c9]{3}/", "[\u03b1-\u03c9]{3}"),
        ('start: "\u00e9\U0001f999"', "\u00e9\U0001f999"),
    ],
    ids=["lark", "gbnf", "letters-of-two-bytes", "bytes-of-one-character"],
)
def test_text_is_of_the_grammar(model: hetrun.api.Model, grammar: str, pattern: str) -> None:
    for seed in range(3):
        generation = model.generate("x", grammar=grammar, max_tokens=64, temperature=2.0, seed=seed)
        assert re.fullmatch(pattern, generation.finish())


def test_penalties_and_filters_stay_within_the_grammar(model: hetrun.api.Model) -> None:
    for settings in ({"repeat_penalty": 3.0}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.01}):
        assert re.fullmatch("[qz]{6}", model.generate("x", grammar="start: /[qz]{6}/", seed=1, **settings).finish())


def test_it_ends_only_where_the_grammar_lets_it(model: hetrun.api.Model) -> None:
    """A step more is not run once nothing may follow; the number of tokens still counts."""
    generation = model.generate("x", grammar='start: "abc"')
    assert (generation.finish(), generation.finish_reason) == ("abc", "end")
    assert model.session.length() == len(generation.prompt) + len(generation.tokens) - 1
    cut = model.generate("x", grammar="start: /[a-z]{30}/", max_tokens=2)
    assert (len(cut.finish()) < 30, cut.finish_reason) == (True, "length")


def test_every_token_that_ends_an_answer_may_end_it(model: hetrun.api.Model) -> None:
    table = TokenTable(model.tokenizer)
    held = Constraint(Grammar("grammar", "start: /[a-z]*/", "g"), table)
    held.prepare()
    logits = memoryview(array("f", range(model.n_vocab)))
    allowed = {i for i, x in enumerate(held.allowed(logits)) if x == x}
    assert model.tokenizer.eog_ids <= allowed
    letters = {i for i in range(model.n_vocab) if re.fullmatch(b"[a-z]+", model.tokenizer.token_bytes(i))}
    assert allowed == letters | model.tokenizer.eog_ids


def test_hidden_tokens_are_no_text(model: hetrun.api.Model) -> None:
    """ "<|im_start|>" as a token would not be seen: as text it is spelt."""
    generation = model.generate("x", grammar='start: "<|im_start|>"', max_tokens=40)
    assert generation.finish() == "<|im_start|>"
    assert not set(generation.tokens) & set(model.tokenizer.hidden_ids())


def test_a_grammar_may_name_special_tokens(model: hetrun.api.Model) -> None:
    generation = model.generate("x", grammar='start: <|im_start|> "a"', max_tokens=40)
    assert generation.finish() == "a"
    assert generation.tokens[0] == model.tokenize("<|im_start|>", parse_special=True)[0]
    with pytest.raises(UsageError, match="unknown special token"):
        model.generate("x", grammar='start: <|nothing|> "a"')


def test_pieces_are_those_of_each_token(model: hetrun.api.Model) -> None:
    tokenizer = model.tokenizer
    assert tokenizer.pieces() == [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]


@pytest.mark.parametrize("n_bits", [0, 1, 31, 32, 33, 64, 70, 99])
def test_masked_logits_are_those_whose_bit_is_set(n_bits: int) -> None:
    bits = [i for i in range(n_bits) if i % 3 == 0 or i > 60]
    mask = (ctypes.c_uint32 * 4)()
    for i in [*bits, 90]:  # a bit beyond the tokens counts for nothing
        mask[i // 32] |= 1 << i % 32
    logits = memoryview(array("f", [float(i) for i in range(70)]))
    found = masked(logits, mask, n_bits, (ctypes.c_float * 70)())
    wanted = {i for i in [*bits, 90] if i < min(n_bits, 70)}
    assert {i: x for i, x in enumerate(found) if x == x} == {i: float(i) for i in wanted}


def test_a_masked_token_is_never_drawn() -> None:
    mask = (ctypes.c_uint32 * 1)(0b100100)
    logits = memoryview(array("f", [9.0, 8.0, -5.0, 7.0, 6.0, -6.0]))
    sampler = Sampler(Sampling(temperature=50.0, top_k=0, top_p=1.0, min_p=0.0, seed=0))
    drawn = {sampler.choose(masked(logits, mask, 6, (ctypes.c_float * 6)())) for _ in range(200)}
    assert drawn == {2, 5}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"json_schema": "{"}, "the JSON schema is no JSON: Expecting property name"),
        ({"json_schema": "[" * 100_000}, "the JSON schema nests too deeply"),
        ({"json_schema": "[1]"}, "the JSON schema: schema must be an object or boolean"),
        ({"json_schema": {"type": "objekt"}}, "the JSON schema: Invalid type: objekt"),
        ({"json_schema": {"$ref": "#/x"}}, "the JSON schema: Pointer '/x' does not exist"),
        ({"json_schema": False}, "the JSON schema: Unsatisfiable schema: schema is false"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "the JSON schema: regex parse error.*unclosed group"),
        ({"grammar": ""}, "the grammar: "),
        ({"grammar": 'start: "a" b'}, 'the grammar: at 1.8.: unknown name: "b"'),
        ({"grammar": 'root ::= "a" b'}, "the grammar: Rule 'b' not found"),
        ({"grammar": "start: /[/"}, "the grammar: at 1.8.: invalid regex"),
        ({"grammar": 'start: "a"', "json_schema": {}}, "exclude each other"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(model: hetrun.api.Model, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        model.generate("x", **options)
    assert "\n" not in caught.value.message
    assert caught.value.remedy


def test_what_the_grammar_does_not_take_is_an_error(model: hetrun.api.Model) -> None:
    held = Constraint(Grammar("grammar", 'start: "ab"', "some.lark"), TokenTable(model.tokenizer))
    held.prepare()
    with pytest.raises(UsageError, match=r"some\.lark: "):
        held.accept(model.tokenize("b", add_special=False)[0])


@pytest.mark.parametrize(("machine", "says"), [("armv7l", "no wheel for armv7l"), ("x86_64", "hetrun[grammar]")])
def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, machine: str, says: str) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(constraint.platform, "machine", lambda: machine)
    with pytest.raises(UsageError, match="need the package llguidance") as caught:
        Grammar("grammar", 'start: "a"', "g").check()
    assert says in (caught.value.remedy or "")


def test_generating_without_a_grammar_does_not_import_it(tmp_path: Path) -> None:
    code = """
import sys, hetrun
with hetrun.load(sys.argv[1], devices=["cpu"]) as model:
    model.generate("the", max_tokens=2).finish()
print([m for m in ("llguidance", "hetrun.run.constraint", "numpy") if m in sys.modules])
"""
    path = tiny_llama(tmp_path / "m.gguf")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["object", "list", "either"])
def test_looking_at_the_best_token_alone_changes_nothing(
    model: hetrun.api.Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Greedy choice asks whether the best token may come; with the mask of all tokens it takes the same ones."""
    settings: dict[str, Any] = {"json_schema": SCHEMAS[name], "max_tokens": 200, "repeat_penalty": 1.3}
    quick = model.generate("x", **settings)
    quick.finish()
    choose = Constraint.choose

    def with_mask(self: Constraint, sampler: Sampler, logits: memoryview) -> int:
        self.prepare()
        return choose(self, sampler, logits)

    monkeypatch.setattr(Constraint, "choose", with_mask)
    thorough = model.generate("x", **settings)
    thorough.finish()
    assert quick.tokens == thorough.tokens


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocabulary", ["byte_level", "sentencepiece", "sentencepiece_phrases"])
def test_every_kind_of_vocabulary_can_spell_a_schema(vocabulary: str, seed: int) -> None:
    """Tokens drawn at random of those allowed. A text that must come as it is has no space put before it."""
    metadata = read_vocabulary(FOLDER / f"{vocabulary}.gguf")
    tokenizer = Tokenizer.from_metadata(metadata)
    held = Constraint(Grammar("json_schema", json.dumps(PERSON), "schema"), TokenTable(tokenizer))
    sampler = Sampler(Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed))
    text = b""
    for _ in range(200):
        held.prepare()
        token = held.choose(sampler, memoryview(array("f", [0.0] * tokenizer.n_vocab)))
        if token in tokenizer.eog_ids:
            break
        text += tokenizer.token_bytes(token)
        held.accept(token)
        if held.complete:
            break
    assert sorted(json.loads(text)) == ["age", "name"]
