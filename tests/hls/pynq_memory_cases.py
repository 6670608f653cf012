"""Weights in reserved memory, and weights that are copied for every step, on the simulated board."""

from __future__ import annotations

import errno
import os
import re
import types
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from models import tiny_llama
from pynq_rig import RANGE, Make, board, case, multiply, opened, overlay

import hetrun
from hetrun.errors import AllocationError, DeviceError
from hetrun_pynq_z1 import native, reserved
from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.driver import PynqZ1Driver

__all__ = ["board", "overlay"]  # fixtures


def test_weights_go_to_reserved_memory_and_are_never_flushed(board: Make, overlay: Path) -> None:
    simulated = board()
    blocks, x, expected = case("Q4_K")
    flushed: list[int] = []
    real = simulated.flush
    simulated.flush = lambda bo, *rest: (flushed.append(bo), real(bo, *rest))[1]  # type: ignore[method-assign]
    y = multiply(overlay, "Q4_K", blocks, x, reserved=RANGE)
    assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    packed = simulated.memory(RANGE["base"], len(blocks) * blocks.shape[1])
    assert packed.any() and len(flushed) == 2  # activations and results alone
    assert not simulated.live


def test_a_weight_too_large_for_either_memory_is_parted(board: Make, overlay: Path) -> None:
    """3,000 rows of Q8_0, 816 kB: reserved memory takes 400 kB, and CMA 786 kB less values."""
    simulated = board(cma_bytes=768 << 10)
    blocks, x, expected = case("Q8_0", rows=3000, columns=256, tokens=11)
    place = {"base": 0x10000000, "bytes": 400 << 10}
    y = multiply(overlay, "Q8_0", blocks, x, reserved=place, cma_bytes=768 << 10)
    assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    assert simulated.memory(place["base"], 270 << 10).any()
    with pytest.raises(AllocationError, match=r"CMA\) for 816000 bytes"):
        multiply(overlay, "Q8_0", blocks, x, reserved={**place, "bytes": 4096}, cma_bytes=768 << 10)
    assert not simulated.live


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ({"base": 0x1FF00000, "bytes": 0x00200000}, r"lies outside the board's memory, 0x0 to 0x20000000"),
        ({"base": 0x0F000000, "bytes": 0x02000000}, r"is not reserved: Linux uses 0x0 to 0x10000000 itself"),
    ],
)
def test_a_range_that_is_not_reserved_makes_the_board_unavailable(
    board: Make, overlay: Path, place: dict[str, int], cause: str
) -> None:
    board()
    info = next(i for i in PynqZ1Driver().probe({"overlay": str(overlay), "reserved": place}) if i.id == "pynq-z1:0")
    assert info.unavailable is not None and re.search(cause, info.unavailable.reason)
    assert "docs/pynq-z1.md" in info.unavailable.remedy
    with pytest.raises(DeviceError, match=cause):
        PynqZ1Driver().open(info)


def test_a_range_over_the_kernels_contiguous_memory_is_named(board: Make, overlay: Path) -> None:
    """By the device tree where that says where CMA is, else when the first piece of it comes."""
    simulated = board()
    place = {"base": 0x11000000, "bytes": 0x01000000}
    node = reserved.DEVICE_TREE / "reserved-memory" / "linux,cma"
    node.mkdir(parents=True)
    (node / "reg").write_bytes(bytes.fromhex("1180000004000000"))
    (node / "reusable").write_bytes(b"")
    info = next(i for i in PynqZ1Driver().probe({"overlay": str(overlay), "reserved": place}) if i.id == "pynq-z1:0")
    assert info.unavailable is not None
    assert "overlaps the kernel's CMA, 0x11800000 to 0x15800000" in info.unavailable.reason
    (node / "reg").unlink()
    simulated.first_address = 0x11800000
    device = opened(overlay, reserved=place)
    with pytest.raises(AllocationError, match=r"the kernel's CMA, 0x11800000 to \w+, overlaps the reserved range"):
        device.alloc(100)
    assert not simulated.live
    device.close()


@pytest.mark.parametrize(("errno_", "where", "cause"), [
    (errno.EACCES, "open", "no permission to map the reserved range 0x10000000 to 0x10400000"),
    (errno.EPERM, "mmap", "the kernel does not let .* map the reserved range"),
    (errno.ENXIO, "mmap", "cannot be mapped"),
])  # fmt: skip
def test_memory_that_linux_does_not_let_be_mapped(
    board: Make, overlay: Path, monkeypatch: pytest.MonkeyPatch, errno_: int, where: str, cause: str
) -> None:
    simulated = board()

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno_, os.strerror(errno_))

    fake = types.SimpleNamespace(**{**vars(getattr(reserved, {"open": "os"}.get(where, where))), where: refuse})
    monkeypatch.setattr(reserved, {"open": "os"}.get(where, where), fake)
    with pytest.raises(DeviceError, match=cause) as caught:
        opened(overlay, reserved=RANGE)
    assert caught.value.remedy and simulated.downloads == 0
    monkeypatch.undo()


def test_reserved_memory_that_is_none_is_found_out(
    board: Make, overlay: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first write that does not read back ends it. The library's own check is what is broken here."""
    board()
    monkeypatch.setattr(native.library(), "hetrun_pynq_copy_uncached", lambda *_: 0)
    blocks, x, _ = case("Q4_0")
    with pytest.raises(DeviceError, match=r"w: what was written to reserved memory at 0x10000000 does not read back"):
        multiply(overlay, "Q4_0", blocks, x, reserved=RANGE)


@pytest.mark.parametrize("mapped", [False, True], ids=["by-pynq", "by-c"])
@pytest.mark.parametrize("name", ["Q3_K", "Q8_0"])
@pytest.mark.parametrize("tokens", [1, 19])
def test_bits_of_streamed_weights(board: Make, overlay: Path, name: str, mapped: bool, tokens: int) -> None:
    """2,061 rows: three slabs, and pieces of less than one where a half of the staging area holds no more."""
    simulated = board(mapped=mapped, cma_bytes=1 << 20)
    blocks, x, expected = case(name, rows=2061, columns=1024, tokens=tokens)
    y = multiply(overlay, name, blocks, x, device_id="pynq-z1:stream", staging_bytes=1 << 19, cma_bytes=1 << 20)
    assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    assert simulated.peak_bytes <= 1 << 20 and not simulated.live


def test_the_next_piece_is_copied_while_the_engine_runs(board: Make, overlay: Path) -> None:
    """The fabric reads only 20 ms after it was started: a copy into what it is about to read would change results."""
    simulated = board(run_s=0.02)
    blocks, x, expected = case("Q8_0", rows=2048, columns=512, tokens=2)
    order: list[str] = []
    flush, write, run = simulated.flush, simulated._write, simulated._run
    control = definition().registers["CTRL"]

    def flushed(bo: int, offset: int, address: int, nbytes: int) -> None:
        order.append("copy" if nbytes > 20_000 else "other")
        flush(bo, offset, address, nbytes)

    def written(offset: int, value: int) -> None:
        order.extend(["start"] if offset == control else [])
        write(offset, value)

    def ran(offset: int, value: int) -> None:
        run(offset, value)
        order.append("done")

    simulated.flush, simulated._write, simulated._run = flushed, written, ran  # type: ignore[method-assign]
    y = multiply(overlay, "Q8_0", blocks, x, device_id="pynq-z1:stream", staging_bytes=1 << 19, cma_bytes=4 << 20)
    assert np.array_equal(y.view(np.uint32), expected.view(np.uint32))
    events = [event for event in order[order.index("copy") :] if event != "other"]
    n = events.count("copy")
    assert n == 6
    assert events == ["copy", *["start", "copy", "done"] * (n - 1), "start", "done"]


def test_a_generation_that_streams_has_the_tokens_of_csim(board: Make, overlay: Path, tmp_path: Path) -> None:
    """Some weights resident, some streamed, on one board that is loaded once; the contiguous memory holds not half."""
    path = tiny_llama(tmp_path / "tiny.gguf", quant="Q4_K")
    attention = [f"blk.*.{name}" for name in ("attn_q", "attn_k", "attn_v", "attn_output")]
    feed_forward = [f"blk.*.{name}" for name in ("ffn_gate", "ffn_up", "ffn_down")]

    def tokens_on(of: dict[str, str], settings: dict[str, dict[str, object]]) -> list[int]:
        pins = [f"{pattern}={device}" for pattern, device in of.items()]
        devices = ["cpu", *dict.fromkeys(of.values())]
        with hetrun.load(
            path, devices=devices, pins=pins, n_ctx=96, max_tokens_per_step=16, driver_settings=settings
        ) as model:
            generation = model.generate("the rest of it is on the", max_tokens=16)
            generation.finish()
            return list(generation.tokens)

    expected = tokens_on(dict.fromkeys([*attention, *feed_forward], "pynq-z1:csim"), {})
    simulated = board(cma_bytes=2 << 20)
    both = dict.fromkeys(attention, "pynq-z1:0") | dict.fromkeys(feed_forward, "pynq-z1:stream")
    settings = {"overlay": str(overlay), "staging_bytes": 256 << 10, "cma_bytes": 2 << 20}
    assert tokens_on(both, {"pynq-z1": settings}) == expected
    assert simulated.downloads == 1 and not simulated.live
