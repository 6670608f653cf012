"""A recorded run in the Chrome trace format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format"; complete events ("ph": "X") in microseconds, metadata that names processes and threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hetrun.run.build import Runtime
from hetrun.run.timeline import DETAILED_STEPS, HOST, LINKS, Slice, slices
from hetrun.run.trace import StepRecord


def chrome_trace(steps: Sequence[StepRecord], runtime: Runtime, model: str) -> Iterator[str]:
    """The text of the file, in pieces: one event a line.

    A process for the host, each device and the links, with a thread for each link; where devices have clocks of their
    own, a second process for each with the times that those say.
    """
    yield '{"displayTimeUnit":"ms",\n"otherData":'
    yield json.dumps(
        {
            "program": "hetrun",
            "model": model,
            "steps": len(steps),
            "steps_in_detail": min(len(steps), DETAILED_STEPS),
            "devices": {f.info.id: f.info.description for f in runtime.found.values()},
        }
    )
    yield ',\n"traceEvents":[\n'
    lanes = _Lanes(runtime)
    first = True
    for s in slices(steps, runtime):
        for event in (*lanes.announce(s), lanes.event(s)):
            yield ("" if first else ",\n") + json.dumps(event)
            first = False
    yield "\n]}\n"


class _Lanes:
    """Numbers processes and threads, and names each before its first event."""

    def __init__(self, runtime: Runtime) -> None:
        self._order = [HOST, *runtime.devices, LINKS]
        self._n = len(self._order)
        self._named: set[int] = set()
        self._threads: dict[tuple[int, str], int] = {}

    def announce(self, s: Slice) -> Iterator[dict[str, Any]]:
        process = self._process(s)
        if process not in self._named:
            self._named.add(process)
            name = f"{s.lane}, host clock" if s.clock == "host" else f"{s.lane}, device time"
            yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
            yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
        key = (process, s.track)
        if key not in self._threads:
            self._threads[key] = sum(p == process for p, _ in self._threads) + 1
            thread = self._threads[key]
            yield {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": s.track}}

    def event(self, s: Slice) -> dict[str, Any]:
        process = self._process(s)
        # Whole nanoseconds of begin and end: a part then never ends after its whole, which viewers would not nest.
        begin_ns, end_ns = round(s.began_s * 1e9), round((s.began_s + s.seconds) * 1e9)
        return {
            "ph": "X",
            "name": s.name,
            "cat": s.category,
            "ts": begin_ns / 1000,
            "dur": (end_ns - begin_ns) / 1000,
            "pid": process,
            "tid": self._threads[process, s.track],
            "args": dict(s.args),
        }

    def _process(self, s: Slice) -> int:
        return 1 + self._order.index(s.lane) + (self._n if s.clock == "device" else 0)
