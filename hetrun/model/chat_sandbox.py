"""A jinja2 sandbox with limits on time, output and memory, which hold in any thread.

Python cannot stop a thread from outside, so a template stops itself. Its syntax tree is rewritten such that each pass
of a loop, each call, filter, test, operator, comparison and literal goes through a `Budget`, which looks at the clock
and counts what is built. What runs between two looks is small: operands are weighed before the operation and what it
would build is estimated. Filters and functions that cannot be bounded so are left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer

from hetrun.errors import ChatTemplateError
from hetrun.model.chat_budget import Budget, LimitExceeded
from hetrun.model.chat_filters import limited_filters

MAX_TEMPLATE_CHARS = 1 << 17  # the longest in use have 30,000; this many take jinja2 a second to compile
MAX_NODES = 20_000  # of the syntax tree, for the same reason
MAX_RANGE = 100_000

# jinja2's own filters that need no more than their operands weighed, and those that do not even look inside them.
_DEEP = "abs capitalize dictsort float groupby int lower max min sort string title trim truncate unique upper wordcount"
_SHALLOW = "count d default first items last length list map reject rejectattr reverse select selectattr"
_SHALLOW_TESTS = (
    "boolean callable defined false float integer iterable mapping none number sequence string true undefined"
)


class Sandbox:
    """Renders templates; a template is compiled once. Threads may share a sandbox."""

    def __init__(self, time_limit_s: float, output_limit_bytes: int) -> None:
        self._time_limit_s = time_limit_s
        self._output_limit_bytes = output_limit_bytes
        self._environment = _Environment()
        self._compiled: dict[str, jinja2.Template] = {}

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """ChatTemplateError, one line, for everything that goes wrong."""
        try:
            return self._render(source, variables)
        except LimitExceeded as error:
            raise ChatTemplateError(f"chat template stopped: {error}") from None
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"chat template, line {error.lineno}: {_one_line(error.message or 'syntax error')}"
            ) from None
        except RecursionError:
            raise ChatTemplateError("chat template stopped: it nests or recurses too deeply") from None
        except Exception as error:  # whatever a stranger's program may raise
            raise ChatTemplateError(f"chat template failed: {_one_line(str(error) or type(error).__name__)}") from None

    def _render(self, source: str, variables: Mapping[str, Any]) -> str:
        if source not in self._compiled:
            if len(source) > MAX_TEMPLATE_CHARS:
                raise LimitExceeded(f"it is longer than {MAX_TEMPLATE_CHARS} characters")
            self._compiled[source] = self._environment.from_string(source)
        budget = Budget(self._time_limit_s, self._output_limit_bytes)
        self._environment.current.budget = budget
        try:
            chunks: list[str] = []
            n_bytes = 0
            for chunk in self._compiled[source].generate(variables):
                budget.tick()
                n_bytes += len(chunk.encode("utf-8", "surrogatepass"))
                if n_bytes > self._output_limit_bytes:
                    raise LimitExceeded(f"its output exceeds {self._output_limit_bytes} bytes")
                chunks.append(chunk)
            return "".join(chunks)
        finally:
            del self._environment.current.budget


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer would evaluate constant expressions outside any budget
            finalize=_finalize,
            extensions=[loopcontrols, _Generation],
        )
        self.current = threading.local()
        deep: dict[str, Callable[..., Any]] = {name: FILTERS[name] for name in _DEEP.split()}
        deep |= limited_filters(self._budget)
        self.filters = {name: self._guarded(function) for name, function in deep.items()}
        self.filters |= {name: self._guarded(FILTERS[name], shallow=True) for name in _SHALLOW.split()}
        self.filters |= self._internal_filters()
        shallow = _SHALLOW_TESTS.split()
        self.tests = {
            name: self._guarded(cast(Callable[..., Any], test), shallow=name in shallow) for name, test in TESTS.items()
        }
        kept = {name: self.globals[name] for name in ("dict", "namespace", "joiner", "cycler")}
        self.globals.clear()
        self.globals.update(kept, range=_limited_range, raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _budget(self) -> Budget:
        budget: Budget = self.current.budget
        return budget

    def _guarded(self, function: Callable[..., Any], *, shallow: bool = False) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context is no operand

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            budget = self._budget()
            if not shallow:
                budget.weigh(*args[first:], *kwargs.values())
            return budget.built(function(*args, **kwargs))

        return run

    def _internal_filters(self) -> dict[str, Callable[..., Any]]:
        """What the rewritten syntax tree calls; no template can spell these names."""

        def each(iterable: Iterable[Any], n_nodes: int) -> Iterator[Any]:
            budget = self._budget()
            for item in iterable:
                budget.spend(8 * n_nodes)  # a pass may add a reference per node to an output buffer
                yield item

        def concatenate(*values: Any) -> str:
            budget = self._budget()
            budget.weigh(*values)
            text: str = budget.built("".join(map(str, values)))
            return text

        def weighed(value: Any) -> Any:
            self._budget().weigh(value)
            return value

        def built(value: Any) -> Any:
            return self._budget().built(value)

        return {" each": each, " concatenate": concatenate, " weighed": weighed, " built": built}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            raise LimitExceeded(f"it has more than {MAX_NODES} parts")
        rewritten: nodes.Template = _Rewriter().visit(tree)
        return rewritten

    def concat(self, parts: Iterable[str]) -> str:
        """Joins the output of a macro, a block or a `set` block."""
        budget = self._budget()
        text: str = budget.built("".join(budget.limited(parts)))
        return text

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = self._budget()
        budget.check_call(function, args, kwargs)
        if isinstance(function, LoopContext):  # a recursive loop goes on with other values
            args = (self.filters[" each"](args[0], MAX_NODES // 100), *args[1:])
        return budget.built(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self._budget()
        budget.check_operator(operator, left, right)
        return budget.built(super().call_binop(context, operator, left, right))


class _Rewriter(NodeTransformer):
    """Puts a filter around everything that takes time or memory, so that it is counted."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        n_nodes = sum(1 for child in node.body for _ in child.find_all(nodes.Node)) + 1
        self.generic_visit(node)
        node.iter = _filter(node.iter, " each", nodes.Const(n_nodes))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node.nodes[0], " concatenate", *node.nodes[1:])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = _weighed(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if node.ctx != "load":
            return node
        if isinstance(node.arg, nodes.Slice):
            return _filter(node, " built")
        node.arg = _weighed(node.arg)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        return self._literal(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        return self._literal(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._literal(node) if node.ctx == "load" else node

    def _literal(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, " built")


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter(node, " weighed")


class _Generation(Extension):
    """{% generation %} marks what the assistant said, for training; here it is what it encloses."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:
    """The text of {{ value }}."""
    budget: Budget = context.environment.current.budget  # type: ignore[attr-defined]
    if not isinstance(value, (str, Undefined)):
        budget.weigh(value)
        value = str(value)
    return budget.built(value)


def _limited_range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise LimitExceeded(f"a range is longer than {MAX_RANGE}")
    return numbers


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise LimitExceeded("a time format is longer than 100 characters")
    return datetime.now().strftime(form)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
