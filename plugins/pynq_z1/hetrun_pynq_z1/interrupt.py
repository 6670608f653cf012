"""The engine's interrupt as a file: the UIO device that Linux has for it, which C reads (host/launch.cpp)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hetrun.device import Unavailable
from hetrun.errors import DeviceError
from hetrun_pynq_z1 import overlay_file

FIRST_LINE = 61  # of the processing system's interrupts is IRQ_F2P[0] (UG585, table 7-4)
INTERRUPTS = Path("/proc/interrupts")
UIO_CLASS = Path("/sys/class/uio")
DEVICES = Path("/dev")

_REMEDY = 'set wait = "poll" in the system file'


def problem(overlay: Path) -> Unavailable | None:
    """Why a launch cannot wait for an interrupt of this overlay, or None. Nothing is opened."""
    try:
        line = overlay_file.read(overlay).interrupt
    except (OSError, ValueError):
        return None  # opening the overlay says what is wrong with it
    if line is None:
        return Unavailable(
            f"wait is interrupt, but overlay {overlay} has no interrupt of the engine on IRQ_F2P",
            f"{_REMEDY}, or use the overlay of hetrun build pynq-z1",
        )
    if device(line) is None:
        return Unavailable(
            f"wait is interrupt, but Linux has no UIO device for interrupt {FIRST_LINE + line}",
            f"{_REMEDY}, or use the board's own image, whose device tree has one",
        )
    return None


def device(line: int) -> Path | None:
    """/dev/uioN of a line of IRQ_F2P: the owner's name stands behind the number in /proc/interrupts."""
    try:
        lines = INTERRUPTS.read_text().splitlines()
        folders = sorted(UIO_CLASS.iterdir())
    except OSError:
        return None
    number = re.compile(rf"\s{FIRST_LINE + line}\s+(?:Level|Edge)\s+(\S+)")
    names = {found[1] for text in lines if (found := number.search(text))}
    for folder in folders:
        try:
            if (folder / "name").read_text().strip() in names:
                return DEVICES / folder.name
        except OSError:
            continue
    return None


def opened(subject: str, overlay: Path) -> int:
    """A file descriptor. DeviceError where there is none to open."""
    absent = problem(overlay)
    if absent:
        raise DeviceError(f"{subject}: {absent.reason}", remedy=absent.remedy)
    path = device(overlay_file.read(overlay).interrupt or 0)
    assert path is not None
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        raise DeviceError(
            f"{subject}: the engine's interrupt, {path}, cannot be opened: {error.strerror}",
            remedy=f"run hetrun as root: sudo -E; or {_REMEDY}",
        ) from error
