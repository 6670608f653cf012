"""The engine on a card as pyxrt gives it: kernel, memory banks, buffers, and the one run object."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hetrun.errors import AllocationError, DeviceError, HetrunError
from hetrun_alveo_u280.card import BEAT_BYTES, Report
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.settings import Settings

KERNEL = "hetrun_u280_controller"  # which the host starts; the lanes run by themselves
DDR_BANK = "DDR[0]"
DDR = -1  # its buffer, behind those of the channels
# A group's low 16 bits are the bank, above them stands the slot of a hardware context (XRT 2.16 and later).
BANK_MASK = 0xFFFF
# A buffer must not cross 4 GB.
MOST_BUFFER_BYTES = (1 << 32) - 4096
# XRT 2.13 holds Python's lock while it waits: threads, and Ctrl-C, get their turn between slices. One that has ended
# returns at once, so that slices cost nothing.
SLICE_MS = 20
RUNNING = 3  # of ert_cmd_state, which pyxrt has no name for
REBUILD = "build it from this version's sources: hetrun build alveo-u280"
PIECE = memoryview(bytes(4 << 20))
# Where the first launch finds a program that ends at once, and leaves its report; the host has given out nothing yet.
PROGRAM, ROWS, REPORT = 1, 3, 4
NO_VERSION, NO_REPORT = 0, 0xFFFFFFFF


class LaunchFailure(Exception):
    """A launch that did not end as it should; the card's state is not known. The message says what was seen."""


def banks() -> Sequence[tuple[str, Sequence[int]]]:
    """(tag of its memory bank, numbers of the kernel's arguments that have it) of each buffer."""
    n = definition().numbers
    channels = [(f"HBM[{i}]", (i,)) for i in range(n["CHANNELS"])]
    return [*channels, (DDR_BANK, (n["ARG_DDR"], n["ARG_DDR_VECTOR"]))]


def kernel_fault(xclbin: Any) -> str | None:
    """What of a parsed xclbin's kernels is not as the definition has it."""
    kernels = {kernel.get_name(): kernel.get_num_args() for kernel in xclbin.get_kernels()}
    if KERNEL not in kernels:
        return f"expected a kernel {KERNEL}, found {', '.join(sorted(kernels)) or 'none'}"
    if kernels[KERNEL] < definition().numbers["ARGS"]:  # streams to the lanes stand behind them
        return f"its kernel has {kernels[KERNEL]} arguments, expected {definition().numbers['ARGS']} or more"
    return None


@contextmanager
def failing(subject: str, what: str, remedy: str | None = None) -> Iterator[None]:
    """pyxrt raises whatever XRT throws: it becomes a DeviceError that says what was being done."""
    try:
        yield
    except HetrunError:
        raise
    except Exception as error:
        raise DeviceError(f"{subject}: {what}: {said(error)}", remedy=remedy) from error


def said(error: Exception) -> str:
    """In one line: pyxrt tells of wrong arguments at length."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class OpenedCard:
    """A card with the engine loaded, its buffers made, its run object bound to them.

    DeviceError where the card does not open, the xclbin is not this engine's, or its version differs; AllocationError
    where a bank has no room. What memory holds is whatever was there before.
    """

    def __init__(self, pyxrt: Any, subject: str, settings: Settings) -> None:
        self._pyxrt, self._subject, self._settings = pyxrt, subject, settings
        self._running = False
        # In the order in which they are let go of: each needs those that follow.
        self._run: Any = None
        self._buffers: list[Any] = []
        self._kernel: Any = None
        self._context: Any = None
        self._device: Any = None
        try:
            with failing(
                subject, f"card {settings.card} does not open", "xbutil examine lists the cards that XRT sees"
            ):
                self._device = pyxrt.device(settings.card)
            xclbin = self._checked_xclbin()
            self._kernel = self._load(xclbin)
            self._buffers = [self._allocate(xclbin, tag, numbers) for tag, numbers in banks()]
            self._run = pyxrt.run(self._kernel)
            for (_, numbers), buffer in zip(banks(), self._buffers, strict=True):
                for number in numbers:
                    self._run.set_arg(number, buffer)
            self._check_engine()
        except BaseException:
            self.release()
            raise

    @property
    def address(self) -> str:
        """On the PCIe bus."""
        try:
            return str(self._device.get_info(self._pyxrt.xrt_info_device.bdf))
        except Exception:
            return str(self._settings.card)

    def release(self) -> None:
        """pyxrt has no close: the last reference frees. A process that dies frees all by its file handles."""
        self._run = None
        self._buffers.clear()
        self._kernel = self._context = self._device = None

    def write(self, buffer: int, offset: int, data: memoryview) -> None:
        """Onto the card: XRT's copy of a buffer on the host is not the card's memory."""
        if data.nbytes:
            with self._using(f"writing {data.nbytes} bytes at {offset}") as buffers:
                buffers[buffer].write(data, offset)
                buffers[buffer].sync(self._to_card, data.nbytes, offset)

    def read(self, buffer: int, offset: int, nbytes: int) -> memoryview:
        """From the card."""
        with self._using(f"reading {nbytes} bytes at {offset}") as buffers:
            if not nbytes:
                return memoryview(b"")
            buffers[buffer].sync(self._from_card, nbytes, offset)
            return memoryview(buffers[buffer].read(nbytes, offset)).cast("B")

    def zero(self, offset: int, nbytes: int) -> None:
        """In every channel."""
        for channel in range(len(self._buffers[:DDR])):
            for begin in range(offset, offset + nbytes, PIECE.nbytes):
                self.write(channel, begin, PIECE[: min(PIECE.nbytes, offset + nbytes - begin)])

    def copy(self, src: int, dst: int, nbytes: int) -> None:
        """In every channel, by way of the host: pyxrt has no copy on the card."""
        for channel in range(len(self._buffers[:DDR])):
            for begin in range(0, nbytes, PIECE.nbytes):
                piece = self.read(channel, src + begin, min(PIECE.nbytes, nbytes - begin))
                self.write(channel, dst + begin, piece)

    def launch(self, scalars: Mapping[str, int]) -> Report:
        """One run to its end. LaunchFailure where it does not come."""
        self.settle()
        numbers = definition().under("ARG_")
        with failing(self._subject, "the launch does not start"):
            for name, value in scalars.items():
                self._run.set_arg(numbers[name], value)
            self._deadline = time.monotonic() + self._settings.timeout_s
            self._running = True
            self._run.start()
        self.settle()
        return Report.of(self.read(DDR, scalars["REPORT"] * BEAT_BYTES, BEAT_BYTES))

    def settle(self) -> None:
        """Waits for a run that was started and whose end nobody saw (Ctrl-C). LaunchFailure where it does not come."""
        states = self._pyxrt.ert_cmd_state
        under_way = (
            states.ERT_CMD_STATE_TIMEOUT, states.ERT_CMD_STATE_NEW, states.ERT_CMD_STATE_QUEUED,
            states.ERT_CMD_STATE_SUBMITTED,
        )  # fmt: skip
        while self._running:
            try:
                state = self._run.wait(SLICE_MS)
            except Exception as error:
                raise LaunchFailure(f"waiting for the launch failed: {said(error)}") from error
            if state == states.ERT_CMD_STATE_COMPLETED:
                self._running = False
            elif state not in under_way and int(state) != RUNNING:
                raise LaunchFailure(f"the launch ended as {getattr(state, 'name', state)}")
            elif time.monotonic() > self._deadline:
                raise LaunchFailure(f"the launch has not ended within {self._settings.timeout_s:g} s")

    @property
    def _to_card(self) -> Any:
        return self._pyxrt.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE

    @property
    def _from_card(self) -> Any:
        return self._pyxrt.xclBOSyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE

    @contextmanager
    def _using(self, what: str) -> Iterator[list[Any]]:
        self.settle()
        with failing(self._subject, what):
            yield self._buffers

    def _checked_xclbin(self) -> Any:
        path = self._settings.xclbin
        with failing(self._subject, f"xclbin {path} cannot be read", REBUILD):
            xclbin = self._pyxrt.xclbin(path)
            fault = kernel_fault(xclbin)
        if fault:
            raise self._wrong(fault)
        return xclbin

    def _load(self, xclbin: Any) -> Any:
        """The kernel, by hardware contexts where this XRT has them (2.16 and later)."""
        pyxrt, path = self._pyxrt, self._settings.xclbin
        remedy = "it must be built for the platform on the card (xbutil examine), and no other process may use the card"
        with failing(self._subject, f"xclbin {path} does not load", remedy):
            if hasattr(pyxrt, "hw_context"):
                self._context = pyxrt.hw_context(self._device, self._device.register_xclbin(xclbin))
                return pyxrt.kernel(self._context, KERNEL)
            uuid = self._device.load_xclbin(xclbin)
            return pyxrt.kernel(self._device, uuid, KERNEL, pyxrt.kernel.exclusive)

    def _bank(self, xclbin: Any, tag: str, number: int) -> tuple[Any, int]:
        """(memory bank, group) of an argument. XRT only warns of a buffer in another bank, and gives the kernel a copy
        that the host never writes: so banks are compared here.
        """
        with failing(self._subject, f"the memory bank of argument {number} is not known", REBUILD):
            group = self._kernel.group_id(number)
            bank = next((m for m in xclbin.get_mems() if m.get_index() == group & BANK_MASK), None)
        if bank is None or bank.get_tag() != tag:
            raise self._wrong(
                f"argument {number} is connected to {bank.get_tag() if bank else 'nothing'}, not to {tag}"
            )
        return bank, group

    def _allocate(self, xclbin: Any, tag: str, numbers: Sequence[int]) -> Any:
        """The buffer of arguments that share one."""
        settings = self._settings
        nbytes = settings.ddr_bytes if tag == DDR_BANK else settings.channel_bytes
        found = [self._bank(xclbin, tag, number) for number in numbers]  # each is compared
        bank, group = found[0]
        capacity = bank.get_size_kb() * 1024
        if nbytes > min(capacity, MOST_BUFFER_BYTES):
            raise AllocationError(
                f"{self._subject}: {nbytes} bytes of {tag} asked for, a buffer there has at most "
                f"{min(capacity, MOST_BUFFER_BYTES)}",
                remedy="set smaller hbm_bytes and ddr_bytes in the system file",
            )
        try:
            buffer = self._pyxrt.bo(self._device, nbytes, self._pyxrt.bo.normal, group)
        except Exception as error:
            raise AllocationError(
                f"{self._subject}: no {nbytes} bytes of {tag}: {said(error)}",
                remedy="end the process that uses the card, or set smaller hbm_bytes and ddr_bytes: buffers take as "
                "much memory of the host",
            ) from error
        begin = buffer.address() - bank.get_base_address()
        if not 0 <= begin <= capacity - nbytes:
            raise self._wrong(f"the buffer of argument {numbers[0]} lies at {buffer.address():#x}, outside of {tag}")
        return buffer

    def _check_engine(self) -> None:
        """Its version, asked for by a launch with one that no engine has; then a program that ends at once."""
        version = definition().numbers["VERSION"]
        program = bytes((REPORT - PROGRAM) * BEAT_BYTES)  # OP_END is 0, and so is the row behind it
        names = ("N_TOKENS", "TOKEN", "POSITION", "SLOT", "OUTPUT")
        scalars = dict.fromkeys(names, 0) | {"PROGRAM": PROGRAM, "ROWS": ROWS, "REPORT": REPORT}
        for launched, expected in ((NO_VERSION, "BAD_VERSION"), (version, "OK")):
            self.write(DDR, PROGRAM * BEAT_BYTES, memoryview(program + b"\xff" * BEAT_BYTES))
            try:
                report = self.launch({**scalars, "N_TOKENS": 1, "OUTPUT": -1, "VERSION": launched})
            except LaunchFailure as error:
                raise DeviceError(
                    f"{self._subject}: the engine of {self._settings.xclbin} does not answer: {error}",
                    remedy=f"reset the card: xbutil reset --device {self.address}",
                ) from error
            if report.version == NO_REPORT:
                raise self._wrong("the engine wrote no report")
            found = definition().statuses.get(report.status, f"status {report.status:#x}")
            if report.version != version:
                raise self._wrong(f"the engine is of version {report.version}, this hetrun drives version {version}")
            if found != expected:
                raise self._wrong(f"told version {launched}, the engine answers {found}, not {expected}")

    def _wrong(self, fault: str) -> DeviceError:
        return DeviceError(
            f"{self._subject}: xclbin {self._settings.xclbin} is not this engine's: {fault}",
            remedy=REBUILD,
        )
