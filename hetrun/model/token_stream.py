"""Text from tokens that arrive one by one."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class TokenStream:
    """Holds back the bytes of an unfinished UTF-8 character until the next tokens finish it.

    What is fed and flushed, joined, is the decoding of all bytes at once, with U+FFFD in place of invalid ones.
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        """piece: the bytes that a token adds to the text."""
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes, often empty. TokenizerError for an id outside the vocabulary."""
        return self._decoder.decode(self._piece(token_id))

    def flush(self) -> str:
        """The end of the text: U+FFFD if a character was left unfinished. The stream then starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
