"""Weights packed at load: shared, from files whose pages go back, never from memory that would be lost."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from cpu_rig import ISAS, Rig, tokens, weight

from hetrun.device import Batch, Bindings
from hetrun.ops import Embedding, MatMul, Value
from hetrun.testing.blocks import random_blocks, values_of

X = Value("x", 512)
W = weight("w", "Q4_1", 4000, 512)
SPREAD = Batch.of(range(0, 4000, 250), range(16), [0] * 16, range(16))
PACKED_ISAS = [isa for isa in ISAS if isa in ("avx2", "avxvnni", "avx512", "avx512_bf16", "amx")]


def resident_bytes(path: Path) -> int:
    """Of the file's mappings in this process."""
    maps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(1024 * int(m[1]) for part in maps if (m := re.search(r"^Rss: +(\d+) kB", part, re.M)))


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Path, memoryview]:
    path = tmp_path / "weights"
    path.write_bytes(b"head" * 1000 + bytes(random_blocks(W)))
    with path.open("rb") as file:
        return path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[4000:]


@pytest.mark.parametrize("isa", PACKED_ISAS)
def test_pages_of_a_file_go_back_and_come_again(mapped: tuple[Path, memoryview], isa: str) -> None:
    path, blocks = mapped
    table = weight("w", "Q4_1", 4000, 512)
    x = np.ones((2, 512), np.float32)
    with (
        Rig([MatMul("y", X, W)], [X], None, {"w": blocks}, isa=isa, threads=2) as rig,
        Rig([MatMul("y", X, W)], [X], isa=isa) as copied,
    ):
        assert resident_bytes(path) < 0.1 * W.nbytes
        np.testing.assert_array_equal(rig.run(tokens(2), x=x), copied.run(tokens(2), x=x))
    embedding = Embedding("y", table)
    with Rig([embedding], isa=isa, weights={"w": blocks}) as rig:
        np.testing.assert_allclose(rig.run(tokens(5)), values_of(W, bytes(blocks))[:5], rtol=1e-6, atol=1e-7)
        rig.run(SPREAD)
        assert resident_bytes(path) < 0.1 * W.nbytes
    ops = [embedding, MatMul("z", embedding.output, table)]
    with Rig(ops, (), [embedding.output], {"w": blocks}, isa=isa) as rig:
        rig.run(SPREAD)
        assert resident_bytes(path) < 0.1 * W.nbytes


@pytest.mark.parametrize("isa", PACKED_ISAS)
def test_memory_that_is_no_file_keeps_what_it_holds(isa: str) -> None:
    memory = mmap.mmap(-1, W.nbytes)
    memory[:] = bytes(random_blocks(W))
    with Rig([MatMul("y", X, W)], [X], None, {"w": memoryview(memory).toreadonly()}, isa=isa):
        assert memory[:] == bytes(random_blocks(W))


def test_executables_given_the_same_blocks_share_their_packed_form() -> None:
    with Rig([MatMul("y", X, W)], [X]) as rig:
        again = rig.device.load(rig.program, rig.weights, Bindings(rig.buffers, rig.states))
        assert again._packed["w"] is rig.executable._packed["w"]


def test_other_blocks_under_the_same_name_are_packed_anew() -> None:
    x = np.ones((1, 512), np.float32)
    with Rig([MatMul("y", X, W)], [X]) as rig:
        before = rig.run(tokens(1), x=x)
        rig.executable.close()
        negated = bytearray(random_blocks(W))
        for start in range(0, len(negated), 20):
            negated[start + 1] ^= 0x80
            negated[start + 3] ^= 0x80
        rig.executable = rig.device.load(rig.program, {"w": memoryview(negated)}, Bindings(rig.buffers, rig.states))
        np.testing.assert_array_equal(rig.run(tokens(1), x=x), -before)
