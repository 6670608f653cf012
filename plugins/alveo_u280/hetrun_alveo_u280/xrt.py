"""A card behind XRT's Python module pyxrt, which comes with XRT (its setup.sh) and from nowhere else."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hetrun.errors import DeviceError
from hetrun_alveo_u280.absence import SETUP
from hetrun_alveo_u280.card import BEAT_BYTES, Report
from hetrun_alveo_u280.opened import DDR, LaunchFailure, OpenedCard, said
from hetrun_alveo_u280.settings import Settings

T = TypeVar("T")


class XrtCard:
    """An Alveo U280 with the engine in its fabric: a buffer for each HBM channel and one in DDR, and one run object,
    which last as long as the card is open.

    A launch that does not end is found by this process alone, which asks for its end in short slices: not one that
    hangs in a call of XRT itself (a copy over a dead bus, a kernel module that waits). Another process must end that.
    """

    def __init__(self, device_id: str, settings: Settings) -> None:
        """DeviceError as OpenedCard has it, and where pyxrt does not import."""
        self._subject, self._settings = device_id, settings
        self._pyxrt = imported(device_id)
        self._lost: DeviceError | None = None
        self._opened = OpenedCard(self._pyxrt, device_id, settings)
        # At the latest when the interpreter ends, before pyxrt goes.
        self._finalizer = weakref.finalize(self, self._opened.release)

    @property
    def subject(self) -> str:
        return self._subject

    @property
    def channel_beats(self) -> int:
        return self._settings.channel_bytes // BEAT_BYTES

    @property
    def ddr_bytes(self) -> int:
        return self._settings.ddr_bytes

    def hbm_write(self, channel: int, beat: int, data: memoryview) -> None:
        self._do(lambda card: card.write(channel, beat * BEAT_BYTES, data))

    def hbm_zero(self, beat: int, n_beats: int) -> None:
        self._do(lambda card: card.zero(beat * BEAT_BYTES, n_beats * BEAT_BYTES))

    def hbm_copy(self, src: int, dst: int, n_beats: int) -> None:
        self._do(lambda card: card.copy(src * BEAT_BYTES, dst * BEAT_BYTES, n_beats * BEAT_BYTES))

    def ddr_write(self, offset: int, data: memoryview) -> None:
        self._do(lambda card: card.write(DDR, offset, data))

    def ddr_read(self, offset: int, out: memoryview) -> None:
        out[:] = self._do(lambda card: card.read(DDR, offset, out.nbytes))

    def run(self, scalars: Mapping[str, int]) -> Report:
        return self._do(lambda card: card.launch(scalars)).check(self._subject)

    def close(self) -> None:
        self._finalizer()

    def _do(self, work: Callable[[OpenedCard], T]) -> T:
        if self._lost is not None:
            raise DeviceError(self._lost.message, remedy=self._lost.remedy)
        if not self._finalizer.alive:
            raise DeviceError(f"{self._subject} is closed")
        try:
            return work(self._opened)
        except LaunchFailure as failure:
            self._lost = self._reset(failure)
            raise self._lost from failure

    def _reset(self, failure: LaunchFailure) -> DeviceError:
        """Lets go of the card, loads the engine anew and asks for its version; says what became of it.

        What the card's memory held counts as lost, so this object serves no more.
        """
        address = self._opened.address
        self._finalizer()
        try:
            OpenedCard(self._pyxrt, self._subject, self._settings).release()
        except DeviceError as error:
            found = f"opened anew it does not work: {error.message}"
            remedy = f"reset it, as xbutil reset --device {address}, when no process uses it"
        else:
            found = "it was opened anew and answers, but weights and KV there are lost"
            remedy = "start again; if it repeats, the xclbin is not sound or timeout_s is too short"
        return DeviceError(f"{self._subject}: {failure}; {found}", remedy=remedy)


def imported(subject: str) -> Any:
    """pyxrt. DeviceError where it does not import."""
    try:
        return importlib.import_module("pyxrt")
    except Exception as error:  # a module of another Python, or without XRT's libraries, fails in many ways
        raise DeviceError(
            f"{subject}: XRT's Python module pyxrt does not import: {said(error)}",
            remedy=f"source {SETUP}; the module is made for one version of Python",
        ) from error
