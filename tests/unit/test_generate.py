"""Stop strings."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrun.errors import UsageError
from hetrun.run.generate import StopFilter


@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_stops_at_the_first_stop_string_however_the_text_is_cut(text, stops, cuts):
    edges = sorted({0, len(text), *(c for c in cuts if c <= len(text))})
    stop = StopFilter(stops)
    shown = ""
    for start, end in itertools.pairwise(edges):
        shown += stop.feed(text[start:end])
        if stop.stopped:
            break
    # The oracle: a stop string counts at the piece that completes it, the leftmost one of that piece wins.
    expected, complete = text, False
    for end in edges[1:]:
        found = [i for s in stops if (i := text[:end].find(s)) >= 0]
        if found:
            expected, complete = text[: min(found)], True
            break
    assert stop.stopped == complete
    assert shown + ("" if complete else stop.flush()) == expected


def test_nothing_of_a_stop_string_is_shown_early():
    stop = StopFilter(["</s>"])
    assert [stop.feed(c) for c in "a<b</s"] == ["a", "", "<b", "", "", ""]
    assert stop.flush() == "</s"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="empty"):
        StopFilter([""])
