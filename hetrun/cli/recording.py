"""What --profile, --live, --trace and --html add to a verb: steps are recorded, shown as they come, and written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hetrun.api import Model
from hetrun.cli.output_file import OutputFile
from hetrun.errors import UsageError

if TYPE_CHECKING:
    from hetrun.view.live import LiveView


class Recording:
    """A context manager around load and run: files are opened before, and written by `finish`."""

    def __init__(self, *, profile: bool = False, live: bool = False, trace: str | None = None, html: str | None = None):
        self.profile = profile
        self.live = live
        if trace and html and os.path.realpath(trace) == os.path.realpath(html):
            raise UsageError(f"--trace and --html both name {trace}", remedy="name two files")
        with ExitStack() as resources:
            self._trace = resources.enter_context(OutputFile(trace, "--trace")) if trace is not None else None
            self._html = resources.enter_context(OutputFile(html, "--html")) if html is not None else None
            self._resources = resources.pop_all()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    @property
    def wanted(self) -> bool:
        return self.profile or self.live or self._trace is not None or self._html is not None

    def begin(self, model: Model) -> None:
        """Records from now on, where something is asked for. UsageError where a file to write is the model's."""
        for file in (self._trace, self._html):
            if file and file.same_as(model.path):
                raise UsageError(f"{file.path} is the model: it would be overwritten", remedy="name another file")
        if self.wanted:
            model.session.record()

    def show(self, model: Model, plain: Callable[[str], None]) -> AbstractContextManager[Callable[[str], None]]:
        """Takes pieces of text: prints them by `plain`, within the live view where that is asked for."""
        if not self.live:
            return nullcontext(plain)
        from hetrun.view.live import LiveView

        view: LiveView = LiveView(model, plain)
        return view

    def record(self, model: Model) -> dict[str, Any]:
        """The profile as --json has it."""
        from hetrun.run.profile import make_profile
        from hetrun.run.profile_record import profile_record

        return {"model": model.path.name, **profile_record(make_profile(model.trace, model.session.runtime))}

    def write(self, model: Model) -> None:
        """Writes the files asked for, with all steps that have ended."""
        if self._trace:
            from hetrun.run.chrome_trace import chrome_trace

            self._trace.write(chrome_trace(model.trace.steps, model.session.runtime, model.path.name))
        if self._html:
            from hetrun.view.profile_page import profile_page

            self._html.write([profile_page(self.record(model), model.trace.steps, model.session.runtime)])
