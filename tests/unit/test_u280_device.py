"""The U280 device over a card that remembers what it was told: addresses, arguments, tables, and what is given back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hetrun.device import Batch, Bindings, DeviceInfo, Segment
from hetrun.errors import AllocationError, DeviceError
from hetrun.ops import KvSpec, MatMul, Op, RmsNorm, Rope, Scale, Value
from hetrun.testing.blocks import random_blocks
from hetrun.testing.cases import Heads, attention_op, prompt, weight
from hetrun.testing.memory import read_all
from hetrun_alveo_u280.card import Report
from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.device import U280Device
from hetrun_alveo_u280.driver import AlveoU280Driver
from hetrun_alveo_u280.kv import kv_beats, prefix_pieces
from hetrun_alveo_u280.program import U280Program

BEAT = 64


class RecordingCard:
    """Memories, and launches that do nothing.   status: of the next launches."""

    subject = "alveo-u280:csim"

    def __init__(self, channel_beats: int = 4096, ddr_bytes: int = 1 << 20) -> None:
        self.channel_beats, self.ddr_bytes = channel_beats, ddr_bytes
        self.hbm = np.full((32, channel_beats * BEAT), 0xEE, np.uint8)
        self.ddr = np.full(ddr_bytes, 0xEE, np.uint8)
        self.launches: list[dict[str, int]] = []
        self.copies: list[tuple[int, int, int]] = []
        self.packed: list[int] = []
        self.status = 0
        self.closed = False

    def hbm_write(self, channel: int, beat: int, data: memoryview) -> None:
        assert data.nbytes % BEAT == 0
        if channel == 0:
            self.packed.append(beat)
        self.hbm[channel, beat * BEAT : beat * BEAT + data.nbytes] = np.frombuffer(data, np.uint8)

    def hbm_zero(self, beat: int, n_beats: int) -> None:
        self.hbm[:, beat * BEAT : (beat + n_beats) * BEAT] = 0

    def hbm_copy(self, src: int, dst: int, n_beats: int) -> None:
        self.copies.append((src, dst, n_beats))

    def ddr_write(self, offset: int, data: memoryview) -> None:
        assert offset >= 0 and offset + data.nbytes <= self.ddr_bytes
        self.ddr[offset : offset + data.nbytes] = np.frombuffer(data, np.uint8)

    def ddr_read(self, offset: int, out: memoryview) -> None:
        out[:] = memoryview(self.ddr[offset : offset + out.nbytes].tobytes())

    def run(self, scalars: Mapping[str, int]) -> Report:
        self.launches.append(dict(scalars))
        return Report(1, self.status, 7, 1, 0, 0, 0, 0).check(self.subject)

    def close(self) -> None:
        self.closed = True

    def program(self, n: int) -> list[dict[str, int]]:
        """The instructions of the last launch."""
        at = self.launches[-1]["PROGRAM"] * BEAT
        record = definition().records["Instruction"]
        return [record.unpack(self.ddr[at + 128 * i : at + 128 * (i + 1)].tobytes()) for i in range(n)]


def csim_info() -> DeviceInfo:
    return next(i for i in AlveoU280Driver().probe({}) if i.id == "alveo-u280:csim")


class Bench:
    """Ops, loaded on a device over a recording card."""

    def __init__(self, *ops: Op, card: RecordingCard | None = None, max_tokens: int = 8) -> None:
        made = {op.name for op in ops}
        inputs = {v.name: v for op in ops for v in op.inputs if v.name not in made}
        self.segment = Segment("s", ops, tuple(inputs.values()), (ops[-1].output,), max_tokens, max_tokens)
        self.card = card or RecordingCard()
        self.device = U280Device(csim_info(), self.card)
        program = AlveoU280Driver().compile(csim_info(), self.segment)
        assert isinstance(program, U280Program)
        self.program = program
        self.buffers = {
            v.name: self.device.alloc(self.segment.value_bytes(v))
            for v in (*self.segment.inputs, *self.segment.outputs)
        }
        kvs = [kv for op in ops if isinstance(kv := getattr(op, "kv", None), KvSpec)]
        self.states = {kv.name: self.device.state(kv) for kv in kvs}
        self.weights = {w.name: random_blocks(w) for op in ops for w in op.weights}
        self.bindings = Bindings(self.buffers, self.states)
        self.executable = self.device.load(program, self.weights, self.bindings)

    def launched(self) -> list[dict[str, int]]:
        """The program of the last launch."""
        return self.card.program(len(self.program.instructions))


X = Value("x", 64)


def matmul(name: str = "m", n_out: int = 40) -> MatMul:
    return MatMul(name, X, weight(name, "Q4_0", n_out, 64))


def test_instructions_name_where_values_weights_and_constants_stand() -> None:
    bench = Bench(
        RmsNorm("n", X, weight("n", "F32", 64), 1e-5), MatMul("m", Value("n", 64), weight("m", "Q8_0", 9, 64))
    )
    bench.executable.run(prompt(1))
    load, normed, _, product, _ = bench.launched()
    assert load["ddr"] == bench.buffers["x"].begin != 0
    vector = bench.card.ddr[normed["ddr"] * BEAT :][: 64 * 4]
    assert vector.tobytes() == bytes(bench.weights["n.weight"])
    assert (product["hbm"], product["ddr"], product["stride"]) == (0, bench.buffers["m"].begin, 9)
    assert bench.card.packed == [0]


def test_one_row_is_told_by_arguments_alone() -> None:
    bench = Bench(matmul())
    before = bench.card.ddr.copy()
    bench.executable.run(Batch.of([11], [5], [0], [0]))
    told = bench.card.launches[-1]
    wanted = {"VERSION": 1, "N_TOKENS": 1, "TOKEN": 11, "POSITION": 5, "SLOT": 0, "OUTPUT": 0}
    assert wanted.items() <= told.items()
    assert np.array_equal(before, bench.card.ddr)
    bench.executable.run(Batch.of([11], [5], [0], []))
    assert bench.card.launches[-1]["OUTPUT"] == -1


def test_several_rows_stand_in_a_table() -> None:
    bench = Bench(matmul())
    bench.executable.run(Batch.of([1, 2, 3], [7, 8, 0], [0, 0, 3], [0, 2]))
    told = bench.card.launches[-1]
    rows = np.frombuffer(bench.card.ddr[told["ROWS"] * BEAT :][:48].tobytes(), np.int32).reshape(3, 4)
    assert told["N_TOKENS"] == 3
    assert rows.tolist() == [[1, 7, 0, 0], [2, 8, 0, -1], [3, 0, 3, 1]]


def test_pieces_of_ddr_are_apart() -> None:
    """Program, rows, report, values: no two share a beat, and none is beat 0."""
    bench = Bench(matmul(), max_tokens=5)
    bench.executable.run(prompt(2))
    told = bench.card.launches[-1]
    lengths = {
        told["PROGRAM"]: 2 * len(bench.program.instructions),
        told["ROWS"]: 2,
        told["REPORT"]: 1,
        bench.buffers["x"].begin: 5 * 4,
        bench.buffers["m"].begin: -(-5 * 40 * 4 // BEAT),
    }
    ordered = sorted(lengths.items())
    assert len(lengths) == 5 and ordered[0][0] >= 1
    assert all(begin + n <= following for (begin, n), (following, _) in pairwise(ordered))


def test_an_empty_batch_is_not_launched() -> None:
    bench = Bench(matmul())
    bench.executable.run(Batch.of([], [], [], []))
    assert not bench.card.launches and not bench.device.synchronize()


def rope() -> Rope:
    return Rope("r", X, 64, "half", tuple(10000.0 ** (-i / 32) for i in range(32)), 1.25)


def table_of(bench: Bench, n_positions: int) -> np.ndarray:
    [at] = [i["ddr"] for i in bench.launched() if i["n_pairs"]]
    rows = bench.card.ddr[at * BEAT :][: n_positions * 32 * 8]
    return np.frombuffer(rows.tobytes(), np.float32).reshape(n_positions, 32, 2)


def test_rotations_are_exact_for_every_position() -> None:
    bench = Bench(rope())
    bench.executable.run(prompt(1))
    angles = np.outer(np.arange(1024), rope().frequencies)
    expected = 1.25 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert np.array_equal(table_of(bench, 1024), expected.astype(np.float32))


def test_a_table_grows_with_positions_and_moves_in_the_program() -> None:
    bench = Bench(rope(), card=RecordingCard(ddr_bytes=4 << 20))
    for position, grown in ((1023, 1024), (1024, 2048), (5000, 5001), (3, 5001)):
        bench.executable.run(Batch.of([0], [position], [0], [0]))
        angle = (grown - 1) * rope().frequencies[3]
        row = table_of(bench, grown)[-1, 3]
        assert row.tolist() == pytest.approx([1.25 * np.cos(angle), 1.25 * np.sin(angle)], abs=1e-6)


def test_a_table_that_grows_reaches_every_program_that_reads_it() -> None:
    bench = Bench(rope(), card=RecordingCard(ddr_bytes=4 << 20))
    other = bench.device.load(bench.program, bench.weights, bench.bindings)
    bench.executable.run(Batch.of([0], [2000], [0], [0]))
    moved = bench.launched()
    other.run(Batch.of([0], [3], [0], [0]))
    assert bench.launched() == moved


def test_positions_beyond_the_ddr_are_an_error_and_the_device_goes_on() -> None:
    bench = Bench(rope())
    with pytest.raises(AllocationError, match="a table of 100001 rotations takes 25600256 bytes of DDR"):
        bench.executable.run(Batch.of([0], [100_000], [0], [0]))
    bench.executable.run(prompt(1))


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (Batch.of([0], [64], [0], [0]), "position 64 is not within 0 to 63"),
        (Batch.of([0], [-1], [0], [0]), "position -1"),
        (Batch.of([0], [3], [4], [0]), "slot 4 is not within 0 to 3"),
        (Batch.of([0] * 9, list(range(9)), [0] * 9, []), "9 tokens and 0 outputs; it was compiled for 8 and 8"),
    ],
)
def test_a_batch_that_the_segment_does_not_hold_is_not_launched(batch: Batch, reason: str) -> None:
    bench = Bench(attention_op(Heads(), "kv4"))
    with pytest.raises(DeviceError, match=reason):
        bench.executable.run(batch)
    assert not bench.card.launches


def test_a_closed_state_or_buffer_is_not_read() -> None:
    bench = Bench(attention_op(Heads(), "kv4"))
    bench.states["blk.0.attn_kv"].close()
    with pytest.raises(DeviceError, match=r"blk\.0\.attn_kv is closed"):
        bench.executable.run(prompt(1))
    bench = Bench(matmul())
    bench.buffers["x"].close()
    with pytest.raises(DeviceError, match="is closed"):
        bench.executable.run(prompt(1))


@pytest.mark.parametrize(("status", "reason"), [(4, "refused instruction 7: BAD_SHAPE"), (99, "7: status 99")])
def test_what_the_engine_refuses_is_an_error(status: int, reason: str) -> None:
    bench = Bench(matmul())
    bench.card.status = status
    with pytest.raises(DeviceError, match=reason):
        bench.executable.run(prompt(1))


def test_an_engine_of_another_version_is_named() -> None:
    bench = Bench(matmul())
    bench.card.status = definition().numbers["STATUS_BAD_VERSION"]
    with pytest.raises(DeviceError, match="is of version 1, this hetrun drives version 1") as caught:
        bench.executable.run(prompt(1))
    assert "hetrun build alveo-u280" in str(caught.value)


def test_weights_are_packed_once_and_given_back_with_the_last_that_reads_them() -> None:
    bench = Bench(matmul())
    second = bench.device.load(bench.program, bench.weights, bench.bindings)
    assert len(bench.card.packed) == 1
    free = bench.device.memories._hbm.n_free
    bench.executable.close()
    assert bench.device.memories._hbm.n_free == free
    second.close()
    assert bench.device.memories._hbm.n_free == free + 64 == bench.card.channel_beats


def test_what_is_closed_gives_its_ddr_back() -> None:
    bench = Bench(rope(), Scale("s", Value("r", 64), 2.0))
    bench.executable.close()
    for buffer in bench.buffers.values():
        buffer.close()
    assert bench.device.memories._ddr.n_free == bench.card.ddr_bytes // BEAT - 1 - 1  # beat 0, and the report


def test_a_full_hbm_names_what_it_was_to_hold() -> None:
    card = RecordingCard(channel_beats=64)
    with pytest.raises(AllocationError, match=r"m\.weight takes 262144 bytes of HBM, 131072 of 131072 are free"):
        Bench(matmul(n_out=4000), card=card)


def test_a_full_ddr_names_the_bytes() -> None:
    device = U280Device(csim_info(), RecordingCard(ddr_bytes=4096))
    with pytest.raises(AllocationError, match="a value takes 5000 bytes of DDR, 3968 of 4096 are free"):
        device.alloc(5000)


def test_a_cache_begins_as_zeros() -> None:
    card = RecordingCard()
    device = U280Device(csim_info(), card)
    state = device.state(attention_op(Heads(), "kv4").kv)
    n_beats = kv_beats(state.kv)
    assert not card.hbm[:, state.begin * BEAT : (state.begin + n_beats) * BEAT].any()
    assert (card.hbm[:, (state.begin + n_beats) * BEAT :] == 0xEE).all()


@pytest.mark.parametrize("kv_format", ["f16", "kv99"])
def test_a_cache_that_the_engine_does_not_keep_is_an_error(kv_format: str) -> None:
    device = U280Device(csim_info(), RecordingCard())
    with pytest.raises(DeviceError, match=f"in 4 bits, not as {kv_format}"):
        device.state(attention_op(Heads(), kv_format).kv)


def beats_of(kv: KvSpec, slot: int, positions: Sequence[int]) -> set[int]:
    """Beats of a channel that hold those positions' keys and values of any head, by the layout of hls/engine.h."""
    m = max(1, 32 // kv.n_heads_kv)
    of_head = -(-kv.head_dim // 128)
    block_beats = 4 + 64 * of_head
    n_groups = -(-kv.n_heads_kv * m // 32)
    n_blocks = math.ceil(math.ceil(kv.n_cells / m) / 32)
    found: set[int] = set()
    for position in positions:
        j = kv.cell(position)
        for head in range(kv.n_heads_kv):
            group, place = (head * m + j % m) // 32, j // m
            first = ((slot * n_groups + group) * n_blocks + place // 32) * block_beats
            found.update(range(first, first + 4))
            for part in (4, 4 + 32 * of_head):
                at = first + part + place % 32 * of_head
                found.update(range(at, at + of_head))
    return found


@pytest.mark.parametrize(
    ("heads", "n_ctx"),
    [
        (Heads(9, 3, 64), 2048),
        (Heads(4, 4, 256), 700),
        (Heads(32, 32, 128), 100),
        (Heads(40, 40, 128), 100),
        (Heads(8, 1, 64), 4096),
        (Heads(kv={"sink": 2, "window": 90, "slack": 8}), 4096),
    ],
)
def test_a_prefix_s_pieces_hold_it(heads: Heads, n_ctx: int) -> None:
    kv = attention_op(heads, "kv4", n_ctx=n_ctx, n_slots=3).kv
    slot_beats = kv_beats(kv) // 3
    assert max(beats_of(kv, 2, range(n_ctx))) < kv_beats(kv)
    for n_tokens in (0, 1, 31, 33, 77, n_ctx // 2, n_ctx):
        held = {first + i for first, n in prefix_pieces(kv, n_tokens) for i in range(n)}
        visible = [p for p in range(n_tokens) if p < kv.sink or p > n_tokens - kv.window or not kv.window]
        assert beats_of(kv, 0, visible) <= held
        assert not held or max(held) < slot_beats
    few = sum(n for _, n in prefix_pieces(kv, 1))
    assert few <= slot_beats and (few < slot_beats) == (n_ctx > 32 * max(1, 32 // kv.n_heads_kv) and not kv.window)


def test_a_copy_goes_from_slot_to_slot() -> None:
    card = RecordingCard()
    device = U280Device(csim_info(), card)
    state = device.state(attention_op(Heads(9, 3, 64), "kv4h", n_ctx=640, n_slots=3).kv)
    slot_beats = kv_beats(state.kv) // 3
    assert slot_beats == 2 * 68
    state.copy(1, 2, 320)
    state.copy(0, 1, 321)
    state.copy(0, 0, 100)
    state.copy(0, 1, 0)
    assert card.copies == [(slot_beats, 2 * slot_beats, 68), (0, slot_beats, 2 * 68)]
    for bad in ((0, 3, 1), (-1, 0, 1), (0, 1, 641)):
        with pytest.raises(DeviceError):
            state.copy(*bad)


def test_a_program_of_another_driver_is_refused() -> None:
    bench = Bench(matmul())
    with pytest.raises(DeviceError, match="is no program of this engine"):
        bench.device.load(replace(bench.segment), bench.weights, bench.bindings)  # type: ignore[arg-type]


def test_closing_the_device_closes_the_card_and_all_parts() -> None:
    bench = Bench(matmul())
    bench.device.close()
    assert bench.card.closed
    with pytest.raises(DeviceError, match="is closed"):
        bench.executable.run(prompt(1))
    with pytest.raises(DeviceError, match="is closed"):
        read_all(bench.buffers["x"])


def test_steps_of_more_tokens_than_passes_hold_are_refused() -> None:
    bench = Bench(matmul())
    segment = replace(bench.segment, max_tokens=8 * 4096 + 1)
    program = replace(bench.program, segment=segment)
    with pytest.raises(DeviceError, match="steps of 32769 tokens; the engine takes 32768"):
        bench.device.load(program, bench.weights, bench.bindings)
