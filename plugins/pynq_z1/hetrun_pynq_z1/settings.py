"""The table [drivers.pynq-z1] of a system file, and what this machine's memory makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hetrun.device import check_settings
from hetrun.errors import ConfigError
from hetrun_pynq_z1 import cma
from hetrun_pynq_z1.reserved import ReservedRange, parse_range

SETTINGS = (
    "memory_bytes", "overlay", "clock_mhz", "cma_bytes", "reserved", "staging_bytes", "wait", "timeout_s",
)  # fmt: skip
WAITS = ("poll", "interrupt")
TIMEOUT_S = 30.0

# analytic: what the board's image reserves when its boot arguments say nothing else.
CMA_BYTES = 128 << 20
# analytic: TinyLlama in steps of 512 tokens has 13 MB of values there and 9 MB of codes; half as much again.
VALUES_BYTES = 32 << 20
# analytic: 512 MiB of DDR3 (PYNQ-Z1 reference manual) less 99 MiB for Linux and the program, an assumption.
USABLE_BYTES = 433_061_888
# Eight rows of the widest weight in each half, and the descriptors.
LEAST_STAGING_BYTES = 256 << 10


@dataclass(frozen=True)
class BoardSettings:
    """overlay: the .bit file, its .hwh beside it.   clock_mhz: of the fabric; None where the engine's is not known.

    timeout_s: of one launch.   cma_bytes: most contiguous memory to take.   reserved: memory that Linux leaves to the
    engine's weights.   staging_bytes: of contiguous memory, for weights that are copied for every step; 0 for none.
    sleeps: whether a launch waits for the interrupt; else it polls.   host_bytes: what is left to the processor.
    """

    overlay: str | None
    clock_mhz: float | None
    timeout_s: float
    cma_bytes: int
    reserved: ReservedRange | None
    staging_bytes: int
    sleeps: bool
    host_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Most that weights may take: values and descriptors want contiguous memory, too."""
        values = min(VALUES_BYTES, self.cma_bytes // 2)
        contiguous = max(0, self.cma_bytes - values - self.staging_bytes)
        return contiguous + (self.reserved.nbytes if self.reserved else 0)


@dataclass(frozen=True)
class Settings:
    """memory_bytes: of csim's DDR; None where the file does not say."""

    memory_bytes: int | None
    board: BoardSettings


def settings_of(driver: str, config: Mapping[str, object], default_mhz: float | None) -> Settings:
    """ConfigError for an unknown key or a bad value."""
    check_settings(driver, config, SETTINGS)
    return _Reader(driver, config).settings(default_mhz)


class _Reader:
    def __init__(self, driver: str, config: Mapping[str, object]) -> None:
        self._driver, self._config = driver, config

    def settings(self, default_mhz: float | None) -> Settings:
        reserved = parse_range(self._driver, self._config.get("reserved"))
        total, ram = cma.meminfo_bytes("CmaTotal"), cma.meminfo_bytes("MemTotal")
        cma_bytes = self._bytes("cma_bytes") or total or CMA_BYTES
        reserved_bytes = reserved.nbytes if reserved else 0
        host_bytes = ram - total if total and ram else USABLE_BYTES - cma_bytes - reserved_bytes
        board = BoardSettings(
            overlay=self._overlay(),
            # The bounds are for slips of units: Hz for MHz, ms for s.
            clock_mhz=self._number("clock_mhz", default_mhz, 500.0),
            timeout_s=self._number("timeout_s", TIMEOUT_S, 3600.0) or TIMEOUT_S,
            cma_bytes=cma_bytes,
            reserved=reserved,
            staging_bytes=self._staging_bytes(cma_bytes),
            sleeps=self._wait() == "interrupt",
            host_bytes=max(1, host_bytes),
        )
        return Settings(self._bytes("memory_bytes"), board)

    def _overlay(self) -> str | None:
        overlay = self._config.get("overlay")
        if overlay is None:
            return None
        if not (isinstance(overlay, str) and overlay.endswith(".bit")):
            raise self._bad("overlay", 'give the path of a .bit file, "/path/engine.bit"')
        return str(Path(overlay).expanduser().absolute())

    def _wait(self) -> object:
        wait = self._config.get("wait", WAITS[0])
        if wait not in WAITS:
            raise self._bad("wait", f"give one of {', '.join(WAITS)}")
        return wait

    def _staging_bytes(self, cma_bytes: int) -> int:
        nbytes = self._bytes("staging_bytes") or 0
        if nbytes and not LEAST_STAGING_BYTES <= nbytes <= cma_bytes // 2:
            raise self._bad(
                "staging_bytes", f"give {LEAST_STAGING_BYTES} to half of the contiguous memory, {cma_bytes // 2}"
            )
        return nbytes

    def _bytes(self, name: str) -> int | None:
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
            raise self._bad(name, "give a whole number below 4 GiB")
        return value

    def _number(self, name: str, otherwise: float | None, most: float) -> float | None:
        value = self._config.get(name, otherwise)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most:
            raise self._bad(name, f"give a number up to {most:g}")
        return float(value)

    def _bad(self, name: str, remedy: str) -> ConfigError:
        return ConfigError(f"driver {self._driver}: {name} is {self._config.get(name)!r}", remedy=remedy)
