from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_device import SimulatedDriver

from hetrun.calibration.table import Calibration
from hetrun.measure import timing
from hetrun.measure.calibrate import Wanted, calibrate
from hetrun.measure.timing import LEVELS, Effort
from hetrun.plugins import FoundDevice


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder of a test. Nothing rests between samples: the simulated clock stands still meanwhile."""
    monkeypatch.setenv("HETRUN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(timing, "wait_for_quiet", lambda: None)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    return tmp_path / "data"


def found(driver: SimulatedDriver) -> FoundDevice:
    return FoundDevice(driver, driver.probe({})[0], "sim")


Measure = Callable[..., Calibration]


@pytest.fixture
def measure() -> Measure:
    def run(
        driver: SimulatedDriver,
        types: tuple[str, ...] = ("Q8_0", "Q4_0"),
        before: Calibration | None = None,
        keep: Callable[[Calibration], None] = lambda c: None,
        rounds: int = 3,
        kv_formats: tuple[str, ...] = ("f16",),
    ) -> Calibration:
        effort = Effort(rounds=rounds, tries=1, levels=LEVELS[:2])
        wanted = Wanted(types, kv_formats)
        return calibrate(found(driver), wanted, effort, before, keep, lambda *_: None, driver.clock)

    return run
