"""A recorded run as slices of time on lanes: what the trace file and the profile's page draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hetrun.run.build import Runtime
from hetrun.run.predict import Group, Prediction
from hetrun.run.trace import CopyRecord, RunRecord, StepRecord

HOST = "host"
LINKS = "links"

DETAILED_STEPS = 512
"""Steps whose runs are divided into ops; a step of 22 layers has 150 parts, and viewers are slow at millions."""

Clock = Literal["host", "device"]


@dataclass(frozen=True)
class Slice:
    """clock: "host" is measured by the host; "device" is a time line on which runs follow each other as the devices'
    own clocks say (simulated, where a device is emulated), and copies as their links predict.
    lane: "host", a device's id, or "links".   track: within the lane.   began_s: since the first step began.
    category: "step", "between", "run", "op" or "copy".
    """

    clock: Clock
    lane: str
    track: str
    category: str
    name: str
    began_s: float
    seconds: float
    args: Mapping[str, Any] = field(default_factory=dict)


def slices(steps: Sequence[StepRecord], runtime: Runtime, detailed: int = DETAILED_STEPS) -> Iterator[Slice]:
    """Slices on the host's clock; then, where a device's clock is not the host's, the same on the devices' clocks.

    detailed: number of steps, from the first on, whose runs are divided into ops.
    """
    if not steps:
        return
    prediction = Prediction(runtime)
    yield from _on_host(steps, prediction, detailed)
    if any(not _measured(run) for step in steps for run in step.runs):
        yield from _on_devices(steps, prediction, detailed)


def _measured(run: RunRecord) -> bool:
    return run.event is None or run.event.basis.startswith("measured")


def _on_host(steps: Sequence[StepRecord], prediction: Prediction, detailed: int) -> Iterator[Slice]:
    origin = steps[0].began_s
    before: StepRecord | None = None
    for i, step in enumerate(steps):
        if before is not None:
            gap_s = step.began_s - before.ended_s
            yield Slice("host", HOST, "steps", "between", "between steps", before.ended_s - origin, gap_s)
        before = step
        yield Slice("host", HOST, "steps", "step", _title(step), step.began_s - origin, step.wall_s, _step_args(step))
        for copy in step.copies:
            began_s = copy.began_s - origin
            yield _copy_slice("host", copy, began_s, copy.seconds, prediction)
        for run in step.runs:
            began_s, seconds = run.began_s - origin, run.ended_s - run.began_s
            yield _run_slice("host", run, began_s, seconds, step, prediction)
            if i < detailed and _measured(run):
                yield from _op_slices("host", run, began_s, step, prediction)


def _on_devices(steps: Sequence[StepRecord], prediction: Prediction, detailed: int) -> Iterator[Slice]:
    now_s = 0.0
    for i, step in enumerate(steps):
        begun_s = now_s
        done: list[RunRecord | CopyRecord] = [*step.runs, *step.copies]
        for record in sorted(done, key=lambda r: r.began_s):
            if isinstance(record, CopyRecord):
                seconds = prediction.copy_s(record)
                yield _copy_slice("device", record, now_s, seconds, prediction)
            else:
                seconds = record.seconds
                yield _run_slice("device", record, now_s, seconds, step, prediction)
                if i < detailed:
                    yield from _op_slices("device", record, now_s, step, prediction)
            now_s += seconds
        yield Slice("device", HOST, "steps", "step", _title(step), begun_s, now_s - begun_s, _step_args(step))


def _title(step: StepRecord) -> str:
    w = step.workload
    if step.phase == "prefill":
        return f"prefill {w.n_tokens} tokens at {w.n_past}"
    return f"decode at {w.n_past}" if w.n_seqs == 1 else f"decode {w.n_seqs} sequences"


def _step_args(step: StepRecord) -> dict[str, Any]:
    return {"phase": step.phase, **vars(step.workload)}


def _run_slice(
    clock: Clock, run: RunRecord, began_s: float, seconds: float, step: StepRecord, prediction: Prediction
) -> Slice:
    groups = prediction.groups(run)
    predicted_s = sum(prediction.group(run.device, g, step.workload).seconds for g in groups)
    args = {
        "phase": step.phase,
        "ops": sum(len(g.ops) for g in groups),
        "predicted_us": _us(predicted_s + prediction.launch_s(run.device)),
        "basis": run.event.basis if run.event else "measured:host",
        "device_us": _us(run.seconds),
        **({"counters": dict(run.event.counters)} if run.event and run.event.counters else {}),
    }
    return Slice(clock, run.device, "runs", "run", run.segment, began_s, seconds, args)


def _op_slices(
    clock: Clock, run: RunRecord, began_s: float, step: StepRecord, prediction: Prediction
) -> Iterator[Slice]:
    """The run's steps, one after the other: what comes before the first is the launch."""
    times = run.event.steps if run.event else None
    if times is None:
        return
    home: dict[int, Group] = {i: group for group in prediction.groups(run) for i in group.steps or ()}
    at_s = began_s + max(0.0, run.seconds - sum(times.seconds))
    for i, (names, seconds) in enumerate(zip(times.ops, times.seconds, strict=True)):
        group = home[i]
        cost = prediction.group(run.device, group, step.workload)
        args: dict[str, Any] = {
            "ops": list(names),
            "kinds": list(dict.fromkeys(op.kind for op in group.ops if op.name in names)),
            "layer": group.layers[0] if len(group.layers) == 1 else None,
            "bytes": cost.nbytes,
            "flops": cost.flops,
            "predicted_us": _us(cost.seconds),
        }
        if len(group.steps or ()) > 1:
            args["figures_of"] = group.title  # bytes, FLOPs and prediction are of all its steps
        yield Slice(clock, run.device, "runs", "op", group.title_of(names), at_s, seconds, args)
        at_s += seconds


def _copy_slice(clock: Clock, copy: CopyRecord, began_s: float, seconds: float, prediction: Prediction) -> Slice:
    args = {"bytes": copy.nbytes, "predicted_us": _us(prediction.copy_s(copy)), "measured_us": _us(copy.seconds)}
    return Slice(clock, LINKS, f"{copy.source} to {copy.target}", "copy", copy.value, began_s, seconds, args)


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
