"""Filters whose output can be far larger than their input, and those that differ from jinja2's in chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, pass_environment, pass_eval_context
from jinja2.filters import do_batch, do_center, do_format, do_indent, do_replace, do_round, make_attrgetter
from jinja2.nodes import EvalContext
from markupsafe import escape

from hetrun.model.chat_budget import Budget, LimitExceeded

MAX_WIDTH = 10_000


def limited_filters(budget: Callable[[], Budget]) -> dict[str, Callable[..., Any]]:
    """budget: of the rendering that calls."""

    def center(value: Any, width: int = 80) -> str:
        return do_center(str(value), _width(width))

    def indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = str(value)
        size = len(width) if isinstance(width, str) else _width(width)
        budget().check_text(len(text) + size * (text.count("\n") + len(text.splitlines()) + 1))
        return do_indent(text, width, first, blank)

    def batch(value: Any, linecount: int, fill_with: Any = None) -> list[Any]:
        return list(do_batch(budget().limited_list(value), _width(linecount), fill_with))

    def cut(value: Any, slices: int, fill_with: Any = None) -> list[list[Any]]:
        listed = budget().limited_list(value)
        size, n_longer = divmod(len(listed), _width(slices))
        parts, start = [], 0
        for i in range(slices):
            end = start + size + (i < n_longer)
            filling = [fill_with] if fill_with is not None and i >= n_longer else []
            parts.append(listed[start:end] + filling)
            start = end
        return parts

    def rounded(value: float, precision: int = 0, method: Any = "common") -> float:
        return do_round(value, precision if abs(precision) < 100 else _width(MAX_WIDTH + 1), method)

    @pass_eval_context
    def replace(context: EvalContext, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        budget().check_replace(str(value), str(old), str(new))
        return do_replace(context, str(value), str(old), str(new), count)

    @pass_environment
    def join(environment: Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        listed = chosen(environment, value, attribute)
        budget().check_join(str(d), listed)
        return str(d).join(map(str, listed))

    @pass_environment
    def total(environment: Environment, value: Any, attribute: str | int | None = None, start: float = 0) -> float:
        if not isinstance(start, (int, float)):
            raise LimitExceeded("the filter sum adds numbers only")
        return sum(chosen(environment, value, attribute), start)

    def chosen(environment: Environment, value: Any, attribute: str | int | None) -> list[Any]:
        listed = budget().limited_list(value)
        return listed if attribute is None else list(map(make_attrgetter(environment, attribute), listed))

    def formatted(value: str, *args: Any, **kwargs: Any) -> str:
        budget().check_format(str(value), "%", (args, kwargs))
        return do_format(str(value), *args, **kwargs)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if isinstance(indent, int):
            _width(indent)
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return "".join(budget().limited(encoder.iterencode(value)))

    def plain(value: Any) -> str:
        return str(value)

    def escaped(value: Any) -> str:
        return str(escape(str(value)))

    return {
        "batch": batch,
        "center": center,
        "e": escaped,
        "escape": escaped,
        "forceescape": escaped,
        "format": formatted,
        "indent": indent,
        "join": join,
        "replace": replace,
        "round": rounded,
        "safe": plain,
        "slice": cut,
        "sum": total,
        "tojson": tojson,
    }


def _width(width: int) -> int:
    if width > MAX_WIDTH:
        raise LimitExceeded(f"it asks for a width or a count of more than {MAX_WIDTH}")
    return width
