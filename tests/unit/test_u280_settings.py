"""The table of a system file for the U280, and the memories that follow from it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hetrun.errors import AllocationError, ConfigError
from hetrun_alveo_u280 import card as cards
from hetrun_alveo_u280.card import CsimCard
from hetrun_alveo_u280.driver import AlveoU280Driver
from hetrun_alveo_u280.settings import settings_of


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"banana": 1}, "unknown setting 'banana'"),
        ({"xclbin": "engine.bit"}, "xclbin is 'engine.bit'"),
        ({"card": "first"}, "card is 'first'"),
        ({"card": -1}, "card is -1"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"hbm_bytes": 1 << 40}, "hbm_bytes is"),
        ({"hbm_bytes": 1}, "hbm_bytes is 1"),
        ({"ddr_bytes": 4 << 30}, "ddr_bytes is"),
        ({"ddr_bytes": True}, "ddr_bytes is True"),
    ],
)
def test_bad_settings_are_named(table: Mapping[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        AlveoU280Driver().probe(table)


def test_settings_size_the_memories() -> None:
    settings = settings_of("alveo-u280", {"hbm_bytes": 1 << 30, "ddr_bytes": 1 << 26, "card": "0000:3b:00.1"})
    assert (settings.channel_bytes, settings.ddr_bytes, settings.card) == (1 << 25, 1 << 26, "0000:3b:00.1")
    [csim] = [i for i in AlveoU280Driver().probe({"hbm_bytes": 1 << 30, "threads": 3}) if i.id == "alveo-u280:csim"]
    assert [s.capacity_bytes for s in csim.spaces] == [1 << 30, 1 << 30]
    assert csim.model["host_threads"] == 3.0


def test_memory_that_this_machine_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(cards.mmap, "mmap", full)
    with pytest.raises(AllocationError, match="for the card's memory: Cannot allocate memory") as caught:
        CsimCard("alveo-u280:csim", 1 << 20, 1 << 20, 1)
    assert "hbm_bytes" in str(caught.value)
