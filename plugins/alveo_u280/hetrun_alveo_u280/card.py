"""What the device needs of a card: memories that the host writes and reads, and launches."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hetrun.errors import AllocationError, DeviceError
from hetrun.native import address_of, clear
from hetrun_alveo_u280 import native
from hetrun_alveo_u280.definition import definition

BEAT_BYTES = 64


@dataclass(frozen=True)
class Report:
    """What the engine says of a launch, as hls/engine.h has it."""

    version: int
    status: int
    instruction: int
    n_passes: int
    cycles: int
    weight_beats: int
    kv_beats: int
    stall_cycles: int

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Report:
        return cls(**definition().records["Report"].unpack(data))

    def check(self, subject: str) -> Report:
        """Itself; DeviceError where the launch failed."""
        if self.status == definition().numbers["STATUS_OK"]:
            return self
        meaning = definition().statuses.get(self.status, f"status {self.status}")
        if meaning == "BAD_VERSION":
            version = definition().numbers["VERSION"]
            raise DeviceError(
                f"{subject}: the engine on the card is of version {self.version}, this hetrun drives version {version}",
                remedy="build the xclbin anew: hetrun build alveo-u280",
            )
        raise DeviceError(f"{subject}: the engine refused instruction {self.instruction}: {meaning}")


class Card(Protocol):
    """A card, or what stands for one. Memory is whatever was there before; who uses it has divided it."""

    @property
    def subject(self) -> str:
        """The device's id, for messages."""

    @property
    def channel_beats(self) -> int:
        """Beats of each HBM channel."""

    @property
    def ddr_bytes(self) -> int: ...

    def hbm_write(self, channel: int, beat: int, data: memoryview) -> None:
        """Whole beats."""

    def hbm_zero(self, beat: int, n_beats: int) -> None:
        """In every channel."""

    def hbm_copy(self, src: int, dst: int, n_beats: int) -> None:
        """In every channel, between beats that do not overlap."""

    def ddr_write(self, offset: int, data: memoryview) -> None:
        """Any bytes, which a later launch sees."""

    def ddr_read(self, offset: int, out: memoryview) -> None:
        """Any bytes, as the last launch left them."""

    def run(self, scalars: Mapping[str, int]) -> Report:
        """One launch, to its end.   scalars: the kernel's arguments by their names in hls/engine.h, all but buffers.

        DeviceError where the engine refuses, and where it does not finish in time; then it was reset.
        """

    def close(self) -> None:
        """A second call does nothing."""


class CsimCard:
    """The engine's source compiled for this machine, on memories of this process."""

    def __init__(self, device_id: str, channel_bytes: int, ddr_bytes: int, threads: int) -> None:
        """threads: that share the engine's channels; results are the same for any number."""
        self._subject = device_id
        self._channel_bytes, self._ddr_bytes = channel_bytes, ddr_bytes
        n_channels = definition().numbers["CHANNELS"]
        hbm, self._ddr = self._memory(n_channels * channel_bytes), self._memory(ddr_bytes)
        self._channels = [hbm[i * channel_bytes : (i + 1) * channel_bytes] for i in range(n_channels)]
        addresses = (ctypes.c_void_p * n_channels)(*map(address_of, self._channels))
        self._card = native.library().hetrun_u280_card_create(
            addresses, channel_bytes, address_of(self._ddr), ddr_bytes, threads
        )
        if not self._card:
            raise AllocationError(f"{device_id}: no memory left")

    def _memory(self, nbytes: int) -> memoryview:
        # Pages come when they are written, so a card costs what is used of it: nothing is set aside beforehand.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        try:
            return memoryview(mmap.mmap(-1, nbytes, flags=flags))
        except OSError as error:
            raise AllocationError(
                f"{self._subject}: {nbytes} bytes for the card's memory: {error.strerror}",
                remedy="set smaller hbm_bytes and ddr_bytes in the system file",
            ) from None

    @property
    def subject(self) -> str:
        return self._subject

    @property
    def channel_beats(self) -> int:
        return self._channel_bytes // BEAT_BYTES

    @property
    def ddr_bytes(self) -> int:
        return self._ddr_bytes

    def hbm_write(self, channel: int, beat: int, data: memoryview) -> None:
        self._channels[channel][beat * BEAT_BYTES : beat * BEAT_BYTES + data.nbytes] = data

    def hbm_zero(self, beat: int, n_beats: int) -> None:
        for channel in self._channels:
            clear(channel[beat * BEAT_BYTES : (beat + n_beats) * BEAT_BYTES])

    def hbm_copy(self, src: int, dst: int, n_beats: int) -> None:
        nbytes = n_beats * BEAT_BYTES
        for channel in self._channels:
            channel[dst * BEAT_BYTES :][:nbytes] = channel[src * BEAT_BYTES :][:nbytes]

    def ddr_write(self, offset: int, data: memoryview) -> None:
        self._ddr[offset : offset + data.nbytes] = data

    def ddr_read(self, offset: int, out: memoryview) -> None:
        out[:] = self._ddr[offset : offset + out.nbytes]

    def run(self, scalars: Mapping[str, int]) -> Report:
        numbers = definition().under("ARG_")
        arguments = (ctypes.c_int32 * definition().numbers["ARGS"])()
        for name, value in scalars.items():
            arguments[numbers[name]] = value
        native.library().hetrun_u280_card_run(self._card, arguments)
        at = scalars["REPORT"] * BEAT_BYTES
        return Report.of(self._ddr[at : at + BEAT_BYTES]).check(self._subject)

    def close(self) -> None:
        card, self._card = self._card, None
        if card:
            native.library().hetrun_u280_card_destroy(card)

    def __del__(self) -> None:
        if getattr(self, "_card", None):
            self.close()
