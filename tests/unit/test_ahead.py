"""Encoding in a child process."""

from __future__ import annotations

import os
import signal

import pytest

from hetrun.errors import TokenizerError
from hetrun.run.ahead import EncodeAhead


def test_the_work_is_done_in_another_process():
    ahead = EncodeAhead(lambda: [os.getpid()])
    assert ahead.ids() != [os.getpid()]


@pytest.mark.parametrize(
    "ids", [[], [0], [1, -1, 2**31 - 1], list(range(100_000))], ids=["none", "zero", "wide", "long"]
)
def test_ids_come_back_as_they_are(ids):
    assert EncodeAhead(lambda: ids).ids() == ids


def test_an_error_is_raised_here(capfd):
    def fails():
        raise TokenizerError("no such merge", remedy="convert again")

    with pytest.raises(TokenizerError, match="no such merge"):
        EncodeAhead(fails).ids()
    assert capfd.readouterr().err == ""


def test_a_child_that_is_killed_costs_only_time():
    here = os.getpid()

    def encode():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return [7]

    assert EncodeAhead(encode).ids() == [7]


def test_without_fork_it_runs_here(monkeypatch):
    monkeypatch.delattr(os, "fork")
    assert EncodeAhead(lambda: [os.getpid()]).ids() == [os.getpid()]


def test_nothing_of_the_child_stays():
    before = os.listdir("/proc/self/fd")
    ahead = EncodeAhead(lambda: [1])
    ahead.close()
    ahead.close()
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
