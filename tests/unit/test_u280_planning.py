"""Plans with the U280 engine beside a host: the shipped system, whose costs are the engine's own."""

from __future__ import annotations

import pytest

from hetrun.api import choose_devices, graph_on
from hetrun.cli.changes import Search
from hetrun.cli.options import Choice
from hetrun.config import load_profile, load_system
from hetrun.device import Unsupported, Workload
from hetrun.errors import HetrunError
from hetrun.model.architectures import GraphOptions
from hetrun.model.shape import load_shape
from hetrun.plan.place import Request, make_plan
from hetrun.plugins import FoundDevice, Registry
from hetrun_alveo_u280 import native
from hetrun_alveo_u280.cost import op_seconds
from hetrun_alveo_u280.power import watts
from hetrun_alveo_u280.timing import BASIS, header_design


def workstation() -> list[FoundDevice]:
    return choose_devices(Registry.load(), None, system=load_system("workstation-u280"), to_run=False)


def test_the_workstation_plans_with_the_engines_own_costs() -> None:
    """No profile reads weights of 2 bits."""
    devices = workstation()
    graph = graph_on(devices, load_shape("llama2-7b-w2s24"), GraphOptions(n_ctx=512), Registry.load())
    plan = make_plan(graph, devices, Request(128, 128))
    engine = devices[1].info.id
    assert engine.startswith("alveo-u280:") and set(plan.used_devices) == {engine}
    assert BASIS in plan.basis
    ops_s = sum(op_seconds(op, Workload(1, 128 + 64)) for op in graph.ops)
    assert plan.predicted["decode"].ops_s == pytest.approx(ops_s, rel=1e-3)


def test_a_card_that_waits_draws_power_and_so_does_the_host() -> None:
    host, card = (device.info for device in workstation())
    x86, u280 = (load_profile(name).model for name in ("x86-generic", "alveo-u280"))
    assert host.model["watts"] == pytest.approx(x86["watts"].value + u280["idle_watts"].value)
    assert card.model["watts"] == pytest.approx(watts(header_design(), "board") + x86["idle_watts"].value)


def test_a_broken_installation_refuses_and_stops_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_problem", lambda: HetrunError("gone", remedy="reinstall"))
    host, card = workstation()
    graph = graph_on([host, card], load_shape("smollm2-135m"), GraphOptions(n_ctx=64), Registry.load())
    answers = {card.driver.estimate(card.info, op, Workload(1, 0)) for op in graph.ops}
    assert answers == {Unsupported("gone")}
    assert make_plan(graph, [host, card], Request(8, 8)).used_devices == ("model:x86-generic",)


def test_a_hint_tells_the_rate_that_its_system_is_planned_at() -> None:
    """With keys and values as its devices take them, not as those did that the model is too large for."""
    registry, header, request = Registry.load(), load_shape("llama2-7b"), Request(128, 128)
    choice = Choice(system="pynq-z1", kv_type="f16", n_ctx=512)
    found = {o.label: o for o in Search(header, choice, request, (), registry, False, None).outcomes()}
    devices = workstation()
    plan = make_plan(graph_on(devices, header, GraphOptions(n_ctx=512), registry), devices, request)
    hint = found["--system workstation-u280"]
    assert hint.decode_tps == pytest.approx(1 / plan.predicted["decode"].total_s)
