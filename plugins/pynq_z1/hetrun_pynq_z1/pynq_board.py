"""The board itself, through the `pynq` package: overlay, clock, registers, contiguous memory, caches, reset."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hetrun.device import Unavailable
from hetrun.errors import DeviceError, HetrunError
from hetrun_pynq_z1 import native
from hetrun_pynq_z1.board import Block
from hetrun_pynq_z1.cma import Cma
from hetrun_pynq_z1.definition import definition

# What Linux calls the boards that carry a Zynq-7000.
COMPATIBLE = Path("/proc/device-tree/compatible")
MEMORY_DEVICE = Path("/dev/mem")
IP_NAME = "hetrun_pynq_engine"
ARGUMENTS = ("RING", "COUNT", "VERSION", "CONFIG", "STATUS", "DONE", "BUSY_CYCLES", "STALL_CYCLES")
DONE = 2
TIMEOUT_S = 30.0
START_S = 1.0  # more than an engine with nothing to do can take


@dataclass(frozen=True)
class BoardSettings:
    """overlay: the .bit file, its .hwh beside it.   clock_mhz: of the fabric.   timeout_s: of one launch."""

    overlay: str | None
    clock_mhz: float
    timeout_s: float


def absence(overlay: str | None) -> Unavailable | None:
    """Why there is no board to open, or None. It looks at files only; nothing is imported and nothing is changed."""
    remedy = "run hetrun on the board's own image (docs/pynq-z1.md), or use pynq-z1:csim"
    try:
        compatible = COMPATIBLE.read_bytes()
    except OSError:
        compatible = b""
    if b"xlnx,zynq-7000" not in compatible:
        return Unavailable("this machine is no Zynq-7000 board", remedy)
    if importlib.util.find_spec("pynq") is None:
        return Unavailable(
            "the Python package pynq is not installed",
            'pip install "pynq>=3.0.1", or use the Python of the board\'s image (/usr/local/share/pynq-venv)',
        )
    if not os.access(MEMORY_DEVICE, os.R_OK | os.W_OK):
        return Unavailable(f"no permission for {MEMORY_DEVICE}", "run hetrun as root: sudo -E")
    if overlay is None:
        return Unavailable(
            "no overlay is named", 'set overlay = "/path/engine.bit" under [drivers.pynq-z1] in the system file'
        )
    for path in (Path(overlay), Path(overlay).with_suffix(".hwh")):
        if not path.is_file():
            return Unavailable(
                f"overlay file {path} not found", "copy the .bit and the .hwh of one build into one folder"
            )
    return None


class PynqBoard:
    """A PYNQ-Z1 with the engine in its fabric.

    device: the pynq Device; that which pynq finds where None.   capacity_bytes: most contiguous memory to take.
    DeviceError where the overlay is not this engine's, or the engine does not answer.
    """

    def __init__(self, device_id: str, settings: BoardSettings, capacity_bytes: int, device: Any = None) -> None:
        pynq = _imported(device_id)
        assert settings.overlay is not None
        self._subject, self._settings = device_id, settings
        self._pynq = pynq
        self._error: HetrunError | Exception | None = None
        try:
            self._device = device if device is not None else pynq.Device.active_device
            self._overlay = pynq.Overlay(settings.overlay, download=False, device=self._device)
        except Exception as error:  # whatever pynq meets in a file
            raise DeviceError(
                f"{device_id}: overlay {settings.overlay} cannot be read: {error}",
                remedy="copy the .bit and the .hwh of one build into one folder",
            ) from error
        ip = self._engine_ip()
        self._download()
        self._registers = pynq.MMIO(int(ip["phys_addr"]), int(ip["addr_range"]), device=self._device)
        self._check_engine()
        # No method of this object: the finalizer below would keep it alive.
        allocate = partial(pynq.allocate, dtype="u1", target=self._device)
        self._cma = Cma(device_id, lambda nbytes: allocate((nbytes,)), capacity_bytes)
        self._seam = self._make_seam()
        # At the latest when the interpreter ends; after a kill the kernel takes the memory back with the file handle.
        self._finalizer = weakref.finalize(self, Cma.release, self._cma)

    @property
    def seam(self) -> native.Seam:
        return self._seam

    def allocate(self, nbytes: int) -> Block:
        return self._cma.take(nbytes)

    def free(self, block: Block) -> None:
        self._cma.give_back(block)

    def flush(self, block: Block) -> None:
        if block.view.nbytes:
            self._cached("flush", block.address, block.view.nbytes)
            self.check()

    def check(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise DeviceError(f"{self._subject}: {error}") from error

    def reset(self) -> None:
        """Stops the engine and loads the overlay again. DeviceError where the engine stays silent."""
        self._write("CTRL", 0)
        self._download()
        self._check_engine()

    def close(self) -> None:
        self._finalizer()

    def _engine_ip(self) -> Mapping[str, Any]:
        """The engine's entry of the overlay, its registers compared with the definition."""
        ips: Mapping[str, Mapping[str, Any]] = self._overlay.ip_dict
        engines = [ip for ip in ips.values() if f":{IP_NAME}:" in str(ip.get("type", ""))]
        if not engines:
            found = ", ".join(sorted(str(ip.get("type", "?")) for ip in ips.values())) or "nothing"
            raise self._wrong(f"an IP named {IP_NAME}", found)
        have = {_plain(name): int(register["address_offset"]) for name, register in engines[0]["registers"].items()}
        for name in ARGUMENTS:
            offset = definition().registers[name]
            if have.get(name) != offset:
                found = f"{have[name]:#x}" if name in have else f"only {', '.join(sorted(have)) or 'no registers'}"
                raise self._wrong(f"register {name} at {offset:#x}", found)
        return engines[0]

    def _wrong(self, expected: str, found: str) -> DeviceError:
        overlay = self._settings.overlay
        return DeviceError(
            f"{self._subject}: overlay {overlay} is not this engine's: expected {expected}, found {found}",
            remedy="use the overlay that was built from this version's kernels/pynq_z1/hls",
        )

    def _download(self) -> None:
        # pynq 4.0.0 knows no rates for a Zynq-7000 and fails on the .hwh's clocks, so the clock is set here.
        self._overlay.clock_dict = {}
        try:
            self._pynq.Clocks.set_pl_clk(0, clk_mhz=self._settings.clock_mhz)
        except Exception as error:
            if platform.machine().startswith("arm"):  # else it only plays a board, and has no clock generator
                raise DeviceError(
                    f"{self._subject}: the clock cannot be set to {self._settings.clock_mhz:g} MHz: {error}",
                    remedy="run hetrun as root, or choose another clock_mhz",
                ) from error
        try:
            self._overlay.download()
        except Exception as error:
            raise DeviceError(
                f"{self._subject}: overlay {self._settings.overlay} does not load: {error}",
                remedy="run hetrun as root, with a bitstream for the xc7z020clg400",
            ) from error

    def _check_engine(self) -> None:
        """Starts the engine with nothing to do: it writes its version and parameters only when it runs."""
        self._write("COUNT", 0)
        self._write("CTRL", 1)
        limit = time.monotonic() + START_S
        while not self._read("CTRL") & DONE:
            if time.monotonic() > limit:
                raise DeviceError(
                    f"{self._subject}: the engine of {self._settings.overlay} does not answer",
                    remedy="power-cycle the board; if it repeats, the overlay is not sound",
                )
        known = definition()
        for name, expected in (("VERSION", known.numbers["VERSION"]), ("CONFIG", known.config_word)):
            found = self._read(name)
            if found != expected:
                raise self._wrong(f"{name} {expected:#x}", f"{found:#x}")

    def _read(self, register: str) -> int:
        return int(self._registers.read(definition().registers[register]))

    def _write(self, register: str, value: int) -> None:
        self._registers.write(definition().registers[register], value)

    def _make_seam(self) -> native.Seam:
        """Registers by C where they are mapped into the process, by pynq where a model stands behind them."""
        base = getattr(getattr(self._registers.array, "ctypes", None), "data", None)
        guard = _Guard(weakref.ref(self))
        flush, invalidate = native.CACHE(guard.flush), native.CACHE(guard.invalidate)
        if base is not None and self._device.has_capability("MEMORY_MAPPED"):
            lib = native.library()
            read = ctypes.cast(lib.hetrun_pynq_mmio_read, native.READ)
            write = ctypes.cast(lib.hetrun_pynq_mmio_write, native.WRITE)
            return native.Seam(base, read, write, flush, invalidate)
        return native.Seam(None, native.READ(guard.read), native.WRITE(guard.write), flush, invalidate)

    def _cached(self, operation: str, address: int, nbytes: int) -> None:
        chunk = self._cma.find(address, nbytes)
        if chunk is None:
            self._error = DeviceError(f"{nbytes} bytes at {address:#x} are not the board's")
            return
        try:
            (chunk.flush if operation == "flush" else chunk.invalidate)(address, nbytes)
        except Exception as error:  # it must not cross the C code that called
            self._error = error


class _Guard:
    """What C calls: it holds no board alive, and lets no exception through."""

    def __init__(self, board: Callable[[], PynqBoard | None]) -> None:
        self._board = board

    def read(self, _: object, offset: int) -> int:
        board = self._board()
        if board is None:
            return 0
        try:
            return int(board._registers.read(offset))
        except Exception as error:
            board._error = error
            return DONE  # ends the wait; the error is raised after the launch

    def write(self, _: object, offset: int, value: int) -> None:
        board = self._board()
        if board is None:
            return
        try:
            board._registers.write(offset, value)
        except Exception as error:
            board._error = error

    def flush(self, _: object, address: int, nbytes: int) -> None:
        board = self._board()
        if board is not None:
            board._cached("flush", address, nbytes)

    def invalidate(self, _: object, address: int, nbytes: int) -> None:
        board = self._board()
        if board is not None:
            board._cached("invalidate", address, nbytes)


def _imported(device_id: str) -> Any:
    try:
        import pynq
    except Exception as error:  # pynq runs code on import that fails in many ways
        raise DeviceError(
            f"{device_id}: pynq does not import: {error}",
            remedy="use the Python of the board's image, or reinstall pynq",
        ) from error
    return pynq


def _plain(register: str) -> str:
    """As the definition calls it: Vitis HLS appends _r to names that Verilog reserves."""
    name = register.upper()
    return name[:-2] if name.endswith("_R") else name
