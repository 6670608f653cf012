from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrun.errors import TokenizerError, UnsupportedModelError
from hetrun.model.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_CHARS = [chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
BYTE_CHARS += [chr(256 + i) for i in range(256 - len(BYTE_CHARS))]


def byte_level(*extra: tuple[str, int], more_merges: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """All bytes, "he", "hel" and two control tokens (256 to 259), then `extra`. changes: None removes a key."""
    entries = [(char, NORMAL) for char in BYTE_CHARS]
    entries += [("he", NORMAL), ("hel", NORMAL), ("<|bos|>", CONTROL), ("<|im_end|>", CONTROL), *extra]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [text for text, _ in entries],
        "token_type": [kind for _, kind in entries],
        "merges": ["h e", "he l", *more_merges],
        "bos_token_id": 258,
        "eos_token_id": 259,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}


def sentencepiece(*extra: tuple[str, int, float], **changes: Any) -> dict[str, Any]:
    """<unk>, <s>, </s>, all bytes (3 to 258), "▁" 259, "a" 260, "b" 261, "ab" 262, then `extra`."""
    entries: list[tuple[str, int, float]] = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    entries += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
    entries += [("\u2581", NORMAL, -9.0), ("a", NORMAL, -9.0), ("b", NORMAL, -9.0), ("ab", NORMAL, -1.0), *extra]
    metadata = {
        "model": "llama",
        "tokens": [text for text, _, _ in entries],
        "token_type": [kind for _, kind, _ in entries],
        "scores": [score for _, _, score in entries],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None}


BYTE_LEVEL = Tokenizer.from_metadata(byte_level(("<tool>", USER_DEFINED)))
SENTENCEPIECE = Tokenizer.from_metadata(sentencepiece())


# Encoding


def test_merges_are_applied() -> None:
    assert BYTE_LEVEL.encode("hel") == [257]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte_level", "sentencepiece"])
def test_empty_text_has_only_what_the_model_adds(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == ([tokenizer.bos_id] if tokenizer.add_bos else [])


@given(st.text())
def test_byte_level_decoding_inverts_encoding(text: str) -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text, add_special=False)) == text


@given(st.text().filter(lambda text: "\u2581" not in text))
def test_sentencepiece_decoding_inverts_encoding(text: str) -> None:
    assert SENTENCEPIECE.decode(SENTENCEPIECE.encode(text), skip_special=True) == text


def test_lone_surrogate_counts_as_replacement_character() -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("a\ud800b")) == "a\ufffdb"


def test_nul_characters_are_text() -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("a\0b\0")) == "a\0b\0"


def test_control_token_in_text_is_text_unless_parsed() -> None:
    assert 259 not in BYTE_LEVEL.encode("<|im_end|>")
    assert BYTE_LEVEL.encode("<|im_end|>", parse_special=True) == [259]


def test_user_defined_token_is_always_parsed() -> None:
    assert BYTE_LEVEL.encode("<tool>") == [260]


def test_longer_special_token_goes_first() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(("<t>", USER_DEFINED), ("<t>x", USER_DEFINED)))
    assert tokenizer.encode("<t>x<t>") == [261, 260]


def test_byte_without_a_token_is_dropped_and_its_neighbours_stay_apart() -> None:
    metadata = byte_level()
    i = metadata["tokenizer.ggml.tokens"].index("\u0101")  # byte 0x01
    metadata["tokenizer.ggml.tokens"][i] = "[unused]"
    h, e = (metadata["tokenizer.ggml.tokens"].index(char) for char in "he")
    assert Tokenizer.from_metadata(metadata).encode("h\x01e") == [h, e]


def test_word_that_is_a_token_wins_over_merges_in_llama_3_alone() -> None:
    ids = {
        pre: Tokenizer.from_metadata(byte_level(("help", NORMAL), pre=pre)).encode("help", add_special=False)
        for pre in ("llama-bpe", "dbrx")
    }
    assert ids["llama-bpe"] == [260]
    assert ids["dbrx"] == [257, BYTE_CHARS.index("p")]


def test_first_of_equal_merges_counts() -> None:
    merges = ("l p", "he lp", "he l")
    tokenizer = Tokenizer.from_metadata(byte_level(("lp", NORMAL), ("help", NORMAL), more_merges=merges))
    assert tokenizer.encode("help") == [257, BYTE_CHARS.index("p")]


def test_pieces_of_equal_score_are_merged_from_the_left() -> None:
    tokenizer = Tokenizer.from_metadata(sentencepiece(("ba", NORMAL, -1.0), add_bos_token=False))
    assert tokenizer.encode("aba") == [259, 262, 260]
    assert tokenizer.encode("bab") == [259, 263, 261]


def test_higher_score_is_merged_first() -> None:
    tokenizer = Tokenizer.from_metadata(sentencepiece(("ba", NORMAL, -0.5), add_bos_token=False))
    assert tokenizer.encode("aba") == [259, 260, 263]


def test_piece_is_found_though_its_parts_are_no_tokens() -> None:
    tokenizer = Tokenizer.from_metadata(sentencepiece(("xy", NORMAL, -1.0), add_bos_token=False))
    assert tokenizer.encode("xy") == [259, 263]


def test_character_without_a_token_becomes_bytes() -> None:
    assert SENTENCEPIECE.encode("\u00e9", add_special=False) == [259, 3 + 0xC3, 3 + 0xA9]


@pytest.mark.parametrize("text", ["a" * 100_000, " " * 100_000, " " * 100_000 + "\u05d0", "'" * 100_000])
@pytest.mark.parametrize("pre", ["default", "llama-bpe", "deepseek-llm", "deepseek-v3", "sentencepiece"])
def test_long_runs_are_encoded(pre: str, text: str) -> None:
    metadata = sentencepiece() if pre == "sentencepiece" else byte_level(pre=pre)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


def test_text_of_many_parts_has_the_ids_of_its_words() -> None:
    word = BYTE_LEVEL.encode(" hello")
    assert BYTE_LEVEL.encode(" hello" * 40_000) == word * 40_000


def test_released_encoder_is_built_again() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level())
    first = tokenizer.encode("hello")
    tokenizer.release_encoder()
    assert tokenizer.encode("hello") == first


def test_decoding_does_not_import_the_tokenizers_library() -> None:
    code = """
import sys
from hetrun.model.tokenizer import Tokenizer
tokenizer = Tokenizer.from_metadata({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": []})
assert tokenizer.decode([0, 1]) == "ab" and tokenizer.eog_ids == frozenset()
print([name for name in ("tokenizers", "numpy", "gguf", "jinja2", "logging") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# Beginning and end


@pytest.mark.parametrize(
    ("pre", "changes", "ids"),
    [
        ("gpt-2", {}, [257]),
        ("llama-bpe", {}, [258, 257]),
        ("llama-bpe", {"add_bos_token": False}, [257]),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, [258, 257, 259]),
    ],
)
def test_tokens_added_around_a_text(pre: str, changes: dict[str, Any], ids: list[int]) -> None:
    assert Tokenizer.from_metadata(byte_level(pre=pre, **changes)).encode("hel") == ids


def test_written_bos_comes_after_the_added_one() -> None:
    assert SENTENCEPIECE.encode("<s>a", parse_special=True) == [1, 1, 259, 260]


def test_ids_of_bos_and_eos_where_the_file_has_none() -> None:
    assert (SENTENCEPIECE.bos_id, SENTENCEPIECE.eos_id) == (1, 2)


def test_end_of_turn_ends_generation_though_it_is_not_eos() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(("<stop>", CONTROL), eos_token_id=260))
    assert tokenizer.eog_ids == {259, 260}


# Decoding


def test_stream_holds_back_an_unfinished_character() -> None:
    stream = BYTE_LEVEL.stream()
    ids = BYTE_LEVEL.encode("\u20ac")
    assert [stream.feed(i) for i in ids] == ["", "", "\u20ac"]


@given(st.lists(st.integers(0, BYTE_LEVEL.n_vocab - 1)))
def test_stream_gives_the_decoded_text(ids: list[int]) -> None:
    stream = BYTE_LEVEL.stream(skip_special=False)
    assert "".join([*map(stream.feed, ids), stream.flush()]) == BYTE_LEVEL.decode(ids)


def test_flush_marks_an_unfinished_character() -> None:
    stream = BYTE_LEVEL.stream()
    stream.feed(BYTE_LEVEL.encode("\u20ac")[0])
    assert (stream.flush(), stream.flush()) == ("\ufffd", "")


def test_invalid_bytes_become_replacement_characters() -> None:
    ids = BYTE_LEVEL.encode("\u20ac")
    assert BYTE_LEVEL.decode([ids[1], ids[0], BYTE_CHARS.index("a")]) == "\ufffd\ufffda"


def test_control_tokens_can_be_skipped() -> None:
    assert BYTE_LEVEL.decode([258, 257, 259], skip_special=True) == "hel"
    assert BYTE_LEVEL.decode([258, 257, 259]) == "<|bos|>hel<|im_end|>"


def test_unused_token_adds_nothing() -> None:
    assert Tokenizer.from_metadata(byte_level(("[PAD0]", UNUSED))).decode([260, 257]) == "hel"


@pytest.mark.parametrize("token_id", [-1, BYTE_LEVEL.n_vocab])
def test_unknown_id_is_refused(token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"token {token_id} is not in the vocabulary"):
        BYTE_LEVEL.decode([token_id])


def test_token_text_is_readable() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(("\u0120hi", NORMAL)))
    assert tokenizer.token_text(260) == " hi"


# Metadata that cannot be meant


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "tokenizer.ggml.model is missing"),
        (byte_level(tokens=None), "tokenizer.ggml.tokens is missing"),
        (byte_level(tokens=[]), "tokenizer.ggml.tokens is empty"),
        (byte_level(tokens=[1, 2]), "something other than strings"),
        (byte_level(tokens="abc"), "tokenizer.ggml.tokens is no array"),
        (byte_level(token_type=[1]), "token_type has 1 entries for 260 tokens"),
        (byte_level(token_type=["x"] * 260), "something other than integers"),
        (byte_level(bos_token_id=260), "bos_token_id is 260, but there are 260 tokens"),
        (byte_level(eot_token_id=-1), "eot_token_id is -1"),
        (byte_level(bos_token_id="x"), "bos_token_id is no integer"),
        (byte_level(add_bos_token=1), "add_bos_token is neither true nor false"),
        (byte_level(pre=3), "tokenizer.ggml.pre is no string"),
        (byte_level(pre="glm4", bos_token_id=None, add_bos_token=True), "bos_token_id is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_metadata_is_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_metadata(metadata)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level(merges=None), "merges is missing"),
        (byte_level(merges=["h zz"]), "merges does not fit tokenizer.ggml.tokens"),
        (byte_level(merges=[1]), "something other than strings"),
        (byte_level(("he", NORMAL)), "tokens 256 and 260 of tokenizer.ggml.tokens are the same: 'he'"),
        (sentencepiece(scores=[0.0]), "scores has 1 entries for 263 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_metadata_that_only_encoding_needs_is_refused_there(metadata: dict[str, Any], message: str) -> None:
    tokenizer = Tokenizer.from_metadata(metadata)
    with pytest.raises(TokenizerError, match=message):
        tokenizer.encode("x")


def test_byte_token_that_is_no_byte_is_refused() -> None:
    with pytest.raises(TokenizerError, match="token 263 is marked as a byte"):
        Tokenizer.from_metadata(sentencepiece(("zz", BYTE, 0.0))).decode([263])


@pytest.mark.parametrize(
    ("changes", "message"), [({"model": "t5"}, "tokenizer 't5'"), ({"pre": "kimi-k2"}, "pre-tokenizer 'kimi-k2'")]
)
def test_unknown_tokenizer_is_named_with_what_is_supported(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        Tokenizer.from_metadata(byte_level(**changes))
    assert caught.value.remedy is not None and "supported are" in caught.value.remedy


def test_missing_pre_tokenizer_is_the_default_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="pre is missing, using 'default'"):
        tokenizer = Tokenizer.from_metadata(byte_level(pre=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default = Tokenizer.from_metadata(byte_level(pre="default"))
    assert tokenizer.encode("a1234") == default.encode("a1234")


def test_token_that_is_not_utf8_is_kept_as_bytes() -> None:
    class Tokens(list[str]):
        """As MetadataArray gives them: text with U+FFFD, and the bytes themselves."""

        def raw(self, index: int) -> bytes:
            return b"\xff\xfe" if index == len(self) - 1 else self[index].encode()

    metadata = byte_level(("\ufffd\ufffd", USER_DEFINED))
    metadata["tokenizer.ggml.tokens"] = Tokens(metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.token_bytes(260) == b"\xff\xfe"
    assert 260 not in tokenizer.encode("\ufffd\ufffd")
