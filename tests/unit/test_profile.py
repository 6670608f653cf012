"""Profiles of recorded runs: sums against independent pricing, clocks, and honest attribution."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import remote
from cpu_rig import ISAS
from sessions import Simulated, cpu, open_session, silent, simulated

from hetrun.cli.output_file import OutputFile
from hetrun.errors import UsageError
from hetrun.plan.cost import CostTable
from hetrun.plugins import FoundDevice
from hetrun.run.chrome_trace import chrome_trace
from hetrun.run.profile import make_profile
from hetrun.run.profile_record import profile_record
from hetrun.view.profile_page import profile_page

needs_cpu = pytest.mark.skipif(not ISAS, reason="the native library is missing; get it with: make dev")


def recorded(devices, pins=(), prompt=(5, 6, 7), n_decode=2):
    """(profile, trace, runtime, the record as JSON gives it back)"""
    with open_session(devices, pins) as session:
        session.record()
        if prompt:
            session.feed(prompt)
        for token in range(n_decode):
            session.feed([token])
        profile = make_profile(session.trace, session.runtime)
        return profile, session.trace, session.runtime, json.loads(json.dumps(profile_record(profile)))


class Joins(Simulated):
    """Ops of one run take half of what they take alone."""

    def fuse(self, info, segment, workload):
        costs = {op.name: self.estimate(info, op, workload) for op in segment.ops}
        return {name: replace(c, seconds=c.seconds / 2) for name, c in costs.items()} if len(costs) > 1 else {}


def joins():
    driver = Joins()
    return FoundDevice(driver, driver.probe({})[0], "simulated")


MIXES = {
    "one device": ([remote.reference], []),
    "behind a link": ([remote.reference, remote.behind], ["blk.0.*=behind", "*ffn_act=behind"]),
    "logits behind a link": ([remote.reference, remote.behind], ["output=behind"]),
    "on shared memory": ([remote.reference, remote.beside], ["*attn_[qkv]=beside"]),
    "untimed": ([remote.reference, silent], ["blk.0.*=silent"]),
    "simulated": ([remote.reference, simulated], ["*=reference", "blk.0.*=simulated"]),
    "fused": ([remote.reference, joins], ["*=reference", "blk.0.*=simulated"]),
}


@pytest.mark.parametrize("name", MIXES)
def test_predicted_is_what_the_planner_prices_at_the_steps_own_size(name: str) -> None:
    made, pins = MIXES[name]
    devices = [make() for make in made]
    profile, trace, runtime, _ = recorded(devices, pins)
    for phase in profile.phases:
        placement = [a.device for a in runtime.plan.assignments(phase.phase)]
        steps = [s for s in trace.steps if s.phase == phase.phase]
        want = sum(CostTable.ask(runtime.graph, s.workload, devices).price(placement).total_s for s in steps)
        assert phase.predicted_s == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("name", [*MIXES, pytest.param("cpu", marks=needs_cpu)])
def test_every_view_sums_to_the_same(name: str) -> None:
    made, pins = MIXES.get(name, ([cpu], []))
    profile, trace, _, record = recorded([make() for make in made], pins)
    assert [p.phase for p in profile.phases] == ["prefill", "decode"]
    for phase in profile.phases:
        steps = [s for s in trace.steps if s.phase == phase.phase]
        for device in phase.devices:
            runs = [r for s in steps for r in s.runs if r.device == device.device]
            timed = sum(sum(r.event.steps.seconds) if r.event and r.event.steps else r.seconds for r in runs)
            for entries in (phase.kinds, phase.layers, phase.parts, phase.cells):
                mine = [e for e in entries if e.device == device.device]
                assert sum(e.measured_s for e in mine) == pytest.approx(timed, rel=1e-9)
                assert sum(e.predicted_s for e in mine) == pytest.approx(device.parts.predicted_s, rel=1e-9)
                assert sum(e.flops for e in mine) == device.parts.flops
            assert device.n_runs == len(runs)
            assert device.busy_s + device.idle_s >= phase.time_s * (1 - 1e-9)
        assert sum(c.n for c in phase.copies) == sum(len(s.copies) for s in steps)
        shown = record[phase.phase]
        assert shown["tps"] == pytest.approx(phase.n_tokens / shown["measured_s"])
        assert shown["error"] == pytest.approx(shown["predicted_s"] / shown["measured_s"] - 1)
        for entry in shown["kinds"]:
            if entry["bytes_of_roof"]:
                [roof] = [d["bytes_per_s"] for d in record["devices"] if d["device"] == entry["device"]]
                assert entry["bytes_of_roof"] == pytest.approx(entry["bytes"] / entry["measured_s"] / roof)


@needs_cpu
def test_fused_ops_are_one_part_and_their_kinds_are_marked_as_divided() -> None:
    profile, _, _, _ = recorded([cpu()])
    decode = profile.phases[1]
    [cell] = [c for c in decode.cells if c.layer == 1 and "blk.1.ffn_gate" in c.ops]
    assert cell.ops == ("blk.1.ffn_gate", "blk.1.ffn_up", "blk.1.ffn_act")
    assert cell.name == "ffn_gate + ffn_up + ffn_act" and not cell.whole
    kinds = {e.name: e for e in decode.kinds}
    assert kinds["gated_activation"].divided and kinds["matmul"].divided
    assert not kinds["embedding"].divided


def test_a_device_without_timings_is_shown_by_whole_segments() -> None:
    profile, _, _, record = recorded([remote.reference(), silent()], ["blk.0.*=silent"])
    for phase in profile.phases:
        [cell] = [c for c in phase.cells if c.device == "silent:0"]
        assert cell.whole and len(cell.ops) == 15 and cell.measured_s > 0
        # The time is not divided by what was predicted: that would only give the prediction back.
        assert [e.name for e in phase.kinds if e.device == "silent:0"] == [cell.name]
    assert "measured:host" in str([d for d in record["decode"]["devices"] if d["device"] == "silent:0"])


def test_simulated_time_is_kept_apart_from_the_hosts() -> None:
    profile, trace, _, record = recorded([remote.reference(), simulated()], ["*=reference", "blk.0.*=simulated"])
    decode = profile.phases[1]
    steps = [s for s in trace.steps if s.phase == "decode"]
    own = sum(r.seconds for s in steps for r in s.runs)
    assert decode.device_time_s == pytest.approx(own) and decode.wall_s == sum(s.wall_s for s in steps)
    [device] = [d for d in decode.devices if d.device == "simulated:0"]
    assert device.busy_s == pytest.approx(len(steps) * 1e-3) and device.basis == ("simulated:test",)
    assert record["decode"]["measured_s"] == pytest.approx(own)
    assert record["decode"]["clock"] == "mixed"
    assert recorded([simulated()], ["*=simulated"])[3]["decode"]["clock"] == "simulated"
    assert recorded([remote.reference()])[3]["decode"]["clock"] == "measured"


def test_a_phase_that_did_not_run_is_null() -> None:
    assert recorded([remote.reference()], n_decode=0)[3]["decode"] is None
    profile, _, _, record = recorded([remote.reference()], prompt=(), n_decode=0)
    assert profile.phases == () and record["prefill"] is None


def _ns(us: float) -> int:
    return round(1000 * us)


def events_of(trace, runtime):
    return json.loads("".join(chrome_trace(trace.steps, runtime, "m")))["traceEvents"]


@pytest.mark.parametrize("name", [*MIXES, pytest.param("cpu", marks=needs_cpu)])
def test_a_trace_file_nests_and_adds_up(name: str) -> None:
    made, pins = MIXES.get(name, ([cpu], []))
    _, trace, runtime, _ = recorded([make() for make in made], pins)
    events = events_of(trace, runtime)
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    assert len(set(processes.values())) == len(processes)
    by_lane = defaultdict(list)
    for e in slices:
        assert e["dur"] >= 0 and e["ts"] >= 0
        by_lane[e["pid"], e["tid"]].append(e)
    assert set(by_lane) == set(threads)
    for lane in by_lane.values():
        open_ends: list[int] = []
        spans = ((_ns(e["ts"]), _ns(e["ts"] + e["dur"])) for e in lane)
        for begin_ns, end_ns in sorted(spans, key=lambda s: (s[0], -s[1])):
            while open_ends and open_ends[-1] <= begin_ns:
                open_ends.pop()
            assert not open_ends or end_ns <= open_ends[-1], "a slice ends after what holds it"
            open_ends.append(end_ns)
    host = [e for e in slices if "host clock" in processes[e["pid"]]]
    assert [e["dur"] for e in host if e["cat"] == "step"] == pytest.approx(
        [1e6 * s.wall_s for s in trace.steps], abs=0.01
    )
    assert sum(e["cat"] == "run" for e in host) == sum(len(s.runs) for s in trace.steps)
    copies = [e for e in host if e["cat"] == "copy"]
    assert len(copies) == sum(len(s.copies) for s in trace.steps)
    assert {threads[e["pid"], e["tid"]] for e in copies} == {
        f"{c.source} to {c.target}" for s in trace.steps for c in s.copies
    }
    for e in slices:
        if e["cat"] == "op":
            assert {"ops", "layer", "bytes", "flops", "predicted_us"} <= set(e["args"])


def test_a_simulated_device_has_both_clocks_in_a_trace_file() -> None:
    _, trace, runtime, _ = recorded([remote.reference(), simulated()], ["*=reference", "blk.0.*=simulated"])
    events = events_of(trace, runtime)
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {"simulated:0, host clock", "simulated:0, device time", "reference:0, device time"} <= set(
        processes.values()
    )
    runs = [e for e in events if e["ph"] == "X" and processes[e["pid"]] == "simulated:0, device time"]
    assert [e["dur"] for e in runs if e["cat"] == "run"] == [1000.0] * len(trace.steps)
    assert all(e["args"]["basis"] == "simulated:test" for e in runs if e["cat"] == "run")
    # On the devices' clocks nothing waits: each run begins where the one before it ended.
    line = sorted(
        (e for e in events if e["ph"] == "X" and "device time" in processes[e["pid"]] and e["cat"] in ("run", "copy")),
        key=lambda e: e["ts"],
    )
    for before, after in pairwise(line):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"], abs=0.002)


def test_a_trace_of_nothing_is_valid() -> None:
    _, trace, runtime, _ = recorded([remote.reference()], prompt=(), n_decode=0)
    assert events_of(trace, runtime) == []


def test_a_name_cannot_end_the_pages_script() -> None:
    _, trace, runtime, record = recorded([remote.reference()])
    plain, hostile = (
        profile_page({**record, "model": name}, trace.steps, runtime).lower()
        for name in ("m", "</script><script>alert(1)</script><!--")
    )
    for mark in ("<script", "</script", "<!--"):
        assert plain.count(mark) == hostile.count(mark)


def test_a_page_shows_copies_and_both_clocks() -> None:
    devices = [remote.reference(), remote.behind(), simulated()]
    pins = ["*=reference", "blk.0.*=behind", "blk.1.attn=simulated"]
    _, trace, runtime, record = recorded(devices, pins)
    page = profile_page(record, trace.steps, runtime)
    [data] = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    shown = json.loads(data)
    assert shown["profile"] == record and record["decode"]["copies"]
    lanes = {(lane["clock"], lane["lane"], lane["track"]) for lane in shown["timeline"]["lanes"]}
    assert {("host", "links", "reference:0 to behind:0"), ("device", "links", "reference:0 to behind:0")} <= lanes
    assert {("host", "simulated:0", "runs"), ("device", "simulated:0", "runs")} <= lanes


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "t.json"
    target.write_text("older")

    def pieces() -> Iterator[str]:
        yield "newer"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), OutputFile(str(target), "--trace") as file:
        file.write(pieces())
    assert target.read_text() == "older" and list(tmp_path.iterdir()) == [target]
    with OutputFile(str(target), "--trace") as file:
        file.write(["new", "er"])
    assert target.read_text() == "newer" and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_error() -> None:
    with (
        pytest.raises(UsageError, match="/dev/full: cannot be written: No space left"),
        OutputFile("/dev/full", "-t") as f,
    ):
        f.write(["x"])
