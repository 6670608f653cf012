"""Segments as instructions of the U280 engine: what is quantised, where values stand, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hetrun.api import graph_of
from hetrun.device import Cost, Segment, Unsupported
from hetrun.errors import DeviceError
from hetrun.model.options import GraphOptions
from hetrun.model.shape import load_shape
from hetrun.ops import Add, GatedActivation, MatMul, Op, RmsNorm, Rope, Scale, SoftCap, Value, Workload
from hetrun.plugins import Registry
from hetrun.testing.cases import Heads, attention_op, weight
from hetrun_alveo_u280 import definition as definitions
from hetrun_alveo_u280.definition import Definition, definition
from hetrun_alveo_u280.driver import AlveoU280Driver
from hetrun_alveo_u280.instruction import Instruction, Place
from hetrun_alveo_u280.lower import lower
from hetrun_alveo_u280.program import U280Program
from hetrun_alveo_u280.refusal import refusal


def compiled(*ops: Op, outputs: tuple[str, ...] = ()) -> U280Program:
    """outputs: names; the last op's where nothing is given."""
    made = {op.name: op.output for op in ops}
    inputs = {v.name: v for op in ops for v in op.inputs if v.name not in made}
    kept = tuple(made[name] for name in outputs or (ops[-1].name,))
    driver = AlveoU280Driver()
    info = next(i for i in driver.probe({}) if i.id == "alveo-u280:csim")
    program = driver.compile(info, Segment("s", ops, tuple(inputs.values()), kept, 8, 8))
    assert isinstance(program, U280Program)
    return program


def names(program: U280Program) -> list[str]:
    return [i.op for i in program.instructions]


def matmul(name: str, x: Value, n_out: int = 64) -> MatMul:
    return MatMul(name, x, weight(name, "Q4_0", n_out, x.width))


X = Value("x", 64)


def test_matmuls_of_the_same_value_share_its_codes() -> None:
    q, k = matmul("q", X), matmul("k", X)
    program = compiled(q, k, Scale("end", k.output, 2.0), outputs=("q", "end"))
    assert names(program) == ["LOAD", "QUANTIZE", "MATMUL", "MATMUL", "SCALE", "STORE", "END"]


@pytest.mark.parametrize("flag", ["FLAG_ADD", "FLAG_GATE"])
def test_what_alone_reads_the_matmul_before_it_is_made_of_its_results(flag: str) -> None:
    other, last = matmul("other", X), matmul("last", X)
    read = last.output, other.output
    reader = Add("y", *read) if flag == "FLAG_ADD" else GatedActivation("y", other.output, last.output, "silu")
    program = compiled(other, last, reader)
    assert names(program) == ["LOAD", "QUANTIZE", "MATMUL", "MATMUL", "STORE", "END"]
    first, joined = (i.numbers for i in program.instructions if i.op == "MATMUL")
    assert joined["flags"] == definition().numbers[flag] and joined["b"] == first["dst"] != joined["dst"]
    assert [i.sources for i in program.instructions if i.op == "MATMUL"] == [("other",), ("last", "y")]
    check_extents(program, definition().numbers["VECTOR_FLOATS"])
    # Not where something else reads it, nor where it is the gate.
    for ops, outputs in (
        ((other, last, reader), ("y", "last")),
        ((other, last, reader, Scale("more", last.output, 2.0)), ("y", "more")),
        ((other, last, matmul("between", other.output), reader), ("y", "between")),
    ):
        apart = compiled(*ops, outputs=outputs)
        assert names(apart).count(flag.removeprefix("FLAG_")) == 1
    swapped = GatedActivation("y", last.output, other.output, "silu")
    assert "GATE" in names(compiled(other, last, swapped))


def test_rotations_stand_before_the_last_matmul_of_their_value() -> None:
    """The lanes do it meanwhile. What reads that matmul stays behind it."""
    q, k, v = (matmul(name, X) for name in "qkv")
    rotations = [Rope(f"{m.name}_rope", m.output, 64, "half", (1.0, 0.1)) for m in (q, k)]
    end = [Add("a", rotations[0].output, rotations[1].output), Add("b", v.output, v.output)]
    program = compiled(q, k, v, *rotations, *end, outputs=("a", "b"))
    made = [i.sources for i in program.instructions if i.op in ("MATMUL", "ROPE")]
    assert made == [("q",), ("q_rope",), ("k",), ("k_rope",), ("v",)]
    of_last = compiled(q, k, Rope("r", k.output, 64, "half", (1.0, 0.1)), Scale("s", q.output, 2.0), outputs=("r", "s"))
    assert [i.op for i in of_last.instructions if i.op != "STORE"][2:6] == ["MATMUL", "MATMUL", "ROPE", "SCALE"]


def test_another_value_s_codes_take_their_place() -> None:
    q = matmul("q", X)
    o, again = matmul("o", q.output), matmul("again", X)
    program = compiled(q, o, again, outputs=("o", "again"))
    assert names(program) == ["LOAD", "QUANTIZE", "MATMUL", "QUANTIZE", "MATMUL", "QUANTIZE", "MATMUL", "END"]
    assert [i.sources for i in program.instructions if i.op == "QUANTIZE"] == [("q",), ("o",), ("again",)]


def test_what_only_leaves_the_segment_goes_straight_to_ddr() -> None:
    """Logits are wider than the vector memory."""
    program = compiled(matmul("output", X, 128_256))
    [logits] = [i for i in program.instructions if i.op == "MATMUL"]
    assert logits.ddr == (Place.VALUE, "output")
    assert logits.numbers["stride"] == logits.numbers["n_rows"] == 128_256


def test_what_leaves_and_is_read_is_on_the_chip_and_stored() -> None:
    q = matmul("q", X)
    program = compiled(q, Scale("scaled", q.output, 2.0), outputs=("q", "scaled"))
    assert names(program) == ["LOAD", "QUANTIZE", "MATMUL", "STORE", "SCALE", "STORE", "END"]


def test_what_nothing_reads_is_not_made_but_keys_and_values_are_kept() -> None:
    attention = attention_op(Heads(), "kv4")
    program = compiled(Scale("unread", X, 2.0), attention, Scale("kept", X, 3.0))
    assert names(program) == ["LOAD", "LOAD", "LOAD", "ATTEND", "LOAD", "SCALE", "STORE", "END"]


def test_sinks_without_queries_of_their_own_meet_the_others() -> None:
    own = attention_op(Heads(kv={"window": 5, "sink": 2, "slack": 40}), "kv4")
    apart = replace(own, q_sink=Value("q_sink", own.q.width))
    for op, same in ((own, True), (apart, False)):
        [attend] = [i for i in compiled(op).instructions if i.op == "ATTEND"]
        assert (attend.numbers["a"] == attend.numbers["d"]) == same


def test_keys_and_values_are_rotated_for_kv4h_alone() -> None:
    for kv_format, flags in (("kv4", 0), ("kv4h", definition().numbers["FLAG_HADAMARD"])):
        [attend] = [i for i in compiled(attention_op(Heads(), kv_format)).instructions if i.op == "ATTEND"]
        assert attend.numbers["flags"] == flags


def test_a_rotation_without_a_bound_has_none() -> None:
    free = Rope("r", X, 64, "half", (1.0, 0.1))
    for op, bound in ((free, 0xFFFFFFFF), (replace(free, max_position=7), 7)):
        [rope] = [i for i in compiled(op).instructions if i.op == "ROPE"]
        assert rope.numbers["max_position"] == bound


def extents(program: U280Program) -> Iterator[tuple[Instruction, list[tuple[int, int]], tuple[int, int] | None]]:
    """(instruction, floats that it reads, floats that it makes), in the vector memory."""
    for i in program.instructions:
        n = i.numbers
        width = int(n.get("n", 0))
        match i.op:
            case "STORE" | "QUANTIZE":
                yield i, [(int(n["a"]), width)], None
            case "LOAD":
                yield i, [], (int(n["dst"]), width)
            case "EMBED":
                yield i, [], (int(n["dst"]), int(n["n_columns"]))
            case "MATMUL":
                reads = [(int(n["b"]), int(n["n_rows"]))] if n.get("flags") else []
                yield i, reads, (int(n["dst"]), int(n["n_rows"])) if "dst" in n else None
            case "ATTEND":
                q, kv = int(n["n_heads"] * n["head_dim"]), int(n["n_heads_kv"] * n["head_dim"])
                reads = [(int(n["a"]), q), (int(n["d"]), q), (int(n["b"]), kv), (int(n["c"]), kv)]
                yield i, reads, (int(n["dst"]), q)
            case "ADD" | "GATE":
                yield i, [(int(n["a"]), width), (int(n["b"]), width)], (int(n["dst"]), width)
            case "END":
                pass
            case _:
                yield i, [(int(n["a"]), width)], (int(n["dst"]), width)


def check_extents(program: U280Program, n_floats: int) -> None:
    """Every operand is what one instruction made as a whole and nothing has overwritten since."""
    held: dict[int, int] = {}  # first float -> number of floats
    for instruction, reads, made in extents(program):
        for first, n in reads:
            assert held.get(first) == n, f"{instruction.sources}: {instruction.op} reads {n} floats at {first}: {held}"
        if made:
            first, n = made
            assert first % 64 == 0 and first >= 0 and first + n <= n_floats
            assert all(first >= a + length or first + n <= a for a, length in reads), "an operand is overwritten"
            held = {a: length for a, length in held.items() if a + length <= first or first + n <= a}
            held[first] = n


def model_segment(shape: str, **options: object) -> Segment:
    graph = graph_of(load_shape(shape), GraphOptions(n_ctx=2048, kv_format="kv4h", **options), Registry.load())
    return Segment("model", graph.ops, (), (graph.output,), 512, 64)


def test_a_whole_model_is_one_program_without_stores() -> None:
    segment = model_segment("smollm2-135m")
    instructions, spilled = lower(segment)
    counts = Counter(i.op for i in instructions)
    assert not spilled and counts["LOAD"] == counts["STORE"] == 0
    # q, k and v share the codes of a norm, as do gate and up.
    assert counts["QUANTIZE"] == 4 * 30 + 1 and counts["MATMUL"] == 7 * 30 + 1 and counts["ATTEND"] == 30
    check_extents(U280Program(segment, {}, instructions, spilled), definition().numbers["VECTOR_FLOATS"])


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Definition]:
    """The vector memory holds 6 values of 64 floats."""
    small = replace(definition(), numbers={**definition().numbers, "VECTOR_FLOATS": 384})
    for module in ("lower", "refusal"):
        monkeypatch.setattr(f"hetrun_alveo_u280.{module}.definition", lambda: small)
    yield small


def test_values_without_room_wait_in_ddr(small_memory: Definition) -> None:
    """Eight values that are all read at the end: those read last give way, each stored once and loaded again."""
    x = Value("x", 64)
    made = [Scale(f"s{i}", x, float(i)) for i in range(8)]
    sums: list[Add] = []
    for op in reversed(made):
        sums.append(Add(f"a{op.name}", sums[-1].output if sums else x, op.output))
    program = compiled(*made, *sums)
    check_extents(program, 384)
    # s5 to s7 and the first sum each take the place of what is read last.
    assert [v.name for v in program.spilled] == ["s0", "s1", "s2", "s3"]
    counts = Counter(i.op for i in program.instructions)
    assert counts["STORE"] == 4 + 1 and counts["LOAD"] == 4 + 1


def test_scattered_operands_make_room_together(small_memory: Definition) -> None:
    """A value of 192 floats is loaded behind another, so that beside it 192 are free in two pieces."""
    before = Scale("before", Value("x", 64), 2.0)
    wide = Scale("wide", Value("y", 192), 2.0)
    program = compiled(before, wide, Scale("after", before.output, 3.0), outputs=("wide", "after"))
    check_extents(program, 384)
    assert [i.ddr[1] for i in program.instructions if i.op == "LOAD" and i.ddr] == ["x", "y", "y", "before"]


def test_a_value_that_gives_way_twice_is_stored_once(small_memory: Definition) -> None:
    p = Scale("p", Value("x", 64), 2.0)
    first, second = (Scale(f"all{i}", Value(f"y{i}", 192), 2.0) for i in range(2))
    twice = Add("twice", p.output, p.output)
    program = compiled(p, first, twice, second, Add("end", p.output, twice.output), outputs=("all0", "all1", "end"))
    check_extents(program, 384)
    assert [v.name for v in program.spilled] == ["p", "twice"]
    stored = [i.ddr[1] for i in program.instructions if i.op == "STORE" and i.ddr]
    assert stored == ["p", "all0", "twice", "all1", "end"]


def test_a_program_that_overwrites_what_is_read_is_seen() -> None:
    """The check above does fail."""
    program = compiled(Scale("one", X, 2.0), Add("two", X, Value("one", 64)))
    broken = [replace(i, numbers={**i.numbers, "dst": 0}) if i.op == "SCALE" else i for i in program.instructions]
    with pytest.raises(AssertionError):
        check_extents(replace(program, instructions=tuple(broken)), 1 << 16)


MOST = 16_384


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (SoftCap("capped", X, 30.0), "the engine has no soft_cap"),
        (MatMul("m", X, weight("m", "F16", 8, 64)), "m.weight has type F16; the engine reads Q4_0, Q4_1,"),
        (MatMul("m", Value("x", MOST + 256), weight("m", "Q4_K", 8, MOST + 256)), "the engine holds activations of"),
        (MatMul("m", X, weight("m", "Q4_0", 1 << 40, 64)), "more than the card's HBM"),
        (RmsNorm("n", X, weight("n", "F16", 64), 1e-5), "the engine's norms and biases are F32"),
        (RmsNorm("n", Value("x", 16_400), weight("n", "F32", 16_400), 1e-5), "is 16400 long; the engine takes 16384"),
        (Scale("s", Value("x", 40_000), 2.0), "take 80000 floats a row; the engine's vector memory holds 65536"),
        (Rope("r", Value("x", 512), 512, "half", (1.0,)), "the engine rotates up to 256"),
        (Rope("r", X, 64, "half", ()), "a rope of no pairs"),
        (attention_op(Heads(), "f16"), "in 4 bits, not as f16: --kv-type kv4h"),
        (attention_op(Heads(head_dim=80), "q8_0"), "in 4 bits, not as q8_0: --kv-type kv4"),
        (attention_op(Heads(head_dim=80), "kv4h"), "KV format kv4h needs heads of a power of two"),
        (attention_op(Heads(soft_cap=5.0), "kv4"), "no cap on scores"),
        (attention_op(Heads(2, 2, 512), "kv4"), "an even size up to 256"),
        (attention_op(Heads(160, 2, 32), "kv4"), "160 heads; the engine takes up to 128"),
        (attention_op(Heads(160, 160, 32), "kv4"), "160 heads; the engine takes up to 128"),
        (attention_op(Heads(34, 2, 32), "kv4"), "17 queries of a KV head of 32; the engine takes 16 of up to 128"),
        (attention_op(Heads(18, 2, 256), "kv4"), "9 queries of a KV head of 256; the engine takes 16 of up to 128"),
        (attention_op(Heads(120, 20, 32), "kv4", n_ctx=8192), "6 queries each; the engine keeps 32768 scores"),
        (attention_op(Heads(), "kv4", n_ctx=8193), "keeps scores of 8192: --ctx 8192, or --attention sink=4,window="),
        (attention_op(Heads(64, 64, 128), "kv4", n_ctx=8192, n_slots=256), "is more than the card's HBM"),
    ],
)
def test_refusals_say_why(op: Op, reason: str) -> None:
    driver = AlveoU280Driver()
    info = driver.probe({})[0]
    answer = driver.estimate(info, op, Workload(1, 0))
    assert isinstance(answer, Unsupported) and reason in answer.reason, answer
    with pytest.raises(DeviceError, match=op.name):
        driver.compile(info, Segment("s", (op,), op.inputs, (op.output,), 1, 1))


@pytest.mark.parametrize("type_name", ["W2S24", "W2", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q8_0", "Q6_K"])
def test_types_of_ordinary_and_compressed_files_are_taken(type_name: str) -> None:
    assert refusal(MatMul("m", Value("x", 256), weight("m", type_name, 33, 256))) is None


def test_limits_are_taken() -> None:
    for op in (
        MatMul("m", Value("x", MOST), weight("m", "Q4_K", 8, MOST)),
        Scale("s", Value("x", 32_768), 2.0),
        attention_op(Heads(128, 128, 64), "kv4", n_ctx=8192, n_slots=1),
        attention_op(Heads(4, 4, 256), "kv4h"),
        attention_op(Heads(kv={"window": 2044, "sink": 4, "slack": 100}), "kv4", n_ctx=1 << 20),
    ):
        assert refusal(op) is None, op


def test_a_plan_counts_what_the_card_holds() -> None:
    """Bytes of a weight and a cache in all channels, with what aligns them to 4 KiB."""
    driver = AlveoU280Driver()
    info = next(i for i in driver.probe({}) if i.id == "alveo-u280:csim")
    op = MatMul("m", Value("x", 576), weight("m", "W2S24", 1536, 576))
    cost = driver.estimate(info, op, Workload(1, 0))
    assert isinstance(cost, Cost)
    # 384 blocks of 4 rows, 12 a channel, of 9 beats; 48 rows have 3 beats of scales. 111 beats are 128.
    assert cost.resident == {("alveo-u280:csim/hbm", "m.weight"): 128 * 64 * 32}
    attention = attention_op(Heads(9, 3, 64), "kv4h", n_ctx=2048, n_slots=2)
    cost = driver.estimate(info, attention, Workload(1, 0))
    assert isinstance(cost, Cost)
    # A head has 10 channels, 205 cells in each, 7 blocks of 68 beats: 952 for 2 slots, 960 aligned.
    assert cost.resident == {("alveo-u280:csim/hbm", "blk.0.attn_kv"): 960 * 64 * 32}


def test_the_header_s_records_are_read(tmp_path: Path) -> None:
    known = definition()
    assert {name: r.layout.size for name, r in known.records.items()} == {"Instruction": 128, "Row": 16, "Report": 64}
    assert known.records["Instruction"].fields[:6] == ("op", "rows", "flags", "format", "a", "b")
    data = Instruction("NORM", ("n",), {"a": 32, "f0": 1e-5, "n": 64}).encode(0, 3)
    fields = known.records["Instruction"].unpack(data)
    assert (fields["op"], fields["a"], fields["n"], fields["ddr"]) == (4, 32, 64, 3)
    assert fields["f0"] == pytest.approx(1e-5)
    with pytest.raises(KeyError, match="banana"):
        Instruction("NORM", ("n",), {"banana": 1}).encode(0, 0)
    assert definitions.parse("#define HETRUN_U280_STATUS_OK 0\n").statuses == {0: "OK"}
