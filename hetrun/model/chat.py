"""Chat messages to a prompt, by the template that a model brings with it.

A template is a program from a stranger's file. It runs in jinja2's immutable sandbox, in this process, with limits on
time, on output and on everything it builds on the way (see `chat_sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hetrun.errors import ChatTemplateError
from hetrun.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hetrun.model.chat_sandbox import Sandbox

TIME_LIMIT_S = 2.0
OUTPUT_LIMIT_BYTES = 1 << 20

_KEY = "tokenizer.chat_template"


class ChatTemplate:
    """The templates of one model.   names: "default", and variants such as "tool_use"."""

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        bos_token: str = "",
        eos_token: str = "",
        time_limit_s: float = TIME_LIMIT_S,
        output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
    ) -> None:
        self.names = tuple(templates)
        self._templates = dict(templates)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._time_limit_s = time_limit_s
        self._output_limit_bytes = output_limit_bytes
        self._sandbox: Sandbox | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
        """None if the file has no template: nothing is guessed, since a model answers badly to the wrong one."""
        templates = {}
        for key, value in metadata.items():
            if key == _KEY or key.startswith(f"{_KEY}."):
                if not isinstance(value, str):
                    raise ChatTemplateError(f"{key} is no string")
                if value:
                    templates[key[len(_KEY) + 1 :] or "default"] = value
        if not templates:
            return None
        bos, eos = (
            "" if token_id is None else tokenizer.token_text(token_id)
            for token_id in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(templates, bos_token=bos, eos_token=eos)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for messages, each with at least "role" and "content". Encode it with parse_special=True, and with
        add_special=False: the template writes the beginning of the sequence itself.

        add_generation_prompt: end where the assistant's answer begins.   tools: descriptions as JSON values; the
        variant "tool_use" is taken for them, where there is one.   extra: further variables of the template.
        ChatTemplateError if the template refuses the messages, fails, or exceeds a limit.
        """
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ChatTemplateError(
                "the model has no default chat template", remedy=f"it has {', '.join(self.names)}, which need tools"
            )
        if self._sandbox is None:
            from hetrun.model.chat_sandbox import Sandbox

            self._sandbox = Sandbox(self._time_limit_s, self._output_limit_bytes)
        variables = {
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **extra,
        }
        return self._sandbox.render(self._templates[name], variables)
