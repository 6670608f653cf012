"""The entry point: finds the verb, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hetrun import __version__
from hetrun.cli.options import Flags, common
from hetrun.errors import HetrunError, UsageError

if TYPE_CHECKING:
    from hetrun.plugins import Registry

VERBS = (
    "generate", "chat", "pull", "inspect", "tokenize", "perplexity", "devices", "plan", "calibrate", "bench", "profile",
    "explore", "build", "compress",
)  # fmt: skip

# Beside the codes of `hetrun.errors`; docs/cli.md lists all.
EXIT_NO_MEMORY = 7
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class Verbs(click.Group):
    """Imports a verb's module when the verb is used; plugins are loaded only where no verb of our own has the name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *sorted(self._plugin_verbs(ctx))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in VERBS:
            command = importlib.import_module(f"hetrun.cli.{name}").command
            assert isinstance(command, click.Command)
            return command
        return self._plugin_verbs(ctx).get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"verbs: {', '.join(known)}"
            raise UsageError(f"no verb {name!r}", remedy=f'{hint} "hetrun -h" tells more')
        return name, command, args[1:]

    def _plugin_verbs(self, ctx: click.Context) -> dict[str, click.Command]:
        verbs: dict[str, click.Command] | None = ctx.meta.get("hetrun.plugin_verbs")
        if verbs is None:
            from hetrun.plugins import Registry

            verbs = {c.name: c for c in _commands_of(Registry.load()) if c.name and c.name not in VERBS}
            ctx.meta["hetrun.plugin_verbs"] = verbs
        return verbs


def _commands_of(registry: Registry) -> Iterator[click.Command]:
    for _, commands in registry.hook_results("hetrun_commands"):
        if isinstance(commands, Sequence):
            yield from (c for c in commands if isinstance(c, click.Command))


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='"hetrun VERB -h" shows the options of a verb and an example. Exit codes: docs/cli.md.',
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@common
def cli() -> None:
    """Runs language models from GGUF files over a mix of devices."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    flags = Flags()
    warnings.showwarning = _show_warning
    _prepare_streams()
    if "_HETRUN_COMPLETE" in os.environ:  # click's own variable: the shell asks for completions
        cli.main(list(argv), prog_name="hetrun")
    try:
        code = _invoke(argv, flags)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has seen enough. What is still buffered goes nowhere, instead of failing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", None, EXIT_INTERRUPTED, flags)
    except HetrunError as error:
        return _fail(error.message, error.remedy, error.exit_code, flags)
    except click.ClickException as error:
        return _fail(*_usage(error), error.exit_code, flags)
    except MemoryError:
        remedy = "use a smaller model or a shorter --ctx, or free memory"
        return _fail("the system has no memory left", remedy, EXIT_NO_MEMORY, flags)
    except OSError as error:
        subject = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{subject}{error.strerror or error}", None, HetrunError.exit_code, flags)
    except Exception as error:
        message = f"internal: {type(error).__name__}: {error}"
        return _fail(message, "this is a bug in hetrun or a plugin; --debug shows where", EXIT_INTERNAL, flags)


def _prepare_streams() -> None:
    # Python leaves None where the caller closed a stream, and would then print errors among the results.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale that cannot write a character of the answer must not end the answer.
        sys.stdout.reconfigure(errors="replace")


def _invoke(argv: Sequence[str], flags: Flags) -> int:
    try:
        with cli.make_context("hetrun", list(argv) or ["--help"], obj=flags) as ctx:
            result = cli.invoke(ctx)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code


def _usage(error: click.ClickException) -> tuple[str, str | None]:
    """(message, hint) of what click found wrong with the arguments."""
    context = getattr(error, "ctx", None)
    hint = f'"{context.command_path} -h" lists the options' if context else None
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities or ()
        if context:
            options = [o for p in context.command.params for o in p.opts if o.startswith("--")]
            near = difflib.get_close_matches(error.option_name, options, n=3) or near
        did = f"did you mean {' or '.join(near)}? " if near else ""
        return f"no such option: {error.option_name}", f"{did}{hint or ''}".strip()
    message = error.format_message().strip().rstrip(".")
    return message[:1].lower() + message[1:], hint


def _fail(message: str, remedy: str | None, code: int, flags: Flags) -> int:
    if flags.debug:
        import traceback

        traceback.print_exc()
    # A file's name or a plugin's error may hold line breaks; an error is one line.
    print(f"error: {_one_line(message)}", file=sys.stderr)
    if remedy:
        print(f"hint: {_one_line(remedy)}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).replace("\r", " ")


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)):
        print(f"warning: {_one_line(str(message))}", file=sys.stderr)
