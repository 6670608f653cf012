"""`hetrun build`: the hardware project of a driver, and its tools run where they are here."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hetrun.cli import options
from hetrun.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hetrun.device import BuildStep

_STDERR = 2  # where tools talk, since stdout carries the result
_MARK = ".hetrun-build"  # says that a folder's files are ours to overwrite


@click.command(
    "build",
    short_help="Write the hardware project of a device, and build it.",
    epilog=options.example("hetrun build pynq-z1", "hetrun build pynq-z1 --out overlay --no-run"),
)
@click.argument("driver")
@click.option("--out", metavar="DIR", help="Where the project is written (default: build-DRIVER).")
@click.option("--no-run", is_flag=True, help="Write the project, run nothing.")
@options.common
def command(driver: str, out: str | None, no_run: bool) -> None:
    """Writes a driver's hardware project: sources and the scripts of its tools. Where these are on PATH they are run,
    which takes an hour or so; else the commands are printed.
    """
    from hetrun.cli.explore import driver_of
    from hetrun.cli.loading import show_log
    from hetrun.device import HardwareSources
    from hetrun.plugins import Registry

    show_log()
    found: object = driver_of(Registry.load(), driver)
    if not isinstance(found, HardwareSources):
        raise DeviceError(f"driver {driver} has no hardware to build", remedy="docs/plugins.md says how it would")
    folder = Path(out or f"build-{driver}")
    files, steps = found.sources(), found.steps()
    _write(folder, driver, files)
    absent = sorted({s.command[0] for s in steps if shutil.which(s.command[0]) is None})
    built = not (no_run or absent)
    if built:
        for step in steps:
            _run(folder, step)
    if options.flags().json:
        print(
            json.dumps(
                {
                    "folder": str(folder),
                    "files": sorted(files),
                    "commands": [list(s.command) for s in steps],
                    "missing_tools": absent,
                    "built": built,
                    "makes": steps[-1].makes if steps else None,
                }
            )
        )
        return
    print(f"{len(files)} files in {folder}")
    if built:
        print(f"built {folder / steps[-1].makes}")
        return
    why = f"not here: {', '.join(absent)}. " if absent else ""
    print(f"{why}Build it with:")
    print(f"  cd {shlex.quote(str(folder))}")
    for step in steps:
        print(f"  {shlex.join(step.command)}")


def _write(folder: Path, driver: str, files: Mapping[str, str]) -> None:
    mark = folder / _MARK
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not mark.exists())):
        raise UsageError(
            f"{folder}: is there, and no project of hetrun build", remedy="name an empty or new folder with --out"
        )
    try:
        for name, text in files.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DeviceError(
                    f"driver {driver}: {name} lies outside of the project", remedy="report it to its author"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        mark.write_text(f"{driver}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder}: {error.strerror}", remedy="name another folder with --out"
        ) from error


def _run(folder: Path, step: BuildStep) -> None:
    print(f"running {shlex.join(step.command)} in {folder}", file=sys.stderr)
    made = folder / step.makes
    made.unlink(missing_ok=True)  # one of an earlier run proves nothing
    code = subprocess.run(step.command, cwd=folder, stdout=_STDERR, check=False).returncode
    if code or not made.exists():
        what = f"exit code {code}" if code else f"it made no {step.makes}"
        raise DeviceError(
            f"{step.command[0]} failed: {what}", remedy=f"read its messages above, and its logs in {folder}"
        )
