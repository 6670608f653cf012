"""The table [drivers.alveo-u280] of a system file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hetrun.device import check_settings
from hetrun.errors import ConfigError
from hetrun_alveo_u280.definition import definition

SETTINGS = ("xclbin", "card", "timeout_s", "hbm_bytes", "ddr_bytes")
TIMEOUT_S = 30.0
# Of every channel: the host gives memory in pages of 4 KiB.
PAGE_BYTES = 4096
# What values of small steps, tables and a program take.
LEAST_DDR_BYTES = 16 << 20
# XRT keeps a copy of every buffer in the host's memory, and none may cross 4 GiB.
DDR_BYTES, MOST_DDR_BYTES = 1 << 30, (4 << 30) - PAGE_BYTES
_BDF = re.compile(r"([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


@dataclass(frozen=True)
class Settings:
    """xclbin: the file with the engine.   card: its index among the cards here, or its PCIe address ("0000:3b:00.1").

    timeout_s: of one launch.   channel_bytes: of HBM to use in each channel.   ddr_bytes: of DDR to use.
    """

    xclbin: str | None
    card: int | str
    timeout_s: float
    channel_bytes: int
    ddr_bytes: int


def settings_of(driver: str, config: Mapping[str, object]) -> Settings:
    """ConfigError for an unknown key or a bad value."""
    check_settings(driver, config, SETTINGS)
    return _Reader(driver, config).settings()


class _Reader:
    def __init__(self, driver: str, config: Mapping[str, object]) -> None:
        self._driver, self._config = driver, config

    def settings(self) -> Settings:
        n = definition().numbers
        whole = n["CHANNELS"] * n["CHANNEL_BYTES"]
        hbm_bytes = self._bytes("hbm_bytes", whole, n["CHANNELS"] * PAGE_BYTES, whole)
        return Settings(
            xclbin=self._xclbin(),
            card=self._card(),
            timeout_s=self._timeout_s(),
            channel_bytes=hbm_bytes // n["CHANNELS"] // PAGE_BYTES * PAGE_BYTES,
            ddr_bytes=self._bytes("ddr_bytes", DDR_BYTES, LEAST_DDR_BYTES, MOST_DDR_BYTES),
        )

    def _xclbin(self) -> str | None:
        xclbin = self._config.get("xclbin")
        if xclbin is None:
            return None
        if not (isinstance(xclbin, str) and xclbin.endswith(".xclbin")):
            raise self._bad("xclbin", 'give the path of a .xclbin file, "/path/engine.xclbin"')
        return str(Path(xclbin).expanduser().absolute())

    def _card(self) -> int | str:
        card = self._config.get("card", 0)
        if isinstance(card, str) and _BDF.fullmatch(card):
            return card
        if isinstance(card, int) and not isinstance(card, bool) and 0 <= card < 256:
            return card
        raise self._bad("card", 'give its index, such as 0, or its PCIe address, such as "0000:3b:00.1"')

    def _timeout_s(self) -> float:
        value = self._config.get("timeout_s", TIMEOUT_S)
        # The upper bound is for slips of units, ms for s.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 3600:
            raise self._bad("timeout_s", "give seconds, up to 3600")
        return float(value)

    def _bytes(self, name: str, otherwise: int, least: int, most: int) -> int:
        value = self._config.get(name, otherwise)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._bad(name, f"give a whole number of bytes, {least} to {most}")
        return value

    def _bad(self, name: str, remedy: str) -> ConfigError:
        return ConfigError(f"driver {self._driver}: {name} is {self._config.get(name)!r}", remedy=remedy)
