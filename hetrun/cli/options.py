"""Options that several verbs share."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from hetrun.errors import UsageError
from hetrun.model.options import RopeExtension as RopeExtension

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Flags:
    """What is asked of every verb, before or after its name."""

    json: bool = False
    debug: bool = False


def flags() -> Flags:
    """The flags of the running command."""
    found = click.get_current_context().find_root().obj
    return found if isinstance(found, Flags) else Flags()


def _raise_flag(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    root = ctx.find_root()
    if value and parameter.name:
        setattr(root.ensure_object(Flags), parameter.name, True)


def _apply(function: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def common(function: F) -> F:
    """--json and --debug."""
    return _apply(
        function,
        click.option(
            "--json", is_flag=True, expose_value=False, is_eager=True, callback=_raise_flag,
            help="Print the result as JSON.",
        ),
        click.option(
            "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_raise_flag,
            help="Show the traceback of an error.",
        ),
    )  # fmt: skip


def example(*lines: str) -> str:
    """An epilog that shows how a verb is used."""
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))


model = click.option(
    "--model", "-m", required=True, metavar="PATH|NAME", help='A GGUF file, or a name of "hetrun pull --list".'
)


trace = click.option(
    "--trace", metavar="FILE",
    help="Write what ran when, in the Chrome trace format: open it in ui.perfetto.dev or chrome://tracing.",
)  # fmt: skip


def context(default: str = "the model's, at most 4096") -> Callable[[F], F]:
    """--ctx"""
    return click.option(
        "--ctx",
        "n_ctx",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Tokens the context holds (default: {default}).",
    )


def devices(function: F) -> F:
    """--device, --system, --threads."""
    return _apply(
        function,
        click.option(
            "--device", "-d", "devices", multiple=True, metavar="ID",
            help="Run on this device; repeat it for several (default: all that are here).",
        ),
        click.option("--system", metavar="NAME|FILE", help="Devices and their settings from a system file."),
        click.option(
            "--threads", "-t", type=click.IntRange(min=1), metavar="N",
            help="Threads, for devices that have a choice (default: as many as cores).",
        ),
    )  # fmt: skip


def placement(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `devices`, --pin, --plan, --kv-type and --attention: with the verb's own --ctx one argument,
    `choice`.
    """

    @wraps(function)
    def chosen(**given: Any) -> Any:
        choice = Choice(**{field.name: given.pop(field.name) for field in fields(Choice)})
        return function(choice=choice, **given)

    return _apply(
        chosen,
        devices,
        click.option(
            "--pin", "pins", multiple=True, metavar="PATTERN=DEVICE",
            help="Run the ops of that name on that device, such as 'blk.*.ffn_*=reference'; repeatable.",
        ),
        click.option("--plan", "plan_file", metavar="FILE", help='Use the plan that "hetrun plan --save" wrote.'),
        cache,
    )  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """What --attention says: a token attends to the last `window` tokens and the first `sink`.   window 0: to all."""

    sink: int = 0
    window: int = 0

    @classmethod
    def parse(cls, text: str) -> Attention:
        """Reads "full", "window=2044" or "sink=4,window=2044"; UsageError where it is none of them."""
        remedy = "write full, window=2044 or sink=4,window=2044"
        if text == "full":
            return cls()
        numbers: dict[str, int] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if name not in ("sink", "window") or not equals:
                near = difflib.get_close_matches(name, ("full", "sink", "window"), n=1)
                hint = f"did you mean {near[0]!r}? " if near and near[0] != name else ""
                raise UsageError(f"--attention {text}: {part!r} is no policy", remedy=hint + remedy)
            if name in numbers:
                raise UsageError(f"--attention {text}: {name} is given twice", remedy=remedy)
            if not value.isascii() or not value.isdigit() or len(value) > 9:
                raise UsageError(f"--attention {text}: {value!r} is no number of tokens", remedy=remedy)
            numbers[name] = int(value)
        if not numbers.get("window"):
            raise UsageError(f"--attention {text}: a window of 1 token or more is needed", remedy=remedy)
        return cls(**numbers)


FULL_ATTENTION = Attention()


@dataclass(frozen=True)
class Choice:
    """What the options say of devices and placement.   kv_type: None where the devices decide.   n_ctx: None for the
    model's own.
    """

    devices: tuple[str, ...] = ()
    system: str | None = None
    threads: int | None = None
    pins: tuple[str, ...] = ()
    plan_file: str | None = None
    kv_type: str | None = None
    n_ctx: int | None = None
    attention: Attention = FULL_ATTENTION
    extension: RopeExtension | None = None


def cache(function: F) -> F:
    """--kv-type, --attention and --rope-scaling."""
    return _apply(
        function,
        click.option(
            "--kv-type", metavar="FORMAT",
            help="How keys and values are kept: f32, f16, q8_0, kv4 (4 bit) or kv4h (4 bit, rotated first) "
            "(default: f16, or the best that all the devices take).",
        ),
        click.option(
            "--attention", default="full", show_default=True, metavar="POLICY",
            callback=lambda ctx, parameter, value: Attention.parse(value),
            help="What each token sees: full, window=N (the last N), or sink=M,window=N (the first M, too).",
        ),
        click.option(
            "--rope-scaling", "extension", metavar="KIND:FACTOR",
            callback=lambda ctx, parameter, value: RopeExtension.parse(value) if value else None,
            help="A context longer than the model was trained for: yarn:4 or linear:2. Answers get worse.",
        ),
    )  # fmt: skip


def sampling(temperature: float) -> Callable[[F], F]:
    """How tokens are chosen, when generation stops."""

    def decorate(function: F) -> F:
        return _apply(
            function,
            click.option(
                "--max-tokens", "-n", type=click.IntRange(min=0), metavar="N",
                help="Tokens to generate at most (default: 256, less where the context is full).",
            ),
            click.option(
                "--temperature", type=float, default=temperature, show_default=True, metavar="T",
                help="0 takes the most likely token.",
            ),
            click.option(
                "--top-k", type=int, default=40, show_default=True, metavar="K",
                help="Choose among the K most likely; 0: all.",
            ),
            click.option(
                "--top-p", type=float, default=0.95, show_default=True, metavar="P",
                help="Choose among the most likely that together reach P.",
            ),
            click.option(
                "--min-p", type=float, default=0.05, show_default=True, metavar="P",
                help="Choose among those at least P times as likely as the first.",
            ),
            click.option(
                "--repeat-penalty", type=float, default=1.0, show_default=True, metavar="X",
                help="Divide the logits of recent tokens by X.",
            ),
            click.option("--seed", type=int, metavar="N", help="Makes sampling repeatable (default: random)."),
            click.option(
                "--stop", "stops", multiple=True, metavar="TEXT", help="Stop before this text; repeatable."
            ),
        )  # fmt: skip

    return decorate


def text_or_stdin(value: str, option: str) -> str:
    """The text of an option, or of stdin for "-", without the line break that ends it.

    UsageError where it is not UTF-8.
    """
    if value == "-":
        return text_of(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")
    try:
        value.encode()
    except UnicodeEncodeError:  # the shell's bytes that are no text arrive as surrogates
        raise UsageError(f"{option} is not UTF-8 text", remedy="convert it, for example with iconv -t UTF-8") from None
    return value


def text_of(data: bytes, source: str) -> str:
    """Decodes what was read; UsageError names the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            remedy="convert it, for example with iconv -t UTF-8",
        ) from None


def text_of_file(file: str, subject: str) -> str:
    """The text of a file, of stdin for "-". UsageError where it cannot be read, naming `subject`, or is not UTF-8."""
    if file == "-":
        return text_of(sys.stdin.buffer.read(), "stdin")
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{subject}: {error.strerror}", remedy="name a file of text, or - for stdin") from None
    return text_of(data, file)
