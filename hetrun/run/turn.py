"""The last answer of a conversation, and which of its tokens the next prompt begins with."""

from __future__ import annotations

from dataclasses import dataclass

from hetrun.run.generate import Generation


@dataclass(frozen=True)
class Turn:
    """prompt: the text that the generation answers, or answered."""

    prompt: str
    generation: Generation

    def continued(self, text: str) -> tuple[list[int], str]:
        """The ids that ran for the beginning of `text`, and the rest of it. No ids where it begins otherwise.

        Tokens as the model chose them are often not those that encoding their text gives: without this, such an answer
        would be run again. The rest must begin with a special token, so that no other token crosses the cut.
        """
        answer = self.generation
        beginning = self.prompt + answer.text
        rest = text[len(beginning) :]
        if text.startswith(beginning) and answer.tokenizer.begins_special(rest) and self._is_all_shown():
            return [*answer.prompt, *answer.tokens], rest
        return [], text

    def _is_all_shown(self) -> bool:
        """Whether the answer's text is that of its tokens: not of a part, nor with hidden ones among them."""
        stream = self.generation.tokenizer.stream(skip_special=False)
        shown = "".join(map(stream.feed, self.generation.tokens)) + stream.flush()
        return shown == self.generation.text
