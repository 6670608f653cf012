"""Sessions over small random models, on devices that time themselves well, by a clock of their own, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import remote
from null.graphs import metadata, tensors

from hetrun.device import API_VERSION, RunEvent
from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.plan.place import Pin, Request, make_plan
from hetrun.plugins import FoundDevice
from hetrun.reference.driver import ReferenceDriver
from hetrun.run.build import build
from hetrun.run.session import Session
from hetrun_cpu.driver import CpuDriver

WEIGHTS = tensors(n_layers=3, type_name="F32")
N_LAYERS = 3


def graph(more=None):
    options = GraphOptions(n_ctx=64, max_tokens=16, kv_format="f32")
    return build_graph("llama", metadata(n_layers=N_LAYERS), {**WEIGHTS, **(more or {})}, options, architectures())


def open_session(devices: Sequence[FoundDevice], pins: Sequence[str] = ()) -> Session:
    rng = np.random.default_rng(0)
    blocks = {w.name: (0.2 * rng.standard_normal(w.shape)).astype(np.float32).tobytes() for w in WEIGHTS.values()}
    made = graph()
    plan = make_plan(made, devices, Request(), [Pin.parse(p) for p in pins])
    return Session(build(made, plan, devices, lambda n: memoryview(blocks[n]), 16, 16))


def cpu() -> FoundDevice:
    driver = CpuDriver()
    return FoundDevice(driver, driver.probe({"threads": 2})[0], "cpu")


class Simulated:
    """The reference with a clock of its own, which says that each run takes 1 ms."""

    api_version = API_VERSION
    name = "simulated"

    def __init__(self) -> None:
        self.inner = ReferenceDriver()

    def probe(self, config):
        return [replace(self.inner.probe({})[0], id="simulated:0", backing="emulated")]

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def open(self, info):
        device = self.inner.open(info)
        synchronize = device.synchronize

        def simulated():
            return [RunEvent(e.segment, 1e-3, "simulated:test", {"cycles": 5.0}) for e in synchronize()]

        device.synchronize = simulated
        return device


def simulated() -> FoundDevice:
    driver = Simulated()
    return FoundDevice(driver, driver.probe({})[0], "simulated")


def silent() -> FoundDevice:
    """A device that does not time itself."""
    found = remote.behind("silent")
    opened = found.driver.open

    def open_silent(info):
        device = opened(info)

        def synchronize():
            device.flush()
            device.inner.synchronize()
            return []

        device.synchronize = synchronize
        return device

    found.driver.open = open_silent
    return found
