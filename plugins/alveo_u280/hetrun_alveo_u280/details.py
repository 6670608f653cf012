"""What `hetrun devices` shows of the card: runtime, platform, xclbin, memories, sensors. Nothing is loaded for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hetrun.device import Detail, Unavailable
from hetrun.errors import HetrunError
from hetrun_alveo_u280.absence import card_absence, cards, runtime_absence, xclbin_absence
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.opened import DDR_BANK, banks, kernel_fault, said
from hetrun_alveo_u280.settings import Settings
from hetrun_alveo_u280.xrt import imported


def details(subject: str, settings: Settings) -> Sequence[Detail]:
    """Lines in the order of the table's rows."""
    try:
        definition()
    except HetrunError as error:
        return [Detail("engine", "unknown", error.message)]
    return list(_details(subject, settings))


def _details(subject: str, settings: Settings) -> Iterator[Detail]:
    pyxrt, runtime = _runtime(subject)
    yield Detail("runtime", *runtime)
    device, card = _card(pyxrt, settings.card)
    yield Detail("card", *card)
    tells = _Tells(pyxrt, device)
    yield Detail("platform", *tells.of("name", lambda name: name))
    yield from _xclbin_rows(pyxrt, settings.xclbin)
    n = definition().numbers
    hbm = [f"HBM[{i}]" for i in range(n["CHANNELS"])]
    yield Detail("HBM", *tells.of("memory", lambda text: _memory(text, hbm), n["CHANNELS"] * settings.channel_bytes))
    yield Detail("DDR", *tells.of("memory", lambda text: _memory(text, [DDR_BANK]), settings.ddr_bytes))
    yield Detail("temperature", *tells.of("thermal", _temperature))
    yield Detail("power", *tells.of("electrical", _power))
    yield Detail("time limit of a launch", f"{settings.timeout_s:g} s")


class _Tells:
    """What the card tells of itself, where it is open."""

    def __init__(self, pyxrt: Any, device: Any) -> None:
        self._pyxrt, self._device = pyxrt, device

    def of(self, key: str, read: Callable[[str], str], taken_bytes: int | None = None) -> tuple[str, str | None]:
        limit = "" if taken_bytes is None else f"; hetrun takes {taken_bytes}"
        if self._device is None:
            return f"unknown{limit}", None
        try:
            told = read(self._device.get_info(getattr(self._pyxrt.xrt_info_device, key)))
        except Exception as error:  # a key that this XRT lacks, a sensor that is off, a text of another form
            return f"unknown{limit}", f"XRT does not tell it: {type(error).__name__}: {said(error)}"
        return f"{told}{limit}", None


def _runtime(subject: str) -> tuple[Any, tuple[str, str | None]]:
    absent = runtime_absence()
    if absent:
        return None, ("no pyxrt", _missing(absent))
    try:
        pyxrt = imported(subject)
    except HetrunError as error:
        return None, ("pyxrt does not import", str(error))
    return pyxrt, ("pyxrt, " + ("hardware contexts" if hasattr(pyxrt, "hw_context") else "load_xclbin"), None)


def _card(pyxrt: Any, card: int | str) -> tuple[Any, tuple[str, str | None]]:
    found = ", ".join(function.name for function in cards()) or "none"
    absent = card_absence(card)
    if absent:
        return None, (found, _missing(absent))
    if pyxrt is None:
        return None, (found, None)
    try:
        device = pyxrt.device(card)
        return device, (str(device.get_info(pyxrt.xrt_info_device.bdf)), None)
    except Exception as error:  # whatever XRT throws
        return None, (found, f"card {card} does not open: {said(error)}")


def _xclbin_rows(pyxrt: Any, path: str | None) -> Iterator[Detail]:
    absent = xclbin_absence(path)
    parsed, unread = None, _missing(absent) if absent else None
    if pyxrt is not None and not absent:
        try:
            parsed = pyxrt.xclbin(path)
        except Exception as error:  # whatever XRT throws
            unread = f"it cannot be read: {said(error)}"
    yield Detail("xclbin", str(Path(path)) if path else "none named", unread)
    if parsed is None:
        return
    yield Detail("made for", parsed.get_xsa_name())
    yield Detail("uuid", parsed.get_uuid().to_string())
    fault = kernel_fault(parsed)
    again = f"{fault}: hetrun build alveo-u280" if fault else None
    yield Detail("kernel", ", ".join(sorted(k.get_name() for k in parsed.get_kernels())) or "none", again)
    used = [mem.get_tag() for mem in parsed.get_mems() if mem.get_used()]
    lacking = [tag for tag, _ in banks() if tag not in used]
    n_channels = sum(tag.startswith("HBM[") for tag in used)
    shown = ", ".join([f"{n_channels} of HBM", *(tag for tag in used if tag.startswith("DDR["))])
    yield Detail("banks", shown, f"it uses no {lacking[0]}: hetrun build alveo-u280" if lacking else None)


def _memory(text: str, tags: Sequence[str]) -> str:
    banks = [bank for bank in json.loads(text)["board"]["memory"]["memories"] if bank["tag"] in tags]
    if not banks:
        return "unknown: nothing is loaded"
    total = sum(int(bank["range_bytes"], 16) for bank in banks)
    taken = sum(int(bank["extended_info"]["usage"]["allocated_bytes"]) for bank in banks)
    return f"{total} bytes, {total - taken} free"


def _temperature(text: str) -> str:
    sensors: Sequence[Mapping[str, str]] = json.loads(text)["thermals"]
    shown = [f"{s['description']} {s['temp_C']} C" for s in sensors if s.get("is_present") == "true"]
    return ", ".join(shown) or "no sensor"


def _power(text: str) -> str:
    told = json.loads(text)
    return f"{told['power_consumption_watts']} W of at most {told['power_consumption_max_watts']} W"


def _missing(absent: Unavailable) -> str:
    return f"{absent.reason}; {absent.remedy}"
