"""`hetrun chat`: a conversation."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import ContextError

if TYPE_CHECKING:
    from hetrun.api import Model
    from hetrun.run.generate import Generation

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer"


@click.command(
    "chat",
    short_help="Talk with a model.",
    epilog=options.example(
        "hetrun chat --model smollm2-135m",
        'printf "Hello\\nAnd what is 2 + 2?\\n" | hetrun chat --model smollm2-135m --json',
    ),
)
@options.model
@click.option("--system-prompt", metavar="TEXT", help="What the model is told before the conversation.")
@options.sampling(temperature=0.7)
@options.context()
@options.placement
@options.common
def command(
    model: str,
    system_prompt: str | None,
    max_tokens: int | None,
    stops: tuple[str, ...],
    n_ctx: int | None,
    devices: tuple[str, ...],
    system: str | None,
    threads: int | None,
    pins: tuple[str, ...],
    plan_file: str | None,
    kv_type: str,
    attention: options.Attention,
    extension: options.RopeExtension | None,
    **sampling: Any,
) -> int:
    """Talks with a model, in the words of its own chat template. What was said before is not run again.

    /reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer. Where stdin is no terminal,
    each line of it is a turn. With --json every answer is an object in a line of its own.
    """
    from hetrun.cli.loading import Choice, load_model
    from hetrun.run.generate import StopFilter
    from hetrun.run.sample import Sampling

    Sampling(**sampling)
    StopFilter(stops)
    with load_model(
        model, Choice(devices, system, threads, pins, plan_file, kv_type, n_ctx, attention, extension)
    ) as loaded:
        # A file without a template is refused before the first turn.
        loaded.chat_prompt([{"role": "user", "content": "hello"}])
        chat = _Chat(loaded, system_prompt, max_tokens, {"stop": stops, **sampling})
        return chat.run()


class _Chat:
    """The conversation so far, and the loop that carries it on."""

    def __init__(
        self, model: Model, system_prompt: str | None, max_tokens: int | None, settings: dict[str, Any]
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.settings = settings
        self.opening = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.messages = list(self.opening)
        self.interactive = sys.stdin.isatty()
        self.as_json = options.flags().json

    def run(self) -> int:
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` a history
            print(HELP, file=sys.stderr)
        while (turn := self.read()) is not None:
            turn = turn.strip()
            if turn in ("/exit", "/quit"):
                break
            if turn == "/reset":
                self.messages = list(self.opening)
            elif turn == "/help":
                print(HELP, file=sys.stderr)
            elif turn:
                self.answer(turn)
        return 0

    def read(self) -> str | None:
        """The next turn; None where there is none, or Ctrl-C was pressed instead."""
        try:
            if not self.interactive:
                line = sys.stdin.buffer.readline()
                return options.text_of(line, "stdin") if line else None
            if sys.stdout.isatty():
                return input("> ")
            print("> ", end="", file=sys.stderr, flush=True)
            return sys.stdin.readline() or None
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return None

    def answer(self, turn: str) -> None:
        """Says one turn and prints the answer. A conversation that is full loses the turn where someone is there to
        react.
        """
        messages = [*self.messages, {"role": "user", "content": turn}]
        try:
            generation = self.generation(messages)
        except ContextError as error:
            if not self.interactive:
                raise
            print(f"error: {error.message}\nhint: /reset forgets the conversation", file=sys.stderr)
            return
        try:
            for piece in generation:
                if not self.as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            generation.finish_reason = "interrupted"
        self.messages = [*messages, {"role": "assistant", "content": generation.text}]
        self.show(generation)

    def generation(self, messages: list[dict[str, str]]) -> Generation:
        return self.model.chat(messages, max_tokens=self.max_tokens, **self.settings)

    def show(self, generation: Generation) -> None:
        from hetrun.cli.figures import figures, print_line

        if self.as_json:
            print(json.dumps(figures(generation)), flush=True)
        else:
            print(flush=True)
            print_line(generation)
