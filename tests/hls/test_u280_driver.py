"""The U280's driver over a pyxrt that forgives nothing, in both of its shapes."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fake_pyxrt
import numpy as np
import pytest
from fake_u280 import BANKS, CONTROLLER, LANES, FakeCard, write_xclbin
from u280_machine import BDF, NOTHING, Insert, insert, opened, pci, settings, xclbin

from hetrun.errors import AllocationError, DeviceError
from hetrun_alveo_u280.xrt import XrtCard

__all__ = ["insert", "pci", "xclbin"]  # fixtures

MIB = 1 << 20


def memory(card: FakeCard, bank: int) -> np.ndarray:
    """What stands in a bank, whatever the host's copy holds."""
    (buffer,) = [b for b in card.live if b.bank == bank]
    return buffer.card


# Memory and launches.


def test_bytes_reach_the_cards_own_memory(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    assert (driver.subject, driver.channel_beats, driver.ddr_bytes) == ("alveo-u280:0", MIB // 64, 16 * MIB)
    data = np.random.default_rng(1).integers(0, 256, 4 * 64, np.uint8)
    driver.hbm_write(5, 100, memoryview(data))
    assert (memory(card, 5)[6400:6656] == data).all()
    driver.hbm_copy(101, 300, 2)
    assert (memory(card, 5)[19200:19328] == data[64:192]).all()
    junk = memory(card, 7)[19328:19392].copy()
    driver.hbm_zero(300, 2)
    for channel in range(32):
        assert not memory(card, channel)[19200:19328].any()
    assert (memory(card, 7)[19328:19392] == junk).all() and junk.any()
    driver.ddr_write(12345, memoryview(data)[:7])
    out = np.empty(7, np.uint8)
    driver.ddr_read(12345, memoryview(out))
    assert (out == data[:7]).all() and (memory(card, 32)[12345:12352] == out).all()
    driver.close()


def test_pieces_larger_than_one_copy_are_whole(insert: Insert, xclbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetrun_alveo_u280.opened.PIECE", memoryview(bytes(256)))
    card = insert()
    driver = opened(xclbin)
    data = np.random.default_rng(2).integers(0, 256, 9 * 64, np.uint8)
    driver.hbm_write(31, 0, memoryview(data))
    driver.hbm_copy(0, 50, 9)
    assert (memory(card, 31)[3200:3776] == data).all()
    driver.hbm_zero(0, 9)
    assert not memory(card, 31)[:576].any() and memory(card, 31)[576:640].any()
    driver.close()


def test_memory_that_nobody_wrote_is_junk_on_both_sides(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    for buffer in card.live:
        for copy in (buffer.host, buffer.card):
            assert len(np.unique(copy[4096:8192])) > 200
        assert (buffer.host[4096:8192] != buffer.card[4096:8192]).mean() > 0.9
    out = np.empty(4096, np.uint8)
    driver.ddr_read(4096, memoryview(out))
    assert (out == memory(card, 32)[4096:8192]).all()
    driver.close()


def test_nothing_at_all_may_be_copied(insert: Insert, xclbin: Path) -> None:
    insert()
    driver = opened(xclbin)
    driver.hbm_zero(0, 0)
    driver.hbm_copy(0, 1, 0)
    driver.hbm_write(0, 0, memoryview(b""))
    driver.ddr_write(0, memoryview(b""))
    driver.ddr_read(0, memoryview(bytearray()))
    driver.close()


def test_what_lies_beyond_a_buffer_is_an_error(insert: Insert, xclbin: Path) -> None:
    insert()
    driver = opened(xclbin)
    with pytest.raises(DeviceError, match="writing 64 bytes at 1048576: attempting to write past buffer size"):
        driver.hbm_write(0, MIB // 64, memoryview(bytes(64)))
    with pytest.raises(DeviceError, match="reading 2 bytes at 16777215"):
        driver.ddr_read(16 * MIB - 1, memoryview(bytearray(2)))
    driver.close()


def test_a_launch_gets_its_arguments_and_only_the_report_comes_back(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    card.transfers.clear()
    report = driver.run({**NOTHING, "TOKEN": 7, "POSITION": 8191})
    assert report.version == 1 and report.status == 0
    assert card.launches[-1] == {**NOTHING, "TOKEN": 7, "POSITION": 8191}
    assert card.transfers == [("from", 32, 64)]
    driver.close()


def test_one_run_object_serves_all_launches(insert: Insert, xclbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert()
    made: list[object] = []
    init = fake_pyxrt.run.__init__
    monkeypatch.setattr(fake_pyxrt.run, "__init__", lambda self, kernel: (made.append(self), init(self, kernel))[1])
    driver = opened(xclbin)
    for _ in range(3):
        driver.run(NOTHING)
    assert len(made) == 1
    driver.close()


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1.5, None, "1"])
def test_an_argument_that_is_no_32_bit_integer_is_an_error(insert: Insert, xclbin: Path, value: Any) -> None:
    insert()
    driver = opened(xclbin)
    with pytest.raises(DeviceError, match="alveo-u280:0: the launch does not start"):
        driver.run({**NOTHING, "TOKEN": value})
    assert driver.run(NOTHING).status == 0
    driver.close()


def test_a_status_of_the_engine_is_an_error_and_the_card_lives_on(insert: Insert, xclbin: Path) -> None:
    insert()
    driver = opened(xclbin)
    with pytest.raises(DeviceError, match="is of version 1"):
        driver.run({**NOTHING, "VERSION": 2})
    assert driver.run(NOTHING).status == 0
    driver.close()


# Cards and xclbins that are not as they should be.

SWAPPED = BANKS | {"3": 4, "4": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernels": {"vadd": 4}}, f"expected a kernel {CONTROLLER}, found vadd"),
        ({"kernels": {}}, f"expected a kernel {CONTROLLER}, found none"),
        ({"kernels": {CONTROLLER: 42, LANES: 6}}, "has 42 arguments, expected 43 or more"),
        ({"banks": SWAPPED}, r"argument 3 is connected to HBM\[4\], not to HBM\[3\]"),
        ({"banks": {**BANKS, "32": 33}}, r"argument 32 is connected to DDR\[1\], not to DDR\[0\]"),
        ({"banks": {**BANKS, "42": 33}}, r"argument 42 is connected to DDR\[1\], not to DDR\[0\]"),
        ({"banks": {**BANKS, "3": 99}}, "argument 3 is connected to nothing"),
        ({"banks": {str(i): i for i in range(32)}}, "memory bank of argument 32 is not known: Bad argument index"),
        ({"version": 2}, "the engine is of version 2, this hetrun drives version 1"),
        ({"xsa": "xilinx_u50_gen3x16_xdma_base_5"}, "does not load: failed to load xclbin"),
    ],
)
def test_another_xclbin_is_refused(insert: Insert, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    card = insert()
    with pytest.raises(DeviceError, match=words) as caught:
        opened(write_xclbin(tmp_path / "other.xclbin", **changes))
    assert caught.value.remedy
    del caught
    gc.collect()
    assert not card.users and not card.live


def test_an_engine_that_does_not_look_at_the_version_is_refused(insert: Insert, xclbin: Path) -> None:
    insert().ignores_version = True
    with pytest.raises(DeviceError, match="told version 0, the engine answers OK, not BAD_VERSION"):
        opened(xclbin)


def test_an_engine_that_writes_no_report_is_refused(insert: Insert, xclbin: Path) -> None:
    insert().silent = True
    with pytest.raises(DeviceError, match="the engine wrote no report"):
        opened(xclbin)


def test_a_card_that_is_not_there_is_named(insert: Insert, xclbin: Path) -> None:
    insert()
    with pytest.raises(DeviceError, match="card 1 does not open") as caught:
        opened(xclbin, card=1)
    assert "xbutil examine" in str(caught.value.remedy)
    with pytest.raises(DeviceError, match=r"card 0000:5e:00\.1 does not open"):
        opened(xclbin, card="0000:5e:00.1")
    opened(xclbin, card=BDF).close()


def test_a_card_whose_memory_is_taken_says_so(insert: Insert, xclbin: Path) -> None:
    card = insert(hbm_bytes=MIB)
    first = opened(xclbin)
    with pytest.raises(DeviceError, match=r"no 1048576 bytes of HBM\[0\]|does not load") as caught:
        opened(xclbin)
    assert "process" in str(caught.value.remedy)
    assert first.run(NOTHING).status == 0
    first.close()
    assert not card.live


@pytest.mark.parametrize(
    ("mems", "words"),
    [
        ({"HBM[9]": 512}, r"1048576 bytes of HBM\[9\] asked for, a buffer there has at most 524288"),
        ({"DDR[0]": 8 << 10}, r"16777216 bytes of DDR\[0\] asked for, a buffer there has at most 8388608"),
    ],
)
def test_a_bank_that_is_too_small_is_refused(
    insert: Insert, tmp_path: Path, xclbin: Path, mems: dict[str, int], words: str
) -> None:
    insert()
    banks = [(f"HBM[{i}]", i << 28, mems.get(f"HBM[{i}]", 1 << 18), True) for i in range(32)]
    banks += [(f"DDR[{i}]", (1 << 38) + (i << 34), mems.get(f"DDR[{i}]", 1 << 24), True) for i in range(2)]
    with pytest.raises(AllocationError, match=words):
        opened(write_xclbin(tmp_path / "small.xclbin", mems=banks))


def test_a_buffer_of_4_gb_is_refused_before_xrt_sees_it(insert: Insert, xclbin: Path) -> None:
    insert()
    four_gb = settings(xclbin).__class__(str(xclbin), 0, 1.0, MIB, 1 << 32)
    with pytest.raises(AllocationError, match=r"4294967296 bytes of DDR\[0\] asked for, a buffer there has at most"):
        XrtCard("alveo-u280:0", four_gb)


def test_a_buffer_outside_of_its_bank_is_refused(insert: Insert, xclbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert()
    monkeypatch.setattr(fake_pyxrt.bo, "address", lambda self: 5)
    with pytest.raises(DeviceError, match=r"the buffer of argument 1 lies at 0x5, outside of HBM\[1\]"):
        opened(xclbin)


# Launches that do not end.


def test_a_launch_that_takes_a_while_is_waited_for(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    card.slices = 5
    assert driver.run(NOTHING).status == 0
    driver.close()


def test_a_hung_launch_is_found_in_time_and_the_card_is_lost(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    card.hangs_next = True
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=r"the launch has not ended within 0.3 s; it was opened anew and answers"):
        driver.run(NOTHING)
    assert time.monotonic() - begin < 2
    for use in (
        lambda: driver.run(NOTHING),
        lambda: driver.hbm_zero(0, 1),
        lambda: driver.ddr_write(0, memoryview(b"a")),
    ):
        with pytest.raises(DeviceError, match="weights and KV there are lost"):
            use()
    driver.close()
    assert not card.users and not card.live
    again = opened(xclbin)
    assert again.run(NOTHING).status == 0
    again.close()


def test_a_card_that_stays_hung_names_the_reset(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    card.hangs_next, card.cures = True, False
    with pytest.raises(DeviceError, match=r"opened anew it does not work: .* the engine .* does not answer") as caught:
        driver.run(NOTHING)
    assert f"xbutil reset --device {BDF}" in str(caught.value.remedy)
    with pytest.raises(DeviceError, match="does not answer") as caught:
        opened(xclbin)
    assert f"xbutil reset --device {BDF}" in str(caught.value.remedy)


@pytest.mark.parametrize("state", ["ERROR", "ABORT", "NORESPONSE"])
def test_a_launch_that_ends_otherwise_is_an_error(insert: Insert, xclbin: Path, state: str) -> None:
    card = insert()
    driver = opened(xclbin)
    card.state = state
    with pytest.raises(DeviceError, match=f"the launch ended as ERT_CMD_STATE_{state}"):
        driver.run(NOTHING)


def test_a_wait_that_raises_is_an_error(insert: Insert, xclbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert()
    driver = opened(xclbin)

    def wait(self: object, timeout_ms: int) -> None:
        raise RuntimeError("run::command_error")

    monkeypatch.setattr(fake_pyxrt.run, "wait", wait)
    with pytest.raises(DeviceError, match="waiting for the launch failed: run::command_error"):
        driver.run(NOTHING)


def test_after_ctrl_c_the_launch_is_waited_for_before_memory_is_touched(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    card.interrupts, card.slices = 1, 3
    with pytest.raises(KeyboardInterrupt):
        driver.run(NOTHING)
    driver.hbm_zero(0, 1)
    assert driver.run(NOTHING).status == 0
    driver.close()


# Ends.


def test_after_close_nothing_is_held_and_nothing_works(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    driver.close()
    driver.close()
    assert not card.users and not card.live
    with pytest.raises(DeviceError, match="alveo-u280:0 is closed"):
        driver.run(NOTHING)
    with pytest.raises(DeviceError, match="alveo-u280:0 is closed"):
        driver.ddr_read(0, memoryview(bytearray(1)))


def test_a_card_that_is_forgotten_is_given_back(insert: Insert, xclbin: Path) -> None:
    card = insert()
    driver = opened(xclbin)
    assert card.users == 1
    del driver
    gc.collect()
    assert not card.users and not card.live


# A process that ends without a word: pyxrt's objects are let go of before the interpreter takes modules away.
FORGETFUL = """
import atexit, sys
sys.path[:0] = {folders!r}
card = None
atexit.register(lambda: print("left", card.users, len(card.live)))
import fake_pyxrt, fake_u280
from pathlib import Path
from u280_machine import opened
card = fake_u280.FakeCard()
sys.modules["pyxrt"] = fake_pyxrt.module("2.13", [card])
driver = opened(Path({xclbin!r}))
"""


def test_a_process_that_ends_lets_go_of_the_card(xclbin: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = FORGETFUL.format(folders=folders, xclbin=str(xclbin))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left 0 0\n", "")
