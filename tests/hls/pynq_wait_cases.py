"""The wait of a launch, by polling and by interrupt, and boards with several users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pynq_rig import RANGE, Make, board, case, multiply, opened, overlay
from simulated_pynq import write_overlay

from hetrun.errors import DeviceError
from hetrun_pynq_z1 import interrupt
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.driver import PynqZ1Driver

__all__ = ["board", "overlay"]  # fixtures


@pytest.mark.parametrize("mapped", [False, True], ids=["by-pynq", "by-c"])
def test_a_launch_sleeps_until_the_interrupt(board: Make, overlay: Path, mapped: bool) -> None:
    simulated = board(mapped=mapped, run_s=0.0 if mapped else 0.05)
    blocks, x, expected = case("Q4_0")
    for _ in range(2):  # the second launch finds the interrupt unmasked again
        y = multiply(overlay, "Q4_0", blocks, x, wait="interrupt", timeout_s=5)
        assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    assert simulated.uio.count == 2
    if not mapped:
        reads = simulated.reads[-6:]
        at = definition().registers
        assert reads == [at[n] for n in ("ISR", "CTRL", "DONE", "BUSY_CYCLES", "STALL_CYCLES", "STATUS")]


def test_polling_needs_no_interrupt(board: Make, overlay: Path) -> None:
    simulated = board(run_s=0.02)
    blocks, x, expected = case("Q4_0")
    assert np.array_equal(multiply(overlay, "Q4_0", blocks, x), expected)
    assert simulated.uio.count == 0
    assert simulated.reads.count(definition().registers["CTRL"]) > 10


def test_an_interrupt_that_is_lost_is_told_from_a_hung_engine(board: Make, overlay: Path) -> None:
    simulated = board()
    blocks, x, expected = case("Q4_0")
    simulated.uio.lost = True
    with pytest.raises(DeviceError, match=r"finished, but its interrupt did not come within 0\.2 s") as caught:
        multiply(overlay, "Q4_0", blocks, x, wait="interrupt", timeout_s=0.2)
    assert 'wait = "poll"' in str(caught.value.remedy) and simulated.downloads == 1
    simulated.uio.lost, simulated.hangs_next = False, True
    with pytest.raises(DeviceError, match=r"did not finish within 0\.2 s and was reset"):
        multiply(overlay, "Q4_0", blocks, x, wait="interrupt", timeout_s=0.2)
    assert simulated.downloads == 3
    assert np.array_equal(multiply(overlay, "Q4_0", blocks, x, wait="interrupt"), expected)


def test_an_overlay_or_a_kernel_without_the_interrupt_is_said_to_be_so(board: Make, tmp_path: Path) -> None:
    board()

    def reason(overlay: Path) -> str:
        infos = PynqZ1Driver().probe({"overlay": str(overlay), "wait": "interrupt"})
        unavailable = next(i for i in infos if i.id == "pynq-z1:0").unavailable
        assert unavailable is None or 'wait = "poll"' in unavailable.remedy
        return unavailable.reason if unavailable else ""

    wired = write_overlay(tmp_path / "wired")
    assert reason(wired) == ""
    assert "has no interrupt of the engine on IRQ_F2P" in reason(write_overlay(tmp_path / "bare", interrupt=False))
    (interrupt.UIO_CLASS / "uio0" / "name").write_text("another\n")
    assert reason(wired) == "wait is interrupt, but Linux has no UIO device for interrupt 61"


# One board, several users.

STREAMED = {"staging_bytes": 1 << 20, "cma_bytes": 8 << 20}


def test_devices_of_one_process_share_the_board_and_the_last_one_closes_it(board: Make, overlay: Path) -> None:
    simulated = board()
    infos = {i.id: i for i in PynqZ1Driver().probe({"overlay": str(overlay), **STREAMED})}
    resident, stream = (PynqZ1Driver().open(infos[name]) for name in ("pynq-z1:0", "pynq-z1:stream"))
    buffer = stream.alloc(64)
    assert simulated.downloads == 1
    resident.close()
    assert simulated.live
    buffer.write(memoryview(b"1" * 64))
    stream.close()
    with pytest.raises(DeviceError, match="closed"):
        buffer.write(memoryview(b"1"))
    assert not simulated.live


def test_another_process_on_the_board_is_named(board: Make, overlay: Path) -> None:
    simulated = board()
    program = f"import fcntl, os, time; f = os.open({str(simulated.memory_path)!r}, os.O_RDWR)\n"
    program += "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(DeviceError, match="another process uses the board"):
            opened(overlay)
        assert simulated.downloads == 0
        other.kill()
        other.wait()
        opened(overlay).close()  # what it held went with it


def test_a_process_that_is_killed_in_a_launch_leaves_the_board_to_the_next(
    board: Make, overlay: Path, tmp_path: Path
) -> None:
    """Lock, mappings and buffers end with it; what it left in the memory harms nobody."""
    ddr = tmp_path / "ddr"
    program = f"""
import site, sys
site.addsitedir({os.environ["HETRUN_TEST_SITE"]!r})
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
import pynq
from simulated_pynq import SimulatedDevice
from hetrun_pynq_z1 import reserved
from hetrun_pynq_z1.pynq_board import BoardSettings, open_board
from hetrun_pynq_z1.reserved import ReservedRange
simulated = pynq.Device.active_device = SimulatedDevice(ddr=Path({str(ddr)!r}))
reserved.MEMORY_DEVICE = simulated.memory_path
place = ReservedRange({RANGE["base"]}, {RANGE["bytes"]})
board = open_board("pynq-z1:0", BoardSettings({str(overlay)!r}, 125.0, 60.0, 1 << 20, place, 0, False, 1 << 28))
board.allocate(4096), board.allocate_weights(4096)
simulated.hung = True
board._write("COUNT", 1)
board._write("CTRL", 1)
print("running", flush=True)
while not board._read("CTRL") & 2:
    pass
"""
    simulated = board(ddr=ddr)
    blocks, x, expected = case("Q4_K")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and "running\n" in iter(other.stdout.readline, "")
        with pytest.raises(DeviceError, match="another process uses the board"):
            opened(overlay, reserved=RANGE)
        other.kill()
    y = multiply(overlay, "Q4_K", blocks, x, reserved=RANGE)
    assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    assert not simulated.live
