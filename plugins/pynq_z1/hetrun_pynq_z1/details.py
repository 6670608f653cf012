"""What `hetrun devices` shows of the board: overlay, engine, memories, permissions. It reads files, changes nothing."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hetrun.device import Detail
from hetrun.errors import HetrunError
from hetrun.native import address_of
from hetrun_pynq_z1 import interrupt, native, overlay_file, reserved
from hetrun_pynq_z1.cma import meminfo_bytes
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.settings import BoardSettings

FPGA_STATE = Path("/sys/class/fpga_manager/fpga0/state")


def details(settings: BoardSettings) -> Sequence[Detail]:
    """Lines in the order of the table's rows."""
    try:
        definition()
    except HetrunError as error:
        return [Detail("engine", "unknown", error.message)]
    return list(_details(settings))


def _details(settings: BoardSettings) -> Iterator[Detail]:
    path = Path(settings.overlay) if settings.overlay else None
    file, unread = _read(path)
    yield Detail("overlay", str(path) if path else "none named", unread)
    loaded = _loaded(path)
    yield Detail("loaded", *loaded)
    yield Detail("engine", *_engine(file, loaded == ("yes", None)))
    yield Detail("register map", *_register_map(file))
    yield Detail("clock", f"{settings.clock_mhz:g} MHz" if settings.clock_mhz else "unknown")
    yield Detail("contiguous memory (CMA)", *_contiguous(settings))
    yield Detail("reserved memory", *_reserved(settings))
    staged = f"{settings.staging_bytes} bytes of CMA, for weights of pynq-z1:stream" if settings.staging_bytes else ""
    yield Detail("staging area", staged or "none: weights are resident")
    yield Detail("wait", *_wait(settings, path))
    yield Detail("permissions", *_permissions())


def _read(path: Path | None) -> tuple[overlay_file.OverlayFile | None, str | None]:
    if path is None:
        return None, 'set overlay = "/path/engine.bit" under [drivers.pynq-z1] in the system file'
    missing = [str(p) for p in (path, path.with_suffix(".hwh")) if not p.is_file()]
    if missing:
        return None, f"{' and '.join(missing)} not found"
    try:
        return overlay_file.read(path), None
    except (OSError, ValueError) as error:
        return None, f"{path.with_suffix('.hwh')} cannot be read: {error}"


def _loaded(path: Path | None) -> tuple[str, str | None]:
    """pynq writes down what it has loaded; the kernel knows only whether anything is."""
    try:
        state = FPGA_STATE.read_text().strip()
    except OSError:
        return "unknown", "this machine has no FPGA that Linux manages"
    if state != "operating":
        return "no", None
    found = importlib.util.find_spec("pynq")
    record = Path(found.origin).parent / "pl_server" / "global_pl_state.json" if found and found.origin else None
    try:
        name = str(json.loads(record.read_text())["bitfile_name"]) if record else ""
    except (OSError, ValueError, KeyError, TypeError):
        name = ""
    if not name:
        return "unknown", "something is loaded, but pynq has no record of what"
    if path is None or Path(name) != path:
        return f"another overlay, {name}", None
    return "yes", None


def _engine(file: overlay_file.OverlayFile | None, loaded: bool) -> tuple[str, str | None]:
    """Version and parameters: the engine writes them when it runs, and only a loaded one may be asked."""
    known = definition()
    expected = {"VERSION": known.numbers["VERSION"], "CONFIG": known.config_word}
    wanted = ", ".join(f"{name} {value:#x}" for name, value in expected.items())
    if not loaded or file is None or file.base is None or file.fault:
        return f"unknown; this hetrun expects {wanted}", None
    try:
        found = _registers(file.base, [known.registers[name] for name in expected])
    except (OSError, ValueError) as error:
        return f"unknown; this hetrun expects {wanted}", f"its registers cannot be read: {error}"
    if not any(found):
        return f"not started since it was loaded; this hetrun expects {wanted}", None
    shown = ", ".join(f"{name} {value:#x}" for name, value in zip(expected, found, strict=True))
    return shown, None if found == list(expected.values()) else f"this hetrun expects {wanted}"


def _registers(base: int, offsets: Sequence[int]) -> list[int]:
    descriptor = os.open(reserved.MEMORY_DEVICE, os.O_RDWR | os.O_SYNC)
    try:
        with mmap.mmap(descriptor, mmap.PAGESIZE, offset=base) as mapped, memoryview(mapped) as view:
            address = address_of(view)
            return [int(native.library().hetrun_pynq_mmio_read(address, offset)) for offset in offsets]
    finally:
        os.close(descriptor)


def _register_map(file: overlay_file.OverlayFile | None) -> tuple[str, str | None]:
    if file is None:
        return "unknown", None
    if file.fault:
        return "another one", f"{file.fault}: use the overlay of hetrun build pynq-z1"
    return f"as this hetrun's, {len(overlay_file.ARGUMENTS)} registers at {file.base:#x}", None


def _contiguous(settings: BoardSettings) -> tuple[str, str | None]:
    total, free = meminfo_bytes("CmaTotal"), meminfo_bytes("CmaFree")
    limit = f"at most {settings.cma_bytes} are taken"
    if not total:
        return f"unknown; {limit}", "this kernel has no CMA"
    short = settings.cma_bytes > total
    return f"{total} bytes, {free} free; {limit}", "cma_bytes is more than there is: boot with cma=" if short else None


def _reserved(settings: BoardSettings) -> tuple[str, str | None]:
    place = settings.reserved
    if place is None:
        return "none", None
    problem = reserved.problem(place)
    return f"{place.nbytes} bytes, {place}", f"{problem.reason}; {problem.remedy}" if problem else None


def _wait(settings: BoardSettings, path: Path | None) -> tuple[str, str | None]:
    if not settings.sleeps:
        return "poll", None
    problem = interrupt.problem(path) if path else None
    line = interrupt.device(0)
    return f"interrupt, {line}" if line else "interrupt", f"{problem.reason}; {problem.remedy}" if problem else None


def _permissions() -> tuple[str, str | None]:
    device = reserved.MEMORY_DEVICE
    if not device.exists():
        return f"{device} is not there", "this kernel does not offer it"
    if os.access(device, os.R_OK | os.W_OK):
        return f"{device} may be read and written", None
    return f"{device} may not be read and written", "run hetrun as root: sudo -E"
