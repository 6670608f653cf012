"""The hooks of the reference device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetrun.hookspecs import hookimpl

if TYPE_CHECKING:
    from hetrun.device import Driver


@hookimpl
def hetrun_drivers() -> Sequence[Driver]:
    from hetrun.reference.driver import ReferenceDriver

    return [ReferenceDriver()]
