"""The hooks a plugin may implement. A plugin is a module named by an entry point of the group "hetrun".

    # my_device/plugin.py
    from hetrun.hookspecs import hookimpl

    @hookimpl
    def hetrun_drivers():
        from my_device.driver import MyDriver
        return [MyDriver()]

In-tree devices use the same hooks and get nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from hetrun.device import Driver

PROJECT = "hetrun"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def hetrun_drivers() -> Sequence[Driver]:  # type: ignore[empty-body]
    """Drivers of this plugin (`hetrun.device.Driver`). Called once; keep imports that the driver needs inside it."""


@hookspec
def hetrun_architectures() -> Sequence[Any]:  # type: ignore[empty-body]
    """Model architectures of this plugin (`hetrun.model.architectures.Architecture`)."""


@hookspec
def hetrun_commands() -> Sequence[Any]:  # type: ignore[empty-body]
    """Verbs for the command line (`click.Command`)."""


@hookspec
def hetrun_conformance(driver: Driver) -> Any:
    """What the conformance kit should know of that driver (`hetrun.testing.Expectations`), or None."""
