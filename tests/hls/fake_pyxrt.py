"""pyxrt without XRT, in both of its shapes, over a fake card; it forgives nothing.

What XRT leaves to its users is an error here: a buffer in another bank than its argument's (XRT warns and gives the
kernel a copy), bytes written and not synced before a launch, bytes read that were not synced after it, arguments never
set, calls that hold Python's lock for long. The host's and the card's copy of a buffer are apart, and junk at first.
"""

from __future__ import annotations

import importlib.machinery
import json
import operator
import time
import types
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fake_u280 import CONTROLLER, PLATFORM, FakeCard, RuleBroken, WaitsForEver

from hetrun_alveo_u280.absence import XCLBIN_MAGIC
from hetrun_alveo_u280.definition import definition

SHAPES = ("2.13", "2.16")  # load_xclbin; register_xclbin and hw_context
MOST_WAIT_MS = 100
JUNK_BYTES = 65_537  # of what lay in memory before, repeated


class Enumerator:
    """A member of an enumeration as pybind11 makes it; one that was not named there is called ???."""

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enumerator) and self.value == other.value

    def __hash__(self) -> int:
        return self.value


def enumeration(prefix: str, **members: int) -> type:
    return type(prefix, (), {name: Enumerator(name, value) for name, value in members.items()})


# RUNNING = 3 is missing in pyxrt, too.
STATES = {"NEW": 1, "QUEUED": 2, "COMPLETED": 4, "ERROR": 5, "ABORT": 6, "SUBMITTED": 7, "TIMEOUT": 8, "NORESPONSE": 9}
RUNNING = Enumerator("???", 3)
ert_cmd_state = enumeration("ert_cmd_state", **{f"ERT_CMD_STATE_{name}": value for name, value in STATES.items()})
xclBOSyncDirection = enumeration("xclBOSyncDirection", XCL_BO_SYNC_BO_TO_DEVICE=0, XCL_BO_SYNC_BO_FROM_DEVICE=1)
INFO = ("bdf", "name", "electrical", "thermal", "memory", "platform")
xrt_info_device = enumeration("xrt_info_device", **{name: i for i, name in enumerate(INFO)})


def unsigned(value: Any, bits: int) -> int:
    """As pybind11 takes an unsigned argument."""
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise TypeError("incompatible function arguments")
    return number


class uuid:
    def __init__(self, text: str) -> None:
        self._text = text

    def to_string(self) -> str:
        return self._text


class xclbin:
    def __init__(self, path: str) -> None:
        if not isinstance(path, str):
            raise TypeError("incompatible constructor arguments")
        data = Path(path).read_bytes()
        if not data.startswith(XCLBIN_MAGIC):
            raise RuntimeError("Invalid xclbin")
        self.content = json.loads(data[len(XCLBIN_MAGIC) :])

    def get_kernels(self) -> list[Any]:
        return [_getters(name=name, num_args=n) for name, n in self.content["kernels"].items()]

    def get_mems(self) -> list[Any]:
        names = ("tag", "base_address", "size_kb", "used")
        return [_getters(index=i, **dict(zip(names, mem, strict=True))) for i, mem in enumerate(self.content["mems"])]

    def get_uuid(self) -> uuid:
        return uuid(self.content["uuid"])

    def get_xsa_name(self) -> str:
        return str(self.content["xsa"])


def _getters(**values: Any) -> Any:
    return types.SimpleNamespace(**{f"get_{name}": lambda value=value: value for name, value in values.items()})


class device:
    """Base of both shapes.   cards: those in the machine."""

    cards: Sequence[FakeCard] = ()

    def __init__(self, which: int | str = 0) -> None:
        if isinstance(which, str):
            found = [card for card in self.cards if card.bdf == which]
        else:
            found = list(self.cards[unsigned(which, 32) :][:1])
        if not found:
            raise RuntimeError(f"Could not open device with index '{which}'")
        self.card = found[0]

    def get_info(self, key: Enumerator) -> str:
        return {"bdf": self.card.bdf, "name": PLATFORM, **self.card.info}[key.name]

    def _load(self, file: xclbin) -> uuid:
        if not isinstance(file, xclbin):
            raise TypeError("incompatible function arguments")
        if file.content["xsa"] != PLATFORM:
            raise RuntimeError("failed to load xclbin: Invalid argument")
        if self.card.users and self.card.loaded is not None and self.card.loaded.content != file.content:
            raise RuntimeError("failed to load xclbin: Device or resource busy")
        self.card.loaded = file
        return file.get_uuid()


class hw_context:
    def __init__(self, device: device, uuid: uuid) -> None:
        assert device.card.loaded is not None
        if uuid.to_string() != device.card.loaded.get_uuid().to_string():
            raise RuntimeError("no such xclbin")
        self.card = device.card


class kernel:
    """Base of both shapes.   slot: what stands above the bank in a group."""

    exclusive, shared = Enumerator("exclusive", 0), Enumerator("shared", 1)
    slot = 0

    def _open(self, card: FakeCard, name: str, alone: bool) -> None:
        if card.loaded is None or name not in card.loaded.content["kernels"]:
            raise RuntimeError(f"No such kernel '{name}'")
        if card.users and alone:
            raise RuntimeError("failed to open cu context: Device or resource busy")
        self.card = card
        card.users += 1
        weakref.finalize(self, _leave, card)

    def group_id(self, number: int) -> int:
        assert self.card.loaded is not None
        banks = self.card.loaded.content["banks"]
        if str(unsigned(number, 31)) not in banks:
            raise RuntimeError(f"Bad argument index '{number}'")
        return int(banks[str(number)]) | self.slot << 16


def _leave(card: FakeCard) -> None:
    card.users -= 1
    if not card.users and card.cures:
        card.hung = False


class kernel_213(kernel):
    def __init__(self, device: device, uuid: uuid, name: str, mode: Enumerator = kernel.shared) -> None:
        assert device.card.loaded is not None
        if uuid.to_string() != device.card.loaded.get_uuid().to_string():
            raise RuntimeError("xclbin id mismatch")
        self._open(device.card, name, mode == kernel.exclusive)


class kernel_216(kernel):
    slot = 1

    def __init__(self, context: hw_context, name: str) -> None:
        if not isinstance(context, hw_context):
            raise RuleBroken("a kernel of a device, where there are contexts")
        self._open(context.card, name, False)


class bo:
    """host, card: the two copies.   fresh: bytes of the host's copy that are as the card has them.

    unsynced: bytes that were written on the host alone.
    """

    normal, device_only, host_only = Enumerator("normal", 0), Enumerator("device_only", 2), Enumerator("host_only", 3)

    def __init__(self, device: device, size: int, flags: Enumerator, group: int) -> None:
        size, self.bank, self.owner = unsigned(size, 64), unsigned(group, 32) & 0xFFFF, device.card
        loaded = device.card.loaded
        if loaded is None or self.bank >= len(loaded.content["mems"]):
            raise RuntimeError("invalid memory bank index")
        if not 0 < size < 1 << 32:
            raise RuleBroken(f"a buffer of {size} bytes")
        if flags != bo.normal:
            raise RuleBroken("a buffer without a copy on the host is not to be synced")
        if device.card.taken(self.bank) + size > device.card.capacity(self.bank):
            raise MemoryError("std::bad_alloc")
        self._base = int(loaded.content["mems"][self.bank][1]) + device.card.taken(self.bank)
        rng = np.random.default_rng(self._base + size)
        self.host, self.card = (np.resize(rng.integers(0, 256, JUNK_BYTES, np.uint8), size) for _ in range(2))
        self.fresh, self.unsynced = np.zeros(size, bool), np.zeros(size, bool)
        device.card.live.add(self)

    def size(self) -> int:
        return len(self.host)

    def address(self) -> int:
        return self._base

    def write(self, data: Any, seek: int) -> None:
        bytes_ = np.frombuffer(data, np.uint8)
        part = self._part(len(bytes_), seek, "attempting to write past buffer size")
        self.host[part], self.fresh[part], self.unsynced[part] = bytes_, False, True

    def read(self, size: int, skip: int) -> np.ndarray:
        part = self._part(size, skip, "attempting to read past buffer size")
        if not self.fresh[part].all():
            raise RuleBroken(f"bytes {skip} to {skip + size} were not synced from the card")
        return self.host[part].view(np.int8).copy()

    def sync(self, direction: Enumerator, size: int, offset: int) -> None:
        part = self._part(size, offset, "Invalid offset and size when syncing buffer")
        to_card = direction == xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
        if to_card:
            self.card[part] = self.host[part]
        else:
            self.host[part] = self.card[part]
        self.fresh[part], self.unsynced[part] = True, False
        self.owner.transfers.append(("to" if to_card else "from", self.bank, size))

    def _part(self, size: int, offset: int, problem: str) -> slice:
        size, offset = unsigned(size, 64), unsigned(offset, 64)
        if offset + size > len(self.host):
            raise RuntimeError(problem)
        if not size:
            raise RuleBroken("nothing to copy")
        if any(r.running for r in run.live if r.kernel.card is self.owner):
            raise RuleBroken("the host uses a buffer while a launch runs")
        return slice(offset, offset + size)


class run:
    live: ClassVar[weakref.WeakSet[run]] = weakref.WeakSet()

    def __init__(self, kernel: kernel) -> None:
        self.kernel, self.running = kernel, False
        self._arguments: dict[int, Any] = {}
        self._state = ert_cmd_state.ERT_CMD_STATE_NEW
        run.live.add(self)

    def set_arg(self, number: int, value: Any) -> None:
        if self.running:
            raise RuleBroken("an argument set while a launch runs")
        loaded = self.kernel.card.loaded
        assert loaded is not None
        if not 0 <= operator.index(number) < loaded.content["kernels"][CONTROLLER]:
            raise RuntimeError(f"Bad argument index '{number}'")
        is_buffer = str(number) in loaded.content["banks"]
        if isinstance(value, bo) != is_buffer:
            raise RuntimeError(f"Bad argument size for '{number}'")
        if isinstance(value, bo):
            if value.bank != loaded.content["banks"][str(number)]:
                raise RuleBroken(f"argument {number} has a buffer in bank {value.bank}")
        elif isinstance(value, float) or not -(1 << 31) <= operator.index(value) < 1 << 31:
            raise TypeError("set_arg(): incompatible function arguments")
        self._arguments[number] = value

    def start(self) -> None:
        card = self.kernel.card
        if self.running:
            raise RuleBroken("started while it runs")
        missing = [i for i in range(definition().numbers["ARGS"]) if i not in self._arguments]
        if missing:
            raise RuleBroken(f"arguments {missing} were never set")
        for value in self._arguments.values():
            if isinstance(value, bo) and value.unsynced.any():
                raise RuleBroken(f"bank {value.bank} has bytes that were written and not synced to the card")
        self.running, self._left = True, card.slices
        card.hung, card.hangs_next = card.hung or card.hangs_next, False

    def wait(self, timeout_ms: int = 0) -> Enumerator:
        card = self.kernel.card
        if not 0 < unsigned(timeout_ms, 32) <= MOST_WAIT_MS:
            raise RuleBroken(f"wait({timeout_ms}) holds Python's lock")
        if not self.running:
            return self._state
        if card.interrupts:
            card.interrupts -= 1
            raise KeyboardInterrupt
        if card.hung:
            card.patience -= 1
            if card.patience < 0:
                raise WaitsForEver
            time.sleep(timeout_ms / 1000)
            return ert_cmd_state.ERT_CMD_STATE_TIMEOUT
        self._left -= 1
        if self._left >= 0:
            return RUNNING if self._left else ert_cmd_state.ERT_CMD_STATE_TIMEOUT
        self.running, self._state = False, getattr(ert_cmd_state, f"ERT_CMD_STATE_{card.state}")
        if card.state == "COMPLETED":
            card.execute(self._arguments)
        for value in self._arguments.values():
            if isinstance(value, bo):
                value.fresh[:] = False
        return self._state

    def state(self) -> Enumerator:
        return RUNNING if self.running else self._state


def module(shape: str, cards: Sequence[FakeCard]) -> types.ModuleType:
    """pyxrt as XRT of that version has it, with these cards in the machine."""
    made = types.ModuleType("pyxrt")
    made.__spec__ = importlib.machinery.ModuleSpec("pyxrt", None)
    names: dict[str, Any] = {
        "uuid": uuid, "xclbin": xclbin, "bo": bo, "run": run, "ert_cmd_state": ert_cmd_state,
        "xclBOSyncDirection": xclBOSyncDirection, "xrt_info_device": xrt_info_device,
    }  # fmt: skip
    if shape == "2.13":
        names["device"] = type("device", (device,), {"cards": cards, "load_xclbin": device._load})
        names["kernel"] = kernel_213
    else:
        names["device"] = type("device", (device,), {"cards": cards, "register_xclbin": device._load})
        names["kernel"], names["hw_context"] = kernel_216, hw_context
        names["enumerate_devices"] = lambda: len(cards)
    for name, value in names.items():
        setattr(made, name, value)
    return made
