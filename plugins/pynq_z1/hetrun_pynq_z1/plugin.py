"""Entry point of the PYNQ-Z1 engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetrun.hookspecs import hookimpl

if TYPE_CHECKING:
    from hetrun.device import Driver


@hookimpl
def hetrun_drivers() -> Sequence[Driver]:
    from hetrun_pynq_z1.driver import PynqZ1Driver

    return [PynqZ1Driver()]
