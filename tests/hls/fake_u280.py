"""An Alveo U280 for the fake pyxrt: its fabric is the engine's source, as csim has it."""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hetrun_alveo_u280 import native
from hetrun_alveo_u280.absence import XCLBIN_MAGIC
from hetrun_alveo_u280.definition import definition

CONTROLLER, LANES = "hetrun_u280_controller", "hetrun_u280_lanes"
PLATFORM = "xilinx_u280_gen3x16_xdma_base_1"
BANKS = {str(i): i for i in range(33)} | {"42": 32}  # argument -> index of its memory
HBM_BYTES, DDR_BYTES, DDR_BASE = 256 << 20, 16 << 30, 0x40_0000_0000


class RuleBroken(RuntimeError):
    """A mistake that XRT itself would let pass, or answer with wrong results."""


class WaitsForEver(BaseException):
    """A launch hangs, and the driver does not give up."""


def write_xclbin(path: Path, **changes: Any) -> Path:
    """An xclbin with no design in it.   changes: of kernels {name: arguments}, banks {argument: index}, version, ..."""
    n = definition().numbers
    mems = [(f"HBM[{i}]", i * HBM_BYTES, HBM_BYTES >> 10, True) for i in range(n["CHANNELS"])]
    mems += [(f"DDR[{i}]", DDR_BASE + i * DDR_BYTES, DDR_BYTES >> 10, i == 0) for i in range(2)]
    content = {
        "kernels": {CONTROLLER: n["ARGS"] + n["CHANNELS"] + 2 * n["LANE_KERNELS"], LANES: 6},  # streams count
        "banks": BANKS,
        "mems": mems,
        "version": n["VERSION"],
        "uuid": "5d7e3f61-0000-4000-8000-0123456789ab",
        "xsa": PLATFORM,
        **changes,
    }
    path.write_bytes(XCLBIN_MAGIC + json.dumps(content).encode())
    return path


class FakeCard:
    """hangs_next: the next launch does not end.   cures: opening the card anew ends a hang.

    state: what launches end as.   slices: waits that a launch takes.   interrupts: waits that Ctrl-C ends.
    silent: the engine writes no report.   ignores_version: it runs whatever version it is told.
    info: what the card tells of itself, by key.
    """

    def __init__(self, *, bdf: str = "0000:3b:00.1", hbm_bytes: int = HBM_BYTES) -> None:
        self.bdf, self._hbm_bytes = bdf, hbm_bytes
        self.hangs_next, self.hung, self.cures = False, False, True
        self.slices, self.state = 1, "COMPLETED"
        self.ignores_version = self.silent = False
        self.interrupts = 0
        self.patience = 500  # waits for a hung launch, then the driver never gives up
        self.loaded: Any = None  # the xclbin
        self.users = 0  # kernels that are open
        self.launches: list[dict[str, int]] = []
        self.transfers: list[tuple[str, int, int]] = []  # (direction, bank, bytes)
        self.live: weakref.WeakSet[Any] = weakref.WeakSet()  # buffers
        self.info: dict[str, str] = {}
        self._csim: tuple[list[int], int] | None = None

    def taken(self, bank: int) -> int:
        return sum(len(b.host) for b in self.live if b.bank == bank)

    def capacity(self, bank: int) -> int:
        return self._hbm_bytes if bank < definition().numbers["CHANNELS"] else DDR_BYTES

    def execute(self, arguments: Mapping[int, Any]) -> None:
        """The fabric's work on a launch."""
        n = definition().numbers
        scalars = {name: arguments[i] for name, i in definition().under("ARG_").items() if "DDR" not in name}
        self.launches.append(scalars)
        buffers = [arguments[i] for i in range(n["CHANNELS"] + 1)]
        if arguments[n["ARG_DDR_VECTOR"]] is not buffers[-1]:
            raise RuleBroken("the ports to the DDR have different buffers")
        ddr, at = buffers[-1], 64 * scalars["REPORT"]
        if self.silent:
            return
        if self.loaded.content["version"] != n["VERSION"]:
            report = {"version": self.loaded.content["version"], "status": n["STATUS_BAD_VERSION"]}
            ddr.card[at : at + 64] = np.frombuffer(definition().records["Report"].pack(report), np.uint8)
            return
        if self.ignores_version:
            arguments = {**arguments, n["ARG_VERSION"]: n["VERSION"]}
        given = [0 if str(i) in BANKS else arguments[i] for i in range(n["ARGS"])]
        native.library().hetrun_u280_card_run(self._engine(buffers), (ctypes.c_int32 * n["ARGS"])(*given))

    def _engine(self, buffers: Sequence[Any]) -> int:
        """csim over these buffers; kept while they are the same."""
        addresses = [b.card.ctypes.data for b in buffers]
        if self._csim is None or self._csim[0] != addresses:
            self._forget()
            *channels, ddr = buffers
            pointers = (ctypes.c_void_p * len(channels))(*addresses[:-1])
            made = native.library().hetrun_u280_card_create(
                pointers, len(channels[0].card), addresses[-1], len(ddr.card), 1
            )
            self._csim = addresses, made
        return self._csim[1]

    def _forget(self) -> None:
        if self._csim is not None:
            native.library().hetrun_u280_card_destroy(self._csim[1])
            self._csim = None

    def __del__(self) -> None:
        self._forget()
