"""A simulated board as the one that pynq finds, and a matmul on it; for the cases of test_pynq_driver.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import engine_order
import numpy as np
import pynq
import pytest
from simulated_pynq import SimulatedDevice, write_overlay

from hetrun.device import Batch, Bindings, Segment
from hetrun.ops import MatMul, Value
from hetrun.tensor import TENSOR_TYPES, Weight
from hetrun_pynq_z1 import cma, interrupt, pynq_board, reserved
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.driver import PynqZ1Driver

Make = Callable[..., SimulatedDevice]
RANGE = {"base": 0x10000000, "bytes": 0x00400000}  # that Linux leaves alone there


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    return write_overlay(tmp_path / "overlay")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """Makes a simulated board the one that pynq finds."""
    compatible = tmp_path / "compatible"
    compatible.write_bytes(b"digilent,zynq-pynq-z1\0xlnx,zynq-7000\0")
    (tmp_path / "meminfo").write_text("MemTotal: 504000 kB\nCmaTotal:  131072 kB\nCmaFree:  100000 kB\n")
    (tmp_path / "interrupts").write_text("           CPU0       CPU1\n 46:  0  0  GIC-0  61 Level     fabric\n")
    (tmp_path / "uio" / "uio0").mkdir(parents=True)
    (tmp_path / "uio" / "uio0" / "name").write_text("fabric\n")
    # Linux has what lies below 0x10000000 and, with the CMA, above 0x16800000.
    (tmp_path / "iomem").write_text(
        "00000000-0fffffff : System RAM\n  00008000-00bfffff : Kernel code\n16800000-1fffffff : System RAM\n"
    )
    memory = tmp_path / "tree" / "memory@0"
    memory.mkdir(parents=True)
    (memory / "reg").write_bytes(bytes.fromhex("0000000020000000"))
    monkeypatch.setattr(pynq_board, "COMPATIBLE", compatible)
    monkeypatch.setattr(cma, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(interrupt, "INTERRUPTS", tmp_path / "interrupts")
    monkeypatch.setattr(interrupt, "UIO_CLASS", tmp_path / "uio")
    monkeypatch.setattr(reserved, "IOMEM", tmp_path / "iomem")
    monkeypatch.setattr(reserved, "DEVICE_TREE", tmp_path / "tree")
    made: list[SimulatedDevice] = []

    def make(**options: object) -> SimulatedDevice:
        device = SimulatedDevice(**options)  # type: ignore[arg-type]
        pynq.Device.active_device = device
        monkeypatch.setattr(reserved, "MEMORY_DEVICE", device.memory_path)
        monkeypatch.setattr(interrupt, "opened", lambda subject, overlay: device.uio.open())
        made.append(device)
        return device

    yield make
    for device in made:
        device.shut_down()


def multiply(
    overlay: Path, name: str, blocks: np.ndarray, x: np.ndarray, device_id: str = "pynq-z1:0", **settings: object
) -> np.ndarray:
    """y of the board, through the contract. y is full of numbers before the launch."""
    driver = PynqZ1Driver()
    info = next(i for i in driver.probe({"overlay": str(overlay), **settings}) if i.id == device_id)
    assert (info.backing, info.unavailable) == ("hardware", None)
    n, columns = x.shape
    weight, value = Weight("w", TENSOR_TYPES[name], (len(blocks), columns)), Value("x", columns)
    op = MatMul("y", value, weight)
    segment = Segment("y", (op,), (value,), (op.output,), n, 1)
    device = driver.open(info)
    try:
        buffers = {"x": device.alloc(segment.value_bytes(value)), "y": device.alloc(segment.value_bytes(op.output))}
        buffers["x"].write(memoryview(np.ascontiguousarray(x)).cast("B"))
        buffers["y"].write(memoryview(np.full((n, len(blocks)), 7, np.float32)).cast("B"))
        executable = device.load(
            driver.compile(info, segment), {"w": memoryview(blocks.tobytes())}, Bindings(buffers, {})
        )
        executable.run(Batch.of([0] * n, range(n), [0] * n, []))
        (event,) = device.synchronize()
        assert event.basis.startswith("measured")
        y = np.empty((n, len(blocks)), np.float32)
        buffers["y"].read(memoryview(y).cast("B"))
        return y
    finally:
        device.close()


def case(name: str, rows: int = 45, columns: int = 512, tokens: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(blocks, x, the product in the engine's order)"""
    rng = np.random.default_rng(definition().formats[name])
    blocks = engine_order.random_blocks(rng, name, rows, columns)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    return blocks, x, engine_order.multiply(name, blocks, x)


def opened(overlay: Path, **settings: object) -> object:
    driver = PynqZ1Driver()
    info = next(i for i in driver.probe({"overlay": str(overlay), **settings}) if i.id == "pynq-z1:0")
    return driver.open(info)
