"""What one rendering of a chat template may use: time, and memory for what it builds."""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.utils import Namespace

MAX_WEIGHT = 1 << 18  # values inside one operand: 20 ms to walk through
MAX_TOTAL_BYTES = 1 << 26  # of everything built, a character or a reference in a list at a time
MAX_INT_BITS = 4096

_NUMBERS = re.compile(r"\d+")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")
_PADDING = frozenset(("ljust", "rjust", "center", "zfill"))
_REFUSED_METHODS = frozenset(("translate", "maketrans", "to_bytes", "from_bytes", "fromkeys"))


class LimitExceeded(Exception):
    """Says which limit."""


class Budget:
    """max_text: of any one string, in characters."""

    def __init__(self, time_limit_s: float, output_limit_bytes: int) -> None:
        self._time_limit_s = time_limit_s
        self._deadline_s = time.monotonic() + time_limit_s
        self._left = MAX_TOTAL_BYTES
        self.max_text = max(output_limit_bytes, 1 << 20)

    def tick(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise LimitExceeded(f"it ran longer than {self._time_limit_s:g} s")

    def spend(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            raise LimitExceeded(f"it built more than {MAX_TOTAL_BYTES >> 20} MiB of intermediate values")
        self.tick()

    def check_text(self, n_chars: int) -> None:
        """Of a string that is about to be built."""
        if n_chars > self.max_text:
            raise LimitExceeded(f"it builds a string longer than {self.max_text} characters")

    def built(self, value: Any) -> Any:
        """Counts a new value, and returns it; of an iterator or a view of a dictionary the list."""
        if isinstance(value, (str, bytes)):
            self.check_text(len(value))
            self.spend(len(value) + 8)
        elif isinstance(value, (list, tuple, dict, set, frozenset)):
            self.spend(8 * len(value) + 8)
        elif isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
            return self.limited_list(value)  # a list can be weighed, a generator hides what it holds
        else:
            self.tick()
        return value

    def weigh(self, *values: Any) -> int:
        """The number of characters in these values and all they contain, before something walks through them: a list
        of two references to a list of two references, and so on, is small and yet never printed or compared."""
        n_values = n_chars = 0
        inside: list[Iterable[Any]] = [values]
        while inside:
            for value in inside.pop():
                n_values += 1
                if isinstance(value, (str, bytes)):
                    n_chars += len(value)
                elif value is None or isinstance(value, (int, float)):
                    continue
                elif isinstance(value, (list, tuple, set, frozenset)):
                    inside.append(value)
                elif isinstance(value, Mapping):
                    inside += (value.keys(), value.values())
                elif isinstance(value, Namespace):
                    inside.append(value._Namespace__attrs.values())
                if n_values > MAX_WEIGHT or n_chars > 8 * self.max_text:
                    raise LimitExceeded("it handles a value that is too large")
        self.tick()
        return n_chars

    def limited(self, parts: Iterable[str]) -> Iterator[str]:
        n_chars = 0
        for part in parts:
            n_chars += len(part)
            self.check_text(n_chars)
            yield part

    def limited_list(self, values: Iterable[Any]) -> list[Any]:
        listed = []
        for value in values:
            listed.append(value)
            if len(listed) > MAX_WEIGHT:
                raise LimitExceeded("it handles a value that is too large")
        self.spend(8 * len(listed))
        return listed

    def check_operator(self, operator: str, left: Any, right: Any) -> None:
        self.tick()
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, (str, bytes, list, tuple)) and isinstance(count, int):
                    self.check_text(len(text) * count * (1 if isinstance(text, (str, bytes)) else 8))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            factor = right if operator == "**" else 1
            if left.bit_length() * max(factor, 1) > MAX_INT_BITS or right.bit_length() > MAX_INT_BITS:
                raise LimitExceeded(f"it computes a number of more than {MAX_INT_BITS} bits")
        if operator == "%" and isinstance(left, (str, bytes)):
            self.check_format(left, "%", right)

    def check_call(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Of a function or a bound method."""
        method = getattr(function, "__wrapped__", function)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        self.weigh(args, kwargs, owner)
        if name in _REFUSED_METHODS:
            raise LimitExceeded(f"the method {name} is not supported")
        if not isinstance(owner, (str, bytes)):
            return
        if name in _PADDING and args and isinstance(args[0], int):
            self.check_text(args[0])
        elif name == "expandtabs":
            size = args[0] if args else kwargs.get("tabsize", 8)
            self.check_text(len(owner) + (len(owner) * size if isinstance(size, int) else 0))
        elif name == "replace" and len(args) > 1:
            self.check_replace(owner, args[0], args[1])
        elif name == "join" and args:
            self.check_join(owner, args[0])
        elif name in ("format", "format_map"):
            self.check_format(owner, "{", (args, kwargs))

    def check_replace(self, text: str | bytes, old: Any, new: Any) -> None:
        if isinstance(old, (str, bytes)) and isinstance(new, (str, bytes)) and type(old) is type(text):
            n_places = text.count(old) if old else len(text) + 1  # type: ignore[arg-type]
            self.check_text(len(text) + n_places * len(new))

    def check_join(self, separator: str | bytes, values: Any) -> None:
        self.check_text(len(separator) * len(values) + self.weigh(values))

    def check_format(self, form: str | bytes, mark: str, values: Any) -> None:
        """An upper bound: each field may show all values, and every number in the format may be a width."""
        text = form if isinstance(form, str) else form.decode("latin-1")
        if (mark == "%" and "*" in text) or (mark == "{" and _NESTED_FIELD.search(text)):
            raise LimitExceeded("a format takes its width from a value")
        if any(len(number) > 6 for number in _NUMBERS.findall(text)):
            raise LimitExceeded("a format has a huge number")
        widths = sum(map(int, _NUMBERS.findall(text)))
        self.check_text(len(text) + widths + text.count(mark) * (self.weigh(values) + 64))
