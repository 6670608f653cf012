"""Files that say what an answer must be: --json-schema, --grammar, and the --tools of a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli.options import F
from hetrun.errors import UsageError

if TYPE_CHECKING:
    from hetrun.run.constraint import Grammar

_REMEDY = (
    'write a list as in [{"type": "function", "function": {"name": "now", "description": "...", "parameters": {}}}]'
)


def structured(function: F) -> F:
    """--json-schema and --grammar."""
    schema = click.option(
        "--json-schema", metavar="FILE", help="Write JSON of this schema (needs pip install 'hetrun[grammar]')."
    )
    grammar = click.option("--grammar", metavar="FILE", help="Write what this grammar allows, in Lark or GBNF.")
    return schema(grammar(function))


def read_grammar(json_schema: str | None, grammar: str | None) -> Grammar | None:
    """What the two options say. UsageError where a file cannot be read or is wrong, or llguidance is missing."""
    if json_schema is None and grammar is None:
        return None
    if json_schema is not None and grammar is not None:
        raise UsageError("--json-schema and --grammar exclude each other", remedy="give one of them")
    from hetrun.run.constraint import Grammar

    if json_schema is not None:
        found = Grammar("json_schema", read_text(json_schema, "--json-schema"), json_schema)
    else:
        found = Grammar("grammar", read_text(str(grammar), "--grammar"), str(grammar))
    found.check()
    return found


def read_tools(path: str) -> list[dict[str, Any]]:
    """Descriptions of functions as templates take them; a bare {"name": ...} is wrapped. UsageError for others."""
    try:
        tools = json.loads(read_text(path, "--tools"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}", remedy=_REMEDY) from None
    if not isinstance(tools, list) or not tools:
        raise UsageError(f"{path} holds no list of tools", remedy=_REMEDY)
    wrapped = []
    for i, tool in enumerate(tools):
        if isinstance(tool, dict) and "name" in tool and "function" not in tool:
            tool = {"type": "function", "function": tool}
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f"{path}: tool {i + 1} has no name", remedy=_REMEDY)
        wrapped.append(tool)
    return wrapped


def read_text(path: str, option: str) -> str:
    """The text of a file. UsageError, naming the option, where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{option} {path}: not UTF-8 text", remedy="convert it with iconv -t UTF-8") from None
    except (OSError, ValueError) as error:  # a null byte in the path
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{option} {path}: {cause}", remedy="name a file that can be read") from None
