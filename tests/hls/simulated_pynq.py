"""A PYNQ-Z1 for the real pynq package: a Device whose fabric is the engine's source, and whose caches forgive nothing.

Host and engine see different memory. What the host writes reaches the engine by a flush alone, what the engine writes
reaches the host by an invalidate alone, and lines that the host wrote and did not flush are written back at the worst
moment: over what the engine has written.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from hetrun_pynq_z1 import native
from hetrun_pynq_z1.definition import definition

BASE = 0x43C00000
RANGE = 0x10000
FIRST, END = 0x16800000, 0x1E800000  # 128 MiB, where the board's image has its CMA
LINE_BYTES = 32
ENGINE = "xilinx.com:hls:hetrun_pynq_engine:1.0"


def write_overlay(
    folder: Path, *, vlnv: str = ENGINE, registers: Mapping[str, int] | None = None, interrupt: bool = True
) -> Path:
    """A .bit file with no design in it, and a .hwh as Vivado would write it for the engine. Returns the .bit's path."""
    folder.mkdir(parents=True, exist_ok=True)
    bit = folder / "engine.bit"
    bit.write_bytes(_bit())
    bit.with_suffix(".hwh").write_text(
        _hwh(vlnv, definition().registers if registers is None else registers, interrupt)
    )
    return bit


class Buffer(PynqBuffer):
    """pynq frees through XRT; this one through the simulated device."""

    def freebuffer(self) -> None:
        if getattr(self, "owner", None) is not None:
            self.owner.free(self)
            self.owner = None


class Uio:
    """The engine's interrupt as Linux shows it: masked when it has come, until a 1 is written to the file.

    The file is a socket: what the driver writes arrives here.   lost: the wire is broken.
    """

    def __init__(self) -> None:
        self._fabric, self._driver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fabric.setblocking(False)
        self.enabled = self.lost = False
        self.isr = 0
        self.count = 0

    def open(self) -> int:
        return os.dup(self._driver.fileno())

    def rise(self) -> None:
        if self.enabled:
            self.isr = 1
            self._show()

    def clear(self, ones: int) -> None:
        self.isr ^= ones & 1
        self._show()

    def _show(self) -> None:
        """The line is a level: it shows as soon as nobody masks it."""
        unmasked = False
        while True:
            try:
                unmasked = self._fabric.recv(8) == b"\1\0\0\0"
            except BlockingIOError:
                break
        if self.isr and unmasked and not self.lost:
            self.count += 1
            self._fabric.send(struct.pack("<I", self.count))


class SimulatedDevice(Device):
    """mapped: registers are memory of this process, as /dev/mem gives them, and a thread is the fabric.

    run_s: how long the fabric works on each start, before it reads anything.   ddr: a file for the memory, so that it
    outlives the process.   `memory_path` is /dev/mem: writes there pass no cache.
    """

    _probe_priority_ = 900

    @classmethod
    def _probe_(cls) -> list[Device]:
        return []

    def __init__(
        self, *, mapped: bool = False, cma_bytes: int = END - FIRST, run_s: float = 0.0, ddr: Path | None = None
    ) -> None:
        super().__init__("simulated")
        self.name = "Pynq-Z1"
        self.capabilities = {"MEMORY_MAPPED" if mapped else "REGISTER_RW": True}
        self.downloads = 0
        self.hung = False
        self.hangs_next = False  # at the next start with work
        self.dead = False  # a download does not help
        self.drop: set[str] = set()  # "flush", "invalidate": caches that are broken
        self.patched: dict[int, int] = {}  # registers that lie
        self.first_address = FIRST
        self.peak_bytes = 0
        self.live: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # address -> (host, as it was last in step with memory)
        self._cma_bytes = cma_bytes
        self._mapped, self._run_s = mapped, run_s
        self.uio = Uio()
        self._busy = False
        self.reads: list[int] = []  # registers, in order
        descriptor = os.open(ddr, os.O_RDWR | os.O_CREAT) if ddr else os.memfd_create("ddr")
        os.ftruncate(descriptor, BASE + RANGE)
        self.memory_path = ddr or Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        self._descriptor = descriptor
        self._memory = np.frombuffer(mmap.mmap(descriptor, 1 << 29), np.uint8)
        self._library = native.library()
        self._fabric = self._library.hetrun_pynq_csim_create(self._memory.ctypes.data, 1 << 29)
        self._registers = np.zeros(RANGE // 4, np.uint32)
        self._stop = threading.Event()
        if mapped:
            threading.Thread(target=self._serve, daemon=True).start()

    def shut_down(self) -> None:
        self._stop.set()

    def memory(self, address: int, nbytes: int) -> np.ndarray:
        """What stands in the DDR, whatever caches hold."""
        return self._memory[address : address + nbytes]

    def poke(self, address: int, value: int) -> None:
        """A register that /dev/mem shows."""
        os.pwrite(self._descriptor, value.to_bytes(4, "little"), address)

    # Registers.

    def read_registers(self, address: int, length: int) -> bytes:
        assert length == 4 and BASE <= address < BASE + RANGE
        offset = address - BASE
        self.reads.append(offset)
        if offset == definition().registers["CTRL"] and (self.hung or self._busy):
            return (1).to_bytes(4, "little")
        if offset == definition().registers["ISR"]:
            return self.uio.isr.to_bytes(4, "little")
        value = self.patched.get(offset, self._library.hetrun_pynq_csim_read(self._fabric, offset))
        return int(value).to_bytes(4, "little")

    def write_registers(self, address: int, data: bytes) -> None:
        self._write(address - BASE, int.from_bytes(data, "little"))

    def mmap(self, address: int, length: int) -> np.ndarray:
        assert (address, length) == (BASE, RANGE)
        return self._registers

    def _write(self, offset: int, value: int) -> None:
        starts = offset == definition().registers["CTRL"] and value & 1
        if starts:
            self._meet_hang(self._library.hetrun_pynq_csim_read(self._fabric, definition().registers["COUNT"]))
        if starts and self.hung:
            return
        if offset == definition().registers["IER"]:
            self.uio.enabled = bool(value & 1)
        if offset == definition().registers["ISR"]:
            self.uio.clear(value)
        if starts and self._run_s:
            self._busy = True
            threading.Timer(self._run_s, self._run, (offset, value)).start()
        elif starts:
            self._run(offset, value)
        else:
            self._library.hetrun_pynq_csim_write(self._fabric, offset, value)

    def _run(self, offset: int, value: int) -> None:
        self._library.hetrun_pynq_csim_write(self._fabric, offset, value)
        self._evict()
        self._busy = False
        if not self._mapped:
            self.uio.rise()

    def _meet_hang(self, count: int) -> None:
        if self.hangs_next and count:
            self.hung, self.hangs_next = True, False

    def _serve(self) -> None:
        """The fabric behind mapped registers."""
        at = {name: offset // 4 for name, offset in definition().registers.items()}
        while not self._stop.wait(1e-4):
            if self.hung or not self._registers[at["CTRL"]] & 1:
                continue
            self._meet_hang(int(self._registers[at["COUNT"]]))
            if self.hung:
                continue
            for name in ("IER", "RING", "COUNT", "CTRL"):
                self._write(4 * at[name], int(self._registers[at[name]]))
            for name in ("VERSION", "CONFIG", "STATUS", "DONE", "BUSY_CYCLES", "STALL_CYCLES"):
                self._registers[at[name]] = self._library.hetrun_pynq_csim_read(self._fabric, 4 * at[name])
            self._registers[at["CTRL"]] = 2 | 4
            self.uio.isr = 0  # the driver cleared the last one
            self.uio.rise()

    # Memory.

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> PynqBuffer:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        taken = sorted((begin, begin + len(host)) for begin, (host, _) in self.live.items())
        address = self.first_address
        for begin, end in taken:
            if address + nbytes <= begin:
                break
            address = max(address, (end + 4095) // 4096 * 4096)
        if address + nbytes > self.first_address + self._cma_bytes:
            raise RuntimeError("Allocate failed: 4294967295")
        host = np.random.default_rng(address).integers(0, 256, nbytes, np.uint8)  # what was there before
        self.live[address] = (host, host.copy())
        self.peak_bytes = max(self.peak_bytes, sum(len(host) for host, _ in self.live.values()))
        buffer = Buffer(shape, dtype, buffer=host.data, device=self, device_address=address, bo=address, coherent=False)
        buffer.owner = self
        return buffer

    def free(self, buffer: PynqBuffer) -> None:
        del self.live[buffer.physical_address]

    def flush(self, bo: int, offset: int, virtual_address: int, nbytes: int) -> None:
        host, clean = self._part(bo, offset, virtual_address, nbytes)
        if "flush" in self.drop:
            return
        first, last = self._lines(bo, offset, nbytes)
        clean[first:last] = host[first:last]
        self._memory[bo + first : bo + last] = host[first:last]

    def invalidate(self, bo: int, offset: int, virtual_address: int, nbytes: int) -> None:
        host, clean = self._part(bo, offset, virtual_address, nbytes)
        if "invalidate" in self.drop:
            return
        first, last = self._lines(bo, offset, nbytes)
        host[first:last] = self._memory[bo + first : bo + last]
        clean[first:last] = host[first:last]

    def _part(self, bo: int, offset: int, virtual_address: int, nbytes: int) -> tuple[np.ndarray, np.ndarray]:
        host, clean = self.live[bo]
        assert virtual_address == host.ctypes.data + offset and offset + nbytes <= len(host)
        return host, clean

    def _lines(self, bo: int, offset: int, nbytes: int) -> tuple[int, int]:
        end = -(-(offset + nbytes) // LINE_BYTES) * LINE_BYTES
        return offset // LINE_BYTES * LINE_BYTES, min(len(self.live[bo][0]), end)

    def _evict(self) -> None:
        """Writes back the lines that differ from what they were when host and memory last met."""
        for begin, (host, clean) in self.live.items():
            dirty = (host != clean).reshape(-1, LINE_BYTES).any(axis=1)
            for line in np.flatnonzero(dirty):
                part = slice(line * LINE_BYTES, (line + 1) * LINE_BYTES)
                self._memory[begin + part.start : begin + part.stop] = host[part]
                clean[part] = host[part]

    # Overlays.

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        from pynq.metadata.runtime_metadata_parser import RuntimeMetadataParser
        from pynqmetadata.frontends import Metadata

        parser = RuntimeMetadataParser(Metadata(input=Path(bitfile_name).with_suffix(".hwh")))
        parser.refresh_hierarchy_dict()
        return parser

    def download(self, bitstream: Any, parser: Any = None) -> None:
        self.downloads += 1
        self.hung = self.dead
        self._registers[:] = 0
        self.uio.enabled, self.uio.isr = False, 0
        self.post_download(bitstream, parser, self.name)

    def get_memory(self, description: Any) -> SimulatedDevice:
        return self

    def gen_cache(self, *_: Any) -> None:
        pass


def _bit() -> bytes:
    def field(tag: bytes, text: str) -> bytes:
        return tag + struct.pack(">H", len(text) + 1) + text.encode() + b"\0"

    head = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
    names = field(b"a", "engine;UserID=0XFFFFFFFF;Version=2022.1") + field(b"b", "7z020clg400")
    data = b"\xff" * 64
    return (
        head + names + field(b"c", "2026/01/01") + field(b"d", "00:00:00") + b"e" + struct.pack(">I", len(data)) + data
    )


def _hwh(vlnv: str, registers: Mapping[str, int], interrupt: bool) -> str:
    name, bus = f"{vlnv.split(':')[2]}_0", "s_axi_control"
    clock = {"PCW_UIPARAM_DDR_ENABLE": "1"}
    for i in range(4):
        clock |= {f"PCW_FPGA_FCLK{i}_ENABLE": str(int(i == 0)), f"PCW_FCLK{i}_PERIPHERAL_DIVISOR0": "5"}
        clock |= {f"PCW_FCLK{i}_PERIPHERAL_DIVISOR1": "2", f"PCW_FCLK{i}_PERIPHERAL_CLKSRC": "IO PLL"}
    described = "".join(_register(register.lower(), offset) for register, offset in registers.items())
    block = (
        f'<ADDRESSBLOCKS><ADDRESSBLOCK ACCESS="" INTERFACE="{bus}" NAME="Reg" RANGE="{RANGE}" USAGE="register">'
        f"<REGISTERS>{described}</REGISTERS></ADDRESSBLOCK></ADDRESSBLOCKS>"
    )
    mapped = (
        f'<MEMORYMAP><MEMRANGE ADDRESSBLOCK="Reg" BASENAME="C_BASEADDR" BASEVALUE="{BASE:#010x}" HIGHNAME="C_HIGHADDR" '
        f'HIGHVALUE="{BASE + RANGE - 1:#010x}" INSTANCE="{name}" IS_DATA="TRUE" IS_INSTRUCTION="TRUE" '
        f'MASTERBUSINTERFACE="M_AXI_GP0" MEMTYPE="REGISTER" SLAVEBUSINTERFACE="{bus}"/></MEMORYMAP>'
    )
    width, wires = {"C_S_AXI_CONTROL_ADDR_WIDTH": "7"}, ("interrupt", "IRQ_F2P") if interrupt else ("", "")
    ports = [_port(wire, way) if wire else "<PORTS/>" for wire, way in zip(wires, "OI", strict=True)]
    engine = _module(name, vlnv, width, block, ports[0], _bus(name, bus, "SLAVE"), "", "PERIPHERAL")
    ps_vlnv = "xilinx.com:ip:processing_system7:5.5"
    bus = _bus(name, "M_AXI_GP0", "MASTER")
    ps = _module("processing_system7_0", ps_vlnv, clock, "", ports[1], bus, mapped, "PROCESSOR")
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no" ?><EDKSYSTEM EDWVERSION="1.2" '
        'TIMESTAMP="Thu Jan 01 00:00:00 2026" VIVADOVERSION="2022.1">'
        '<SYSTEMINFO ARCH="zynq" DEVICE="7z020" NAME="engine" PACKAGE="clg400" SPEEDGRADE="-1"/>'
        "<EXTERNALPORTS/><EXTERNALINTERFACES/>"
        f"<MODULES>{engine}{ps}</MODULES></EDKSYSTEM>"
    )


def _bus(ip: str, name: str, kind: str) -> str:
    return (
        f'<BUSINTERFACE BUSNAME="axi_{ip}" DATAWIDTH="32" NAME="{name}" TYPE="{kind}" '
        'VLNV="xilinx.com:interface:aximm:1.0"><PORTMAPS/></BUSINTERFACE>'
    )


def _port(name: str, way: str) -> str:
    return f'<PORTS><PORT DIR="{way}" NAME="{name}" SENSITIVITY="LEVEL_HIGH" SIGIS="INTERRUPT" SIGNAME="done"/></PORTS>'


def _register(name: str, offset: int) -> str:
    values = {"DESCRIPTION": name, "ADDRESS_OFFSET": offset, "SIZE": 32, "ACCESS": "read-write"}
    values |= {"IS_ENABLED": "true", "RESET_VALUE": 0}
    properties = "".join(f'<PROPERTY NAME="{key}" VALUE="{value}"/>' for key, value in values.items())
    return f'<REGISTER NAME="{name}">{properties}<FIELDS></FIELDS></REGISTER>'


def _module(
    name: str, vlnv: str, parameters: Mapping[str, str], blocks: str, ports: str, buses: str, extra: str, kind: str
) -> str:
    listed = "".join(f'<PARAMETER NAME="{key}" VALUE="{value}"/>' for key, value in parameters.items())
    return (
        f'<MODULE COREREVISION="1" FULLNAME="/{name}" HWVERSION="{vlnv.split(":")[3]}" INSTANCE="{name}" '
        f'IPTYPE="PERIPHERAL" IS_ENABLE="1" MODCLASS="{kind}" MODTYPE="{vlnv.split(":")[2]}" VLNV="{vlnv}"><DOCUMENTS/>'
        f"{blocks}<PARAMETERS>{listed}</PARAMETERS>{ports}<BUSINTERFACES>{buses}</BUSINTERFACES>{extra}</MODULE>"
    )
