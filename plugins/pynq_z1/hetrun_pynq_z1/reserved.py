"""Memory that Linux was told to leave alone: weights for the engine, mapped through /dev/mem and never cached."""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path

from hetrun.device import Unavailable
from hetrun.errors import AllocationError, ConfigError, DeviceError
from hetrun.free_list import FreeList
from hetrun_pynq_z1.board import Block

PAGE_BYTES = 4096
MEMORY_DEVICE = Path("/dev/mem")
DEVICE_TREE = Path("/proc/device-tree")
IOMEM = Path("/proc/iomem")
RAM_BYTES = 512 << 20  # of the board (PYNQ-Z1 reference manual), where the device tree says nothing

Range = tuple[int, int]
"""Physical addresses [begin, end)."""


@dataclass(frozen=True)
class ReservedRange:
    """base: physical address.   Both are whole pages."""

    base: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.base + self.nbytes

    def __str__(self) -> str:
        return _shown((self.base, self.end))

    def overlap(self, other: Range) -> bool:
        return self.base < other[1] and other[0] < self.end


def parse_range(driver: str, value: object) -> ReservedRange | None:
    """Of the setting `reserved`. ConfigError for anything but { base = ..., bytes = ... } of whole pages."""
    if value is None:
        return None
    example = "for example reserved = { base = 0x10000000, bytes = 0x0c000000 }"
    if not isinstance(value, dict) or set(value) != {"base", "bytes"}:
        raise ConfigError(f"driver {driver}: reserved is {value!r}", remedy=f"give base and bytes, {example}")
    for key, number in value.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < (key == "bytes"):
            raise ConfigError(
                f"driver {driver}: reserved has {key} {number!r}", remedy=f"give whole numbers, {example}"
            )
        if number % PAGE_BYTES:
            raise ConfigError(
                f"driver {driver}: reserved has {key} {number:#x}, not aligned to pages of {PAGE_BYTES} bytes",
                remedy=f"round it as the device tree has it, {example}",
            )
    if value["base"] + value["bytes"] > 1 << 32:
        raise ConfigError(
            f"driver {driver}: reserved ends beyond the 4 GiB that the engine addresses", remedy=f"{example}"
        )
    return ReservedRange(value["base"], value["bytes"])


def problem(wanted: ReservedRange) -> Unavailable | None:
    """Why this machine has no such memory to give, or None. It reads what the kernel tells and maps nothing."""
    remedy = "give the range that the kernel leaves out: docs/pynq-z1.md says how to reserve one"
    ram = ram_ranges()
    if not any(begin <= wanted.base and wanted.end <= end for begin, end in ram):
        have = ", ".join(map(_shown, ram))
        return Unavailable(f"the reserved range {wanted} lies outside the board's memory, {have}", remedy)
    for cma in cma_ranges():
        if wanted.overlap(cma):
            return Unavailable(f"the reserved range {wanted} overlaps the kernel's CMA, {_shown(cma)}", remedy)
    for own in linux_ranges():
        if wanted.overlap(own):
            return Unavailable(
                f"the reserved range {wanted} is not reserved: Linux uses {_shown(own)} itself",
                'add the node to the device tree, with "no-map", or mem= to the boot arguments (docs/pynq-z1.md)',
            )
    return None


def ram_ranges() -> list[Range]:
    """The memory of the board, as the device tree has it: one cell for an address and one for a size."""
    found = []
    for file in sorted(DEVICE_TREE.glob("memory*/reg")):
        found += _cells(file)
    return found or [(0, RAM_BYTES)]


def cma_ranges() -> list[Range]:
    """Where the device tree puts the contiguous memory of the kernel; nothing where the kernel chose it itself."""
    nodes = (file.parent for file in DEVICE_TREE.glob("reserved-memory/*/reg"))
    return [r for node in nodes if (node / "reusable").exists() for r in _cells(node / "reg")]


def linux_ranges() -> list[Range]:
    """What Linux uses as its own memory. Nothing for a user who may not see addresses."""
    try:
        lines = IOMEM.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        place, _, name = line.partition(" : ")
        begin, _, last = place.partition("-")
        if name == "System RAM" and not line.startswith(" ") and int(last, 16):
            found.append((int(begin, 16), int(last, 16) + 1))
    return found


class Reserved:
    """A mapping of the range, given out in pieces. DeviceError where the kernel does not let it be mapped.

    Opened with O_SYNC, memory that Linux does not have as its own is mapped uncached on Arm, so there are no lines to
    flush; reads and writes of single bytes would be slow, and unaligned ones fault.
    """

    def __init__(self, subject: str, place: ReservedRange) -> None:
        self._subject, self.place = subject, place
        try:
            descriptor = os.open(MEMORY_DEVICE, os.O_RDWR | os.O_SYNC)
        except PermissionError as error:
            raise DeviceError(
                f"{subject}: no permission to map the reserved range {place} through {MEMORY_DEVICE}",
                remedy="run hetrun as root: sudo -E",
            ) from error
        except OSError as error:
            raise self._unmapped(error) from error
        try:
            mapped = mmap.mmap(descriptor, place.nbytes, offset=place.base)
        except PermissionError as error:
            raise DeviceError(
                f"{subject}: the kernel does not let {MEMORY_DEVICE} map the reserved range {place}",
                remedy='give its node of the device tree "no-map", so that Linux does not count it as its own',
            ) from error
        except (OSError, ValueError) as error:
            raise self._unmapped(error) from error
        finally:
            os.close(descriptor)
        self._view = memoryview(mapped)
        self._pieces = FreeList(place.base, place.end)
        self._finalizer = weakref.finalize(self, _unmap, mapped, self._view)

    @property
    def free_bytes(self) -> int:
        return self._pieces.n_free

    def take(self, nbytes: int) -> Block | None:
        """None where no piece is large enough. The bytes are what they were: reading them to clear them is slow."""
        address = self._pieces.take(max(1, nbytes))
        if address is None:
            return None
        offset = address - self.place.base
        return Block(address, self._view[offset : offset + nbytes], uncached=True)

    def give_back(self, block: Block) -> None:
        self._pieces.give_back(block.address, max(1, block.view.nbytes))

    def holds(self, address: int) -> bool:
        return self.place.base <= address < self.place.end

    def refuse(self, begin: int, nbytes: int) -> None:
        """AllocationError where contiguous memory of the kernel lies in the range."""
        if self.place.overlap((begin, begin + nbytes)):
            raise AllocationError(
                f"{self._subject}: the kernel's CMA, {_shown((begin, begin + nbytes))}, overlaps the reserved range "
                f"{self.place}",
                remedy="choose another range, or move CMA: docs/pynq-z1.md",
            )

    def release(self) -> None:
        self._finalizer()

    def _unmapped(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"{self._subject}: the reserved range {self.place} cannot be mapped through {MEMORY_DEVICE}: {error}",
            remedy="docs/pynq-z1.md says how to reserve memory",
        )


def _unmap(mapped: mmap.mmap, view: memoryview) -> None:
    view.release()
    with contextlib.suppress(BufferError):  # a weight is still held: the mapping goes with the last of them
        mapped.close()


def _cells(file: Path) -> list[Range]:
    try:
        data = file.read_bytes()
    except OSError:
        return []
    words = [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data) // 8 * 8, 4)]
    return [(begin, begin + size) for begin, size in zip(words[::2], words[1::2], strict=True) if size]


def _shown(place: Range) -> str:
    return f"{place[0]:#x} to {place[1]:#x}"
