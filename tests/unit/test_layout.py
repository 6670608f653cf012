"""Buffers that values share: never two that live at the same time, whoever reads late."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hetrun.device import Segment
from hetrun.ops import Add, Scale, Value
from hetrun.run.layout import Place, lives, share, waits


def segment(name: str, *inputs: str) -> Segment:
    """One op that reads up to two values and makes `name`."""
    values = tuple(Value(i, 8) for i in inputs)
    op = Scale(name, values[0], 2.0) if len(values) == 1 else Add(name, values[0], values[1])
    return Segment(name, (op,), values, (op.output,), 4, 4)


def made(name: str) -> Segment:
    """A segment without inputs from others."""
    return Segment(name, (Scale(name, Value("outside", 8), 1.0),), (), (Value(name, 8),), 4, 4)


def test_a_segment_waits_for_the_devices_that_made_what_it_reads_once() -> None:
    runs = [("a", made("x")), ("b", segment("y", "x")), ("b", segment("z", "x")), ("a", segment("w", "y", "z"))]
    assert waits(runs) == [(), ("a",), (), ("b",)]


def test_a_value_lives_until_somebody_waited_for_its_last_reader() -> None:
    runs = [("a", made("x")), ("b", segment("y", "x")), ("b", segment("z", "y")), ("a", segment("w", "z"))]
    found = lives(runs, lambda value, device: "host", "w")
    assert found["x", "host"] == (0, 2)  # b reads it in segment 1 and is waited for before segment 3
    assert found["w", "host"] == (3, 4)  # the graph's output outlives the step


def test_a_copied_value_lives_in_both_memories() -> None:
    runs = [("a", made("x")), ("b", segment("y", "x"))]
    found = lives(runs, lambda value, device: device, "y")
    assert found["x", "a"] == (0, 1)
    assert found["x", "b"] == (1, 2)


def test_values_in_a_row_take_turns_in_two_buffers() -> None:
    runs = [("a" if i % 2 else "b", segment(f"v{i}", f"v{i - 1}") if i else made("v0")) for i in range(9)]
    found = lives(runs, lambda value, device: "host", "v8")
    buffers = share([Place(key, 100, {"decode": life}) for key, life in found.items()])
    assert len({number for number, _ in buffers.values()}) == 2


PLACES = st.lists(
    st.tuples(
        st.sampled_from(["host", "card"]),
        st.integers(1, 100),
        st.dictionaries(
            st.sampled_from(["prefill", "decode"]), st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1
        ),
    ),
    max_size=12,
)


@given(PLACES)
def test_no_two_that_meet_share_and_all_fit(drawn: list[tuple[str, int, dict[str, tuple[int, int]]]]) -> None:
    places = [
        Place((f"v{i}", memory), nbytes, {phase: (min(life), max(life)) for phase, life in by_phase.items()})
        for i, (memory, nbytes, by_phase) in enumerate(drawn)
    ]
    buffers = share(places)
    for place in places:
        assert buffers[place.key][1] >= place.nbytes
    for a, b in itertools.combinations(places, 2):
        if buffers[a.key][0] != buffers[b.key][0]:
            continue
        assert a.key[1] == b.key[1]
        for phase in a.lives.keys() & b.lives.keys():
            assert a.lives[phase][1] < b.lives[phase][0] or b.lives[phase][1] < a.lives[phase][0]
