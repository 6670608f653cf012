"""Files of calibrations: what comes back, what is refused, and that a bad one stops nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_device import SimulatedDriver

from hetrun.calibration import store
from hetrun.calibration.table import Calibration, Check, LinkTimes, Observation, Speeds
from hetrun.errors import ConfigError

from .conftest import found


def calibration_of(driver: SimulatedDriver) -> Calibration:
    from hetrun import __version__

    device = found(driver)
    return Calibration(
        device=device.info.id,
        fingerprint=store.fingerprint(driver, device.info),
        description=device.info.description,
        version=__version__,
        date="2026-11-22T10:00:00+00:00",
        launch_s=3e-6,
        prices={1: {"matmul/Q8_0": ((8e6, 1e-6), (64e6, 2e-6)), "add": ((0.0, 1e-7),)}},
        ratios={"matmul": 0.4},
        alike={"Q4_K": "Q4_0"},
        links={"sim:0/ram": LinkTimes((1e-6, 1e9), (2e-6, 2e9))},
        observations=(Observation("g", "p", 1, 10, 1e-3, 2e-3, {"add": 1.0}, {"add": 2e-3}, 0.01, 1.1),),
        checks=(Check("whole", 1.0, 2.0, 1.1),),
        others=0.02,
        speeds=Speeds(1e-3, 2e-3),
    )


def test_what_is_written_comes_back(data_folder: Path) -> None:
    driver = SimulatedDriver()
    info = found(driver).info
    assert store.read(driver, info) is None and store.find(driver, info) is None
    calibration = calibration_of(driver)
    path = store.path_of(driver, info)
    store.write(calibration, path)
    assert store.read(driver, info) == calibration
    assert path.parent == data_folder / "calibration"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_removed_is_gone() -> None:
    driver = SimulatedDriver()
    info = found(driver).info
    store.write(calibration_of(driver), store.path_of(driver, info))
    assert store.remove(driver, info) and not store.remove(driver, info)
    assert store.read(driver, info) is None


def test_fingerprint_tells_devices_apart() -> None:
    driver = SimulatedDriver()
    info = found(driver).info
    others = [
        replace(info, description="simulated, 2 threads"),
        replace(info, id="sim:1"),
        replace(info, spaces=(replace(info.spaces[0], name="sim:0/ram"),)),
    ]
    assert len({store.fingerprint(driver, i) for i in (info, *others)}) == 4
    # Memory that is free today, and what the driver counts beside its work, change no speed.
    same = replace(info, spaces=(replace(info.spaces[0], capacity_bytes=1),), model={"counters": 1.0})
    assert store.fingerprint(driver, same) == store.fingerprint(driver, info)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_text(""), "not a calibration"),
    "cut off": (lambda p: p.write_text(p.read_text()[:200]), "not a calibration"),
    "no object": (lambda p: p.write_text("[1, 2]"), "not a calibration"),
    "null": (lambda p: p.write_text("null"), "not a calibration"),
    "bytes": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "not UTF-8 text"),
    "deep": (lambda p: p.write_text("[" * 100_000), "not a calibration"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "Is a directory"),
    "format": (edited(lambda d: d.update(format=99)), "format 99, this hetrun has 2"),
    "version": (edited(lambda d: d.update(version="0.0.1")), "made by hetrun 0.0.1, this is "),
    "foreign": (
        edited(lambda d: d.update(fingerprint="1234")),
        r"of another device or machine \(simulated, 1 threads\)",
    ),
    "missing": (edited(lambda d: d.pop("prices")), "not a calibration"),
    "negative": (edited(lambda d: d["prices"]["1"].update(add=[[0, -1.0]])), "-1.0 is no time or price"),
    "infinite": (edited(lambda d: d.update(launch_s=float("inf"))), "inf is no time or price"),
    "text": (edited(lambda d: d["ratios"].update(matmul="fast")), "'fast' is no time or price"),
    "no type": (edited(lambda d: d["alike"].update(Q4_K="Q4_O")), "'Q4_O' is no tensor type"),
    "no levels": (edited(lambda d: d["prices"]["1"].update(add=[])), r"prices \[\]"),
    "levels upside down": (edited(lambda d: d["prices"]["1"]["matmul/Q8_0"].reverse()), "prices "),
    "no rate": (edited(lambda d: d["links"]["sim:0/ram"].update(upload=[0, 0])), "link "),
    "odd observation": (edited(lambda d: d["observations"][0].update(colour="red")), "not a calibration"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_file_is_one_clear_line_and_left_out(fault: str) -> None:
    spoil, said = FAULTS[fault]
    driver = SimulatedDriver()
    device = found(driver)
    path = store.path_of(driver, device.info)
    store.write(calibration_of(driver), path)
    spoil(path)
    with pytest.raises(ConfigError, match=said) as caught:
        store.read(driver, device.info)
    assert str(path) in caught.value.message and "hetrun calibrate" in (caught.value.remedy or "")
    with pytest.warns(UserWarning, match="is planned by the driver's own estimates") as warned:
        assert device.with_stored_calibration().calibration is None
    assert len(warned) == 1 and "\n" not in str(warned[0].message)


def test_folder_that_cannot_be_written_is_an_error(data_folder: Path) -> None:
    driver = SimulatedDriver()
    data_folder.mkdir()
    (data_folder / "calibration").write_text("no folder")
    with pytest.raises(ConfigError, match="the calibration cannot be written") as caught:
        store.write(calibration_of(driver), store.path_of(driver, found(driver).info))
    assert "HETRUN_DATA" in (caught.value.remedy or "")


def test_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimulatedDriver()
    calibration, path = calibration_of(driver), store.path_of(driver, found(driver).info)
    store.write(calibration, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        store.write(replace(calibration, launch_s=1.0), path)
    assert store.read(driver, found(driver).info) == calibration
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HETRUN_DATA": "/a", "XDG_DATA_HOME": "/b"}, "/a"),
        ({"XDG_DATA_HOME": "/b"}, "/b/hetrun"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/c"}, "/c/.local/share/hetrun"),
        ({"HOME": "/c"}, "/c/.local/share/hetrun"),
    ],
)
def test_data_folder(variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hetrun.resources import data_dir

    for name in ("HETRUN_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert data_dir() == Path(folder)
