"""Hooks of the modelled devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrun.hookspecs import hookimpl

if TYPE_CHECKING:
    from hetrun.device import Driver


@hookimpl
def hetrun_drivers() -> list[Driver]:
    from hetrun_modelled.driver import ModelledDriver

    return [ModelledDriver()]
