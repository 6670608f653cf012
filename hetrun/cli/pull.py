"""`hetrun pull`: fetches a model of the catalogue."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from hetrun.cli import options
from hetrun.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from hetrun.model.catalog import Catalog


@click.command(
    "pull",
    short_help="Fetch a model by name.",
    epilog=options.example("hetrun pull smollm2-135m", "hetrun pull --list"),
)
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the models that have a name.")
@click.option("--verify", is_flag=True, help="Read a file that is already there once more and compare its digest.")
@click.option("--force", is_flag=True, help="Fetch the file anew even if it is there.")
@options.common
def command(name: str | None, as_list: bool, verify: bool, force: bool) -> None:
    """Downloads a model into the user's cache, checks it, and prints its path. An interrupted download is resumed."""
    from hetrun.model.catalog import Catalog

    catalog = Catalog.load()
    if as_list:
        _print_list(catalog)
        return
    if name is None:
        raise UsageError("no model named", remedy='for example "hetrun pull smollm2-135m"; --list shows all names')
    entry = catalog.entry(name)
    present = catalog.cached(name)
    with contextlib.ExitStack() as stack:
        if force and present is not None:
            for part in entry.parts:
                stack.enter_context(_set_aside(present.with_name(part.file)))
        show = stack.enter_context(_ProgressShow(entry.file))
        path = catalog.pull(name, show.update, verify=verify, notice=show.say)
    if options.flags().json:
        paths = [path.with_name(part.file) for part in entry.parts]
        record = {
            "name": name,
            "path": str(path),
            "size_bytes": sum(p.stat().st_size for p in paths),
            "sha256": [part.sha256 for part in entry.parts] if entry.others else entry.sha256,
            "was_present": present is not None and not force,
            **({"parts": [str(p) for p in paths]} if entry.others else {}),
        }
        print(json.dumps(record))
    else:
        print(path)


def _print_list(catalog: Catalog) -> None:
    records: list[dict[str, Any]] = []
    for name in catalog.names():
        entry, cached = catalog.entry(name), catalog.cached(name)
        records.append(
            {
                "name": name,
                "description": entry.description,
                "license": entry.license,
                "size_bytes": entry.total_bytes,
                "cached": cached is not None,
                "path": str(cached) if cached else None,
            }
        )
    if options.flags().json:
        print(json.dumps(records))
        return
    from hetrun.view.models import print_models

    print_models(records)


@contextlib.contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Moves the file away while another is fetched in its place; brings it back where none came."""
    aside = path.with_name(f".{path.name}.old")
    os.replace(path, aside)
    try:
        yield
    finally:
        if path.exists():
            aside.unlink()
        else:
            os.replace(aside, path)


class _ProgressShow:
    """A bar on stderr; plain lines, one each tenth, where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Progress | None = None
        self.shown_tenth = 0
        self.started = time.monotonic()

    def __enter__(self) -> _ProgressShow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done_bytes: int, total_bytes: int | None) -> None:
        if not sys.stderr.isatty():
            self._print_line(done_bytes, total_bytes)
            return
        if self.bar is None:
            self.bar = _bar()
            self.bar.start()
            self.bar.add_task(self.title, total=total_bytes)
        self.bar.update(self.bar.task_ids[0], completed=done_bytes, total=total_bytes)

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr)

    def _print_line(self, done_bytes: int, total_bytes: int | None) -> None:
        # Without a known size a line every 10 MB.
        tenth = done_bytes * 10 // total_bytes if total_bytes else done_bytes // 10_000_000
        if tenth > self.shown_tenth:
            self.shown_tenth = tenth
            of = f" of {total_bytes / 1e6:.1f}" if total_bytes else ""
            print(f"{self.title}: {done_bytes / 1e6:.1f}{of} MB", file=sys.stderr)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
