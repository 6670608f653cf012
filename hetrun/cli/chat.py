"""`hetrun chat`: a conversation."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.cli.conversation import Conversation, Message
from hetrun.cli.grammar_file import read_grammar, read_tools, structured
from hetrun.errors import ContextError, HetrunError, UsageError

if TYPE_CHECKING:
    from hetrun.api import Model
    from hetrun.run.generate import Generation

HELP = "/help lists the commands, /exit (or Ctrl-D) ends the chat, Ctrl-C stops an answer"
COMMANDS = {
    "/help": "this list",
    "/system TEXT": "tell the model TEXT before the conversation; alone: show it; - : nothing",
    "/history": "show what was said",
    "/undo": "take back the last question and its answer",
    "/retry": "answer the last question again",
    "/tool TEXT": "give TEXT as the result of a tool (with --tools)",
    "/save FILE": "write the conversation to a file",
    "/load FILE": "go on with a conversation of a file",
    "/plan": "show which device runs what",
    "/profile": "after each answer, show where its time went; again: no more",
    "/reset": "forget the conversation",
    "/exit": "end the chat",
}
MULTI_LINE = '"""'
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)


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
@click.option("--tools", metavar="FILE", help="Functions that the model may ask for: JSON, for its template.")
@options.sampling(temperature=0.7)
@structured
@options.context()
@options.placement
@options.common
def command(
    model: str,
    system_prompt: str | None,
    tools: str | None,
    max_tokens: int | None,
    stops: tuple[str, ...],
    json_schema: str | None,
    grammar: str | None,
    choice: options.Choice,
    **sampling: Any,
) -> int:
    """Talks with a model, in the words of its own chat template. What was said before is not run again.

    /help lists the commands. Text of several lines goes between two lines of three quotation marks; a backslash at the
    end of a line goes on in the next. Ctrl-C stops an answer. Where stdin is no terminal, each line of it is a turn.
    With --json every answer is an object in a line of its own.
    """
    from hetrun.cli.loading import load_model
    from hetrun.run.generate import StopFilter
    from hetrun.run.sample import Sampling

    Sampling(**sampling)
    StopFilter(stops)
    settings = {"max_tokens": max_tokens, "stop": stops, "grammar": read_grammar(json_schema, grammar), **sampling}
    functions = read_tools(tools) if tools is not None else None
    with load_model(model, choice) as loaded:
        # A file without a template is refused before the first turn.
        hello = [{"role": "user", "content": "hello"}]
        plain = loaded.chat_template.render(hello)
        if functions is not None and loaded.chat_template.render(hello, tools=functions) == plain:
            raise UsageError("the model's chat template has no place for tools", remedy="leave out --tools")
        return _Chat(loaded, Conversation(system_prompt), functions, settings).run()


class _Chat:
    """The loop that carries a conversation on."""

    def __init__(
        self,
        model: Model,
        conversation: Conversation,
        tools: Sequence[dict[str, Any]] | None,
        settings: dict[str, Any],
    ) -> None:
        self.model = model
        self.conversation = conversation
        self.tools = tools
        self.settings = settings
        self.profiling = False
        self.interactive = sys.stdin.isatty()
        self.as_json = options.flags().json

    def run(self) -> int:
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` a history
            _note(HELP)
        while (turn := self.read()) is not None:
            # A line that begins with a space is no command.
            match = _COMMAND.fullmatch(turn.rstrip())
            try:
                if match and match[1] in ("/exit", "/quit"):
                    break
                if match:
                    self.obey(match[1], (match[2] or "").strip())
                elif turn.strip():
                    self.say("user", turn.strip())
            except HetrunError as error:
                if not self.interactive:
                    raise
                hint = (
                    "/undo takes back a turn, /reset forgets all" if isinstance(error, ContextError) else error.remedy
                )
                _note(f"error: {error.message}" + (f"\nhint: {hint}" if hint else ""))
        return 0

    def read(self) -> str | None:
        """The next turn; None where there is none, or Ctrl-C was pressed instead."""
        try:
            line = self.read_line("> ")
        except (EOFError, KeyboardInterrupt):
            _note("")
            return None
        if line is None or not self.interactive:
            return line
        try:
            return self.read_more(line)
        except KeyboardInterrupt:
            _note("")
            return ""

    def read_line(self, prompt: str) -> str | None:
        if not self.interactive:
            data = sys.stdin.buffer.readline()
            return options.text_of(data, "stdin") if data else None
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline() or None

    def read_more(self, line: str) -> str:
        """The lines that belong to this one, which may open a text of several lines or end with a backslash."""
        lines = [line.rstrip("\n")]
        try:
            if lines[0].lstrip().startswith(MULTI_LINE):
                lines[0] = lines[0].lstrip().removeprefix(MULTI_LINE)
                while not lines[-1].rstrip().endswith(MULTI_LINE):
                    lines.append((self.read_line("... ") or MULTI_LINE).rstrip("\n"))
                lines[-1] = lines[-1].rstrip().removesuffix(MULTI_LINE)
                # A space keeps a text that begins with a slash from being a command.
                return " " + "\n".join(lines).strip("\n")
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1].removesuffix("\\")
                lines.append((self.read_line("... ") or "").rstrip("\n"))
        except EOFError:
            _note("")
        return "\n".join(lines)

    def obey(self, name: str, argument: str) -> None:
        """Does what a command says. UsageError for one that is unknown or lacks its argument."""
        known = {usage.partition(" ")[0]: usage for usage in COMMANDS}
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            did = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"no command {name}", remedy=f"{did}/help lists them; put a space before text with a slash"
            )
        if not argument and known[name].endswith(("FILE", "TEXT")) and name != "/system":
            raise UsageError(f"{name} lacks its argument", remedy=known[name])
        getattr(self, f"do_{name[1:]}")(argument)

    def do_help(self, _: str) -> None:
        width = max(map(len, COMMANDS))
        for usage, meaning in COMMANDS.items():
            _note(f"{usage:{width}}  {meaning}")
        _note(f"{MULTI_LINE:{width}}  begins and ends a text of several lines; a backslash at the end goes on, too")

    def do_system(self, text: str) -> None:
        if not text:
            _note(self.conversation.system or "(nothing)")
            return
        before = self.conversation.system
        self.conversation.system = None if text == "-" else text
        try:
            self.model.chat_template.render([*self.conversation.messages, {"role": "user", "content": "hello"}])
        except HetrunError:  # a template may have no place for it
            self.conversation.system = before
            raise

    def do_history(self, _: str) -> None:
        for message in self.conversation.messages:
            _note(f"{message['role']}: {message['content']}")

    def do_undo(self, _: str) -> None:
        message = self.conversation.take_back()
        _note(f"taken back: {message['content']}" if message else "nothing to take back")

    def do_retry(self, _: str) -> None:
        message = self.conversation.take_back()
        if message is None:
            _note("nothing was asked yet")
        else:
            self.say(message["role"], message["content"])

    def do_tool(self, text: str) -> None:
        if self.tools is None:
            raise UsageError("/tool goes with --tools", remedy="start the chat with --tools FILE")
        self.say("tool", text)

    def do_save(self, path: str) -> None:
        self.conversation.save(path, self.model.path.name)
        _note(f"saved {self.conversation.n_turns} turns")

    def do_load(self, path: str) -> None:
        model = self.conversation.load(path)
        _note(f"loaded {self.conversation.n_turns} turns")
        if model != self.model.path.name:
            _note(f"note: its answers are those of {model or 'another model'}")

    def do_plan(self, _: str) -> None:
        from hetrun.view.plan import print_placement

        print_placement(self.model.plan, self.model.session.runtime.graph, self.model.path.name, to_stderr=True)

    def do_profile(self, _: str) -> None:
        self.profiling = not self.profiling
        self.model.session.record(self.profiling)
        _note("answers are profiled" if self.profiling else "answers are not profiled any more")

    def do_reset(self, _: str) -> None:
        self.conversation.forget()

    def say(self, role: str, content: str) -> None:
        """Says one turn and prints the answer. What cannot be said, since the context is full, is not kept."""
        messages: list[Message] = [*self.conversation.messages, {"role": role, "content": content}]
        self.model.trace.steps.clear()
        generation = self.model.chat(messages, tools=self.tools, **self.settings)
        try:
            for piece in generation:
                if not self.as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            generation.finish_reason = "interrupted"
        self.conversation.messages = [*messages, {"role": "assistant", "content": generation.text}]
        self.show(generation)

    def show(self, generation: Generation) -> None:
        from hetrun.cli.figures import figures, print_line

        if self.as_json:
            print(json.dumps(figures(generation)), flush=True)
        else:
            print(flush=True)
            print_line(generation)
        if self.profiling and self.model.trace.steps:
            from hetrun.run.profile import make_profile
            from hetrun.run.profile_record import profile_record
            from hetrun.view.profile import print_profile

            record = profile_record(make_profile(self.model.trace, self.model.session.runtime))
            print_profile({"model": self.model.path.name, **record}, to_stderr=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr)
