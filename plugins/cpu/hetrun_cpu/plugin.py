"""Entry point of the cpu device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetrun.hookspecs import hookimpl

if TYPE_CHECKING:
    from hetrun.device import Driver


@hookimpl
def hetrun_drivers() -> Sequence[Driver]:
    from hetrun_cpu.driver import CpuDriver

    return [CpuDriver()]
