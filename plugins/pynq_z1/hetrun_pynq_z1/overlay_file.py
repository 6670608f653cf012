"""What the .hwh beside a bitstream says of the engine, read without pynq: registers, addresses, interrupt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from hetrun_pynq_z1.definition import definition

IP_NAME = "hetrun_pynq_engine"
ARGUMENTS = ("RING", "COUNT", "VERSION", "CONFIG", "STATUS", "DONE", "BUSY_CYCLES", "STALL_CYCLES")


@dataclass(frozen=True)
class OverlayFile:
    """registers: byte offset by name.   base: physical address of the first.   ips: all that the design has, by VLNV.

    interrupt: number of the line into the processing system; None where the engine's is not wired straight to it.
    Of an overlay without the engine: no registers, and no base.
    """

    registers: Mapping[str, int]
    base: int | None
    ips: tuple[str, ...]
    interrupt: int | None

    @property
    def fault(self) -> str | None:
        """What of it is not this engine's: expected and found. None where it may be."""
        if self.base is None:
            return f"expected an IP named {IP_NAME}, found {', '.join(self.ips) or 'nothing'}"
        return register_fault(self.registers)


def register_fault(registers: Mapping[str, int]) -> str | None:
    """The first register that does not stand where the driver writes it, in words."""
    for name in ARGUMENTS:
        offset = definition().registers[name]
        if registers.get(name) != offset:
            found = f"{registers[name]:#x}" if name in registers else f"only {', '.join(sorted(registers)) or 'none'}"
            return f"expected register {name} at {offset:#x}, found {found}"
    return None


def plain(register: str) -> str:
    """As the definition calls it: Vitis HLS appends _r to names that Verilog reserves."""
    name = register.upper()
    return name[:-2] if name.endswith("_R") else name


def read(overlay: Path) -> OverlayFile:
    """Of a .bit file's neighbour. OSError or ValueError where it cannot be read."""
    try:
        root = ElementTree.parse(overlay.with_suffix(".hwh")).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    modules = [m for m in root.iter("MODULE") if m.get("VLNV")]
    engine = next((m for m in modules if f":{IP_NAME}:" in m.get("VLNV", "")), None)
    ips = tuple(sorted(m.get("VLNV", "") for m in modules))
    if engine is None:
        return OverlayFile({}, None, ips, None)
    registers = {plain(r.get("NAME", "")): _offset(r) for r in engine.iter("REGISTER")}
    name = engine.get("INSTANCE")
    bases = [int(r.get("BASEVALUE", ""), 0) for r in root.iter("MEMRANGE") if r.get("INSTANCE") == name]
    return OverlayFile(registers, bases[0] if bases else None, ips, _interrupt(engine, modules))


def _offset(register: ElementTree.Element) -> int:
    values = [p.get("VALUE", "") for p in register.iter("PROPERTY") if p.get("NAME") == "ADDRESS_OFFSET"]
    return int(values[0], 0) if values else -1


def _interrupt(engine: ElementTree.Element, modules: list[ElementTree.Element]) -> int | None:
    """0 where the engine's one interrupt is the first of IRQ_F2P; wires through other IPs are not followed."""
    signals = {p.get("SIGNAME") for p in engine.iter("PORT") if p.get("SIGIS", "").upper() == "INTERRUPT"} - {None, ""}
    lines = [p for m in modules for p in m.iter("PORT") if p.get("NAME") == "IRQ_F2P"]
    return 0 if any(p.get("SIGNAME") in signals for p in lines) else None
