"""The driver over the real pynq package and a simulated board; test_pynq_driver.py runs these in its environment."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import tiny_llama
from pynq_rig import Make, board, case, multiply, opened, overlay
from simulated_pynq import ENGINE, SimulatedDevice, write_overlay

import hetrun
from hetrun.errors import AllocationError, DeviceError
from hetrun_pynq_z1.definition import definition

__all__ = ["board", "overlay"]  # fixtures


@pytest.mark.parametrize("mapped", [False, True], ids=["by-pynq", "by-c"])
@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q6_K", "Q4_0", "Q5_1", "Q8_0"])
def test_bits_through_overlay_registers_and_buffers(board: Make, overlay: Path, name: str, mapped: bool) -> None:
    device = board(mapped=mapped)
    blocks, x, expected = case(name)
    assert np.array_equal(multiply(overlay, name, blocks, x).view(np.uint32), expected.view(np.uint32))
    assert device.downloads == 1 and not device.live


@pytest.mark.parametrize("broken", ["flush", "invalidate"])
def test_the_board_shows_a_cache_that_is_not_kept(board: Make, overlay: Path, broken: str) -> None:
    """Else a driver that forgets one would pass here."""
    device = board()
    device.drop.add(broken)
    blocks, x, expected = case("Q4_0")
    try:
        assert not np.array_equal(multiply(overlay, "Q4_0", blocks, x), expected)
    except DeviceError as error:
        assert "refused" in str(error)  # descriptors never reached the engine


@pytest.mark.parametrize("part", ["results", "weights", "launch"])
def test_each_flush_is_needed(board: Make, overlay: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    blocks, x, expected = case("Q8_0")
    sizes: list[int] = []

    def multiply_on(device: SimulatedDevice, dropped: int) -> np.ndarray:
        real = device.flush

        def all_but_one(bo: int, offset: int, address: int, nbytes: int) -> None:
            sizes.append(nbytes)
            if nbytes != dropped:
                real(bo, offset, address, nbytes)

        monkeypatch.setattr(device, "flush", all_but_one)
        return multiply(overlay, "Q8_0", blocks, x)

    assert np.array_equal(multiply_on(board(), -1), expected)
    assert len(sizes) == 3
    weights, launch, results = sizes
    dropped = {"weights": weights, "launch": launch, "results": results}[part]
    try:
        assert not np.array_equal(multiply_on(board(), dropped), expected)
    except DeviceError as error:
        assert part == "launch" and "refused" in str(error)


def test_a_whole_generation_has_the_tokens_of_csim(board: Make, overlay: Path, tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", quant="Q4_K")
    patterns = [
        f"blk.*.{name}" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    simulated = board()

    def tokens_on(device: str, settings: dict[str, dict[str, object]]) -> list[int]:
        pins = [f"{pattern}={device}" for pattern in patterns]
        with hetrun.load(path, devices=["cpu", device], pins=pins, n_ctx=96, driver_settings=settings) as model:
            device_of = {a.op: a.device for a in model.plan.assignments("decode")}
            placed = {
                device_of[op.name]
                for op in model.session.runtime.graph.ops
                if op.name.startswith("blk") and op.kind == "matmul"
            }
            assert placed == {device}
            generation = model.generate("the rest of it is on the", max_tokens=24)
            generation.finish()
            return list(generation.tokens)

    expected = tokens_on("pynq-z1:csim", {})
    assert len(expected) == 24
    assert tokens_on("pynq-z1:0", {"pynq-z1": {"overlay": str(overlay)}}) == expected
    assert simulated.downloads == 1 and not simulated.live


def test_an_overlay_of_something_else_is_named(board: Make, tmp_path: Path) -> None:
    device = board()
    wrong = write_overlay(tmp_path / "wrong", vlnv="xilinx.com:hls:resize_accel:1.0")
    with pytest.raises(DeviceError, match=r"expected an IP named hetrun_pynq_engine, found .*resize_accel"):
        opened(wrong)
    assert device.downloads == 0


@pytest.mark.parametrize("change", [{"RING": 0x14}, {"DONE": None}])
def test_another_register_map_is_named(board: Make, tmp_path: Path, change: dict[str, int | None]) -> None:
    device = board()
    registers = {k: v for k, v in {**definition().registers, **change}.items() if v is not None}
    ((name, moved),) = change.items()
    expected = f"expected register {name} at {definition().registers[name]:#x}, found " + (
        f"{moved:#x}" if moved else "only"
    )
    with pytest.raises(DeviceError, match=expected):
        opened(write_overlay(tmp_path / "moved", vlnv=ENGINE, registers=registers))
    assert device.downloads == 0


@pytest.mark.parametrize("register", ["VERSION", "CONFIG"])
def test_an_engine_of_another_version_is_named(board: Make, overlay: Path, register: str) -> None:
    device = board()
    device.patched[definition().registers[register]] = 0x99
    with pytest.raises(DeviceError, match=rf"expected {register} 0x\w+, found 0x99"):
        opened(overlay)


def test_a_file_that_pynq_cannot_read_is_named(board: Make, overlay: Path) -> None:
    board()
    overlay.with_suffix(".hwh").write_text("<nothing")
    with pytest.raises(DeviceError, match=r"engine\.bit cannot be read") as caught:
        opened(overlay)
    assert caught.value.remedy


def test_no_contiguous_memory_left_says_how_much_there_is(board: Make, overlay: Path) -> None:
    simulated = board(cma_bytes=1 << 20)
    device = opened(overlay)
    small = device.alloc(1000)
    with pytest.raises(
        AllocationError, match=r"CMA\) for 2097152 bytes.*the kernel's CMA has 134217728 bytes"
    ) as caught:
        device.alloc(2 << 20)
    assert "cma=" in str(caught.value.remedy)
    small.write(memoryview(b"\1" * 1000))
    device.close()
    assert not simulated.live


def test_cma_bytes_is_kept_and_freed_pieces_serve_again(board: Make, overlay: Path) -> None:
    simulated = board()
    device = opened(overlay, cma_bytes=8 << 20)
    first = [device.alloc(1 << 20) for _ in range(8)]
    with pytest.raises(AllocationError, match="8388608 of 8388608 in use"):
        device.alloc(1)
    for buffer in first:
        buffer.close()
    assert not simulated.live
    device.alloc(8 << 20).close()
    device.close()


@pytest.mark.parametrize(("address", "cause"), [(0x16800010, "not aligned"), (0xFFFFF000, "beyond the 4 GiB")])
def test_memory_that_the_engine_cannot_use_is_refused(board: Make, overlay: Path, address: int, cause: str) -> None:
    simulated = board()
    simulated.first_address = address
    device = opened(overlay)
    with pytest.raises(AllocationError, match=cause):
        device.alloc(100)
    assert not simulated.live
    device.close()


@pytest.mark.parametrize("mapped", [False, True], ids=["by-pynq", "by-c"])
def test_a_hung_engine_is_reset_and_serves_again(board: Make, overlay: Path, mapped: bool) -> None:
    simulated = board(mapped=mapped)
    blocks, x, expected = case("Q4_0")
    simulated.hangs_next = True
    with pytest.raises(DeviceError, match=r"segment y: the engine did not finish within 0\.5 s and was reset"):
        multiply(overlay, "Q4_0", blocks, x, timeout_s=0.5)
    assert simulated.downloads == 2 and not simulated.live
    assert np.array_equal(multiply(overlay, "Q4_0", blocks, x), expected)


def test_an_engine_that_never_answers_is_said_to_be_so(board: Make, overlay: Path) -> None:
    board().dead = True
    with pytest.raises(DeviceError, match="does not answer") as caught:
        opened(overlay)
    assert "power-cycle" in str(caught.value.remedy)


def test_an_engine_that_stays_silent_after_a_reset_is_said_to_do_so(board: Make, overlay: Path) -> None:
    simulated = board()
    blocks, x, _ = case("Q4_0")
    download = simulated.download

    def die(*arguments: object) -> None:
        simulated.dead = simulated.downloads > 0
        simulated.hangs_next = True
        download(*arguments)

    simulated.download = die  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="does not answer"):
        multiply(overlay, "Q4_0", blocks, x, timeout_s=0.2)
    assert simulated.downloads == 2 and not simulated.live


def test_what_fails_within_a_launch_is_raised_after_it(
    board: Make, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = board()
    blocks, x, _ = case("Q4_0")

    def fail(*_: object) -> None:
        raise RuntimeError("Invalidate Failed: 5")

    monkeypatch.setattr(simulated, "invalidate", fail)
    with pytest.raises(DeviceError, match="pynq-z1:0: Invalidate Failed: 5"):
        multiply(overlay, "Q4_0", blocks, x)
    assert not simulated.live


def test_a_board_that_is_forgotten_gives_its_memory_back(board: Make, overlay: Path) -> None:
    simulated = board()
    device = opened(overlay)
    buffer = device.alloc(5000)
    assert simulated.live
    del device, buffer
    gc.collect()
    assert not simulated.live


def test_the_end_of_the_process_gives_memory_back(overlay: Path) -> None:
    program = f"""
import atexit, site, sys
site.addsitedir({os.environ["HETRUN_TEST_SITE"]!r})
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import pynq
from simulated_pynq import SimulatedDevice
from hetrun_pynq_z1 import reserved
from hetrun_pynq_z1.pynq_board import BoardSettings, PynqBoard
simulated = pynq.Device.active_device = SimulatedDevice()
reserved.MEMORY_DEVICE = simulated.memory_path
atexit.register(lambda: print("live", len(simulated.live)))
board = PynqBoard("pynq-z1:0", BoardSettings({str(overlay)!r}, 125.0, 1.0, 1 << 20, None, 0, False, 1 << 28))
block = board.allocate(4096)
print("live", len(simulated.live))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.split("\n")[-3:-1] == ["live 1", "live 0"], result.stdout + result.stderr
