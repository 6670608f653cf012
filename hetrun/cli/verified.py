"""Runs a plan and the best single device here, in turns, and sets what is measured beside what was predicted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hetrun import api
from hetrun.cli.loading import system_of
from hetrun.cli.options import Choice
from hetrun.errors import DeviceError
from hetrun.plan.place import Task
from hetrun.plan.plan import PHASES, Plan
from hetrun.plugins import Registry
from hetrun.run.verify import Measured, measure

_ROUNDS, _REPETITIONS = 2, 3


def verify(task: Task, plan: Plan, choice: Choice, registry: Registry, path: Path) -> dict[str, Any]:
    """Predicted and measured seconds of the plan and, where that is another plan, of the best single device.

    DeviceError, before anything runs, where a device is absent.
    """
    single = task.best_alone()
    plans = {"plan": plan}
    if single is not None and plan.used_devices != (single,):
        plans[single] = task.plan(dict.fromkeys(PHASES, (single,) * len(plan.decode)))
    for device in task.devices:
        if device.info.unavailable and any(device.info.id in p.used_devices for p in plans.values()):
            raise DeviceError(
                f"{device.info.id} cannot be run here: {device.info.unavailable.reason}",
                remedy="--verify needs devices that are here: choose others with --device, or leave it out",
            )
    measured: dict[str, Measured] = {}
    for _ in range(_ROUNDS):
        for name, one in plans.items():
            print(f"running {'the plan' if name == 'plan' else f'{name} alone'} ...", file=sys.stderr)
            times = _run(task, one, choice, registry, path)
            measured[name] = measured[name] + times if name in measured else times
    return {
        "best_single_device": single,
        "repetitions": _ROUNDS * _REPETITIONS,
        "runs": [_record(task, name, one, measured[name]) for name, one in plans.items()],
    }


def _run(task: Task, plan: Plan, choice: Choice, registry: Registry, path: Path) -> Measured:
    with api.load(
        path,
        devices=plan.used_devices,
        system=system_of(choice),
        n_ctx=choice.n_ctx or 0,
        threads=choice.threads,
        plan=plan,
        kv_format=choice.kv_type,
        window=choice.attention.window,
        sink=choice.attention.sink,
        extension=choice.extension,
        registry=registry,
    ) as model:
        return measure(model.session, task.request.prompt_tokens, task.request.gen_tokens, _REPETITIONS)


def _record(task: Task, name: str, plan: Plan, measured: Measured) -> dict[str, Any]:
    request = task.request
    predicted = {
        "prefill_s": plan.predicted["prefill"].total_s * request.n_prefill_steps,
        "decode_s_per_token": plan.predicted["decode"].total_s,
    }
    seen = {"prefill_s": measured.prefill_median_s, "decode_s_per_token": measured.decode_median_s}
    for times, prefill in ((predicted, predicted["prefill_s"]), (seen, seen["prefill_s"])):
        times["answer_s"] = prefill + request.gen_tokens * times["decode_s_per_token"]
    return {
        "run": name,
        "devices": list(plan.used_devices),
        "predicted": predicted,
        "measured": seen,
        "error": {key: predicted[key] / seen[key] - 1.0 for key in predicted if seen[key]},
        "prefill_s": list(measured.prefill_s),
        "decode_s_per_token": list(measured.decode_s),
        "basis": list(plan.basis),
    }
