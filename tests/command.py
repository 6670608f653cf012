"""Runs `python -m hetrun` as a user does, and reads what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import require

from hetrun.plugins import Registry

TIMEOUT_S = 120


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def hints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("hint: ")]


def arguments(*args: str | bytes | Path) -> list[str | bytes | Path]:
    return [sys.executable, "-m", "hetrun", *args]


def environment(folder: Path, plugins: Sequence[Path] = (), **variables: str) -> dict[str, str]:
    """The environment of a user whose cache, data and configuration are empty.   plugins: folders of `make_plugin`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HETRUN_MODELS", "COLUMNS", "PYTHONWARNINGS")}
    paths = [*map(str, plugins), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "HETRUN_CACHE": str(folder / "cache"),
        "HETRUN_DATA": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PYTHONPATH": os.pathsep.join(paths),
        **variables,
    }


def hetrun(
    folder: Path,
    *args: str | bytes | Path,
    stdin: str | bytes = b"",
    plugins: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> Done:
    """Runs the command in `folder` to its end."""
    done = subprocess.run(
        arguments(*args),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment(folder, plugins, **(env or {})),
        timeout=TIMEOUT_S,
        **options,
    )
    return Done(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())


def make_plugin(folder: Path, name: str, source: str) -> Path:
    """Installs a plugin of one module in `folder`, as pip would; returns the folder."""
    info = folder / f"{name}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(f"[hetrun]\n{name} = {name}_plugin\n")
    (folder / f"{name}_plugin.py").write_text(source)
    return folder


def require_device(name: str) -> str:
    """The name of a device that is here, or the test is skipped."""
    found = [d for d in Registry.load().devices() if d.info.id.partition(":")[0] == name]
    if not found or found[0].info.unavailable:
        require.missing(f"device {name}", "pip install .")
    return name
