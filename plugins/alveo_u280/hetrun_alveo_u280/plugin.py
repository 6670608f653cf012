"""Entry point of the Alveo U280 engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetrun.hookspecs import hookimpl

if TYPE_CHECKING:
    from hetrun.device import Driver


@hookimpl
def hetrun_drivers() -> Sequence[Driver]:
    from hetrun_alveo_u280.driver import AlveoU280Driver

    return [AlveoU280Driver()]
