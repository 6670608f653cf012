"""The board itself, through the `pynq` package: overlay, clock, registers, contiguous memory, caches, reset."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hetrun.device import Unavailable
from hetrun.errors import DeviceError, HetrunError
from hetrun_pynq_z1 import interrupt, native, reserved
from hetrun_pynq_z1.board import Block
from hetrun_pynq_z1.cma import Cma
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.overlay_file import IP_NAME, plain, register_fault
from hetrun_pynq_z1.reserved import Reserved
from hetrun_pynq_z1.settings import BoardSettings

# What Linux calls the boards that carry a Zynq-7000.
COMPATIBLE = Path("/proc/device-tree/compatible")
DONE = 2
START_S = 1.0  # more than an engine with nothing to do can take


def absence(settings: BoardSettings) -> Unavailable | None:
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
    if not os.access(reserved.MEMORY_DEVICE, os.R_OK | os.W_OK):
        return Unavailable(f"no permission for {reserved.MEMORY_DEVICE}", "run hetrun as root: sudo -E")
    overlay = settings.overlay
    if overlay is None:
        return Unavailable(
            "no overlay is named", 'set overlay = "/path/engine.bit" under [drivers.pynq-z1] in the system file'
        )
    for path in (Path(overlay), Path(overlay).with_suffix(".hwh")):
        if not path.is_file():
            return Unavailable(
                f"overlay file {path} not found", "copy the .bit and the .hwh of one build into one folder"
            )
    problem = reserved.problem(settings.reserved) if settings.reserved else None
    return problem or (interrupt.problem(Path(overlay)) if settings.sleeps else None)


class PynqBoard:
    """A PYNQ-Z1 with the engine in its fabric.

    device: the pynq Device; that which pynq finds where None.
    DeviceError where the overlay is not this engine's, the engine does not answer, or another process has the board.
    """

    def __init__(self, device_id: str, settings: BoardSettings, device: Any = None) -> None:
        self._subject, self._settings = device_id, settings
        self._error: HetrunError | Exception | None = None
        self.users = 1
        self.engine = threading.Lock()
        self._pynq = _imported(device_id)
        resources = _Resources()
        # At the latest when the interpreter ends; after a kill the kernel takes all of it back with the file handles.
        self._finalizer = weakref.finalize(self, resources.release)
        try:
            self._set_up(resources, device)
        except BaseException:
            resources.release()
            raise

    def _set_up(self, resources: _Resources, device: Any) -> None:
        settings, pynq = self._settings, self._pynq
        resources.descriptors.append(_locked(self._subject))
        assert settings.overlay is not None
        try:
            self._device = device if device is not None else pynq.Device.active_device
            self._overlay = pynq.Overlay(settings.overlay, download=False, device=self._device)
        except Exception as error:  # whatever pynq meets in a file
            raise DeviceError(
                f"{self._subject}: overlay {settings.overlay} cannot be read: {error}",
                remedy="copy the .bit and the .hwh of one build into one folder",
            ) from error
        ip = self._engine_ip()
        self._reserved = Reserved(self._subject, settings.reserved) if settings.reserved else None
        resources.reserved = self._reserved
        self._interrupt = -1
        if settings.sleeps:
            self._interrupt = interrupt.opened(self._subject, Path(settings.overlay))
            resources.descriptors.append(self._interrupt)
        self._download()
        self._registers = pynq.MMIO(int(ip["phys_addr"]), int(ip["addr_range"]), device=self._device)
        self._check_engine()
        # No method of this object: the finalizer would keep it alive.
        allocate = partial(pynq.allocate, dtype="u1", target=self._device)
        refuse = self._reserved.refuse if self._reserved else None
        self._cma = Cma(self._subject, lambda nbytes: allocate((nbytes,)), settings.cma_bytes, refuse)
        resources.cma = self._cma
        self._seam = self._make_seam()

    @property
    def seam(self) -> native.Seam:
        return self._seam

    def allocate(self, nbytes: int) -> Block:
        return self._cma.take(nbytes)

    def allocate_weights(self, nbytes: int) -> Block:
        """Of reserved memory while that lasts."""
        block = self._reserved.take(nbytes) if self._reserved else None
        return block or self._cma.take(nbytes)

    def free(self, block: Block) -> None:
        if block.uncached and self._reserved is not None:
            self._reserved.give_back(block)
        else:
            self._cma.give_back(block)

    def flush(self, block: Block) -> None:
        if block.view.nbytes and not block.uncached:
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
        """By each that `open_board` has given it to; the last one gives everything back."""
        self.users -= 1
        if self.users <= 0:
            _OPEN.pop(self._settings, None)
            self._finalizer()

    def _engine_ip(self) -> Mapping[str, Any]:
        """The engine's entry of the overlay, its registers compared with the definition."""
        ips: Mapping[str, Mapping[str, Any]] = self._overlay.ip_dict
        engines = [ip for ip in ips.values() if f":{IP_NAME}:" in str(ip.get("type", ""))]
        if not engines:
            found = ", ".join(sorted(str(ip.get("type", "?")) for ip in ips.values())) or "nothing"
            raise self._wrong(f"expected an IP named {IP_NAME}, found {found}")
        have = {plain(name): int(register["address_offset"]) for name, register in engines[0]["registers"].items()}
        fault = register_fault(have)
        if fault:
            raise self._wrong(fault)
        return engines[0]

    def _wrong(self, fault: str) -> DeviceError:
        overlay = self._settings.overlay
        return DeviceError(
            f"{self._subject}: overlay {overlay} is not this engine's: {fault}",
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
                raise self._wrong(f"expected {name} {expected:#x}, found {found:#x}")

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
            return native.Seam(base, read, write, flush, invalidate, self._interrupt)
        return native.Seam(None, native.READ(guard.read), native.WRITE(guard.write), flush, invalidate, self._interrupt)

    def _cached(self, operation: str, address: int, nbytes: int) -> None:
        chunk = self._cma.find(address, nbytes)
        if chunk is None:
            self._error = DeviceError(f"{nbytes} bytes at {address:#x} are not the board's")
            return
        try:
            (chunk.flush if operation == "flush" else chunk.invalidate)(address, nbytes)
        except Exception as error:  # it must not cross the C code that called
            self._error = error


class _Resources:
    """What goes back when a board is closed. It holds no board alive."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.cma: Cma | None = None
        self.reserved: Reserved | None = None

    def release(self) -> None:
        if self.cma is not None:
            self.cma.release()
        if self.reserved is not None:
            self.reserved.release()
        descriptors, self.descriptors = self.descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


_OPEN: weakref.WeakValueDictionary[BoardSettings, PynqBoard] = weakref.WeakValueDictionary()


def open_board(device_id: str, settings: BoardSettings) -> PynqBoard:
    """The board with these settings: one for all devices of this process that are on it."""
    board = _OPEN.get(settings)
    if board is not None:
        board.users += 1
        return board
    board = _OPEN[settings] = PynqBoard(device_id, settings)
    return board


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


def _locked(subject: str) -> int:
    """A lock on the board that ends with the process. DeviceError where another process has it."""
    descriptor = os.open(reserved.MEMORY_DEVICE, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DeviceError(
            f"{subject}: another process uses the board", remedy="wait for it, or end it: fuser -v /dev/mem shows it"
        ) from error
    return descriptor
