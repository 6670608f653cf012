"""Entry point of the Alveo U280 engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetrun.hookspecs import hookimpl

if TYPE_CHECKING:
    from hetrun.device import Driver
    from hetrun.testing import Expectations


@hookimpl
def hetrun_drivers() -> Sequence[Driver]:
    from hetrun_alveo_u280.driver import AlveoU280Driver

    return [AlveoU280Driver()]


@hookimpl
def hetrun_conformance(driver: Driver) -> Expectations | None:
    """Scales of blocks become 15-bit integers of a row's largest. Measured on the kit's cases: 1.3e-10 to 2.2e-10 where
    a block has a scale alone, up to 4.5e-8 where it has a minimum, too."""
    if driver.name != "alveo-u280":
        return None
    from hetrun.testing import Expectations

    scaled, offset = ("Q4_0", "Q5_0", "Q8_0", "Q6_K"), ("Q4_1", "Q4_K")
    return Expectations(embeddings=dict.fromkeys(scaled, 5e-10) | dict.fromkeys(offset, 1e-7))
