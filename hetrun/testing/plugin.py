"""The pytest plugin of the conformance kit: options, the bench of each device, and the report.

    pytest --pyargs hetrun.testing.suite --hetrun-device ID [--hetrun-config FILE]

It is loaded by every pytest in an environment with hetrun, so it imports nothing heavy until a device is asked for.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hetrun.testing.rig import Rig

_SUITE = "hetrun.testing.suite"
_DEVICE, _OP_CASE = "hetrun_device", "hetrun_op_case"  # user properties of a report; properties survive pytest-xdist
_NO_DEVICE = "no device was asked for: give --hetrun-device ID (hetrun devices lists them)"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hetrun", "hetrun conformance kit")
    group.addoption(
        "--hetrun-device",
        action="append",
        default=[],
        metavar="ID",
        help='a device to test, as "hetrun devices" shows it; repeatable',
    )
    group.addoption("--hetrun-config", metavar="FILE", help="TOML file with a table of settings for each driver name")
    group.addoption(
        "--hetrun-plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="a hetrun plugin that is not installed, by module name; repeatable",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("hetrun_device"):
        return
    config.pluginmanager.register(_Bench(find_rigs(config)), "hetrun-bench")


def find_rigs(config: pytest.Config) -> dict[str, Rig]:
    """A bench for each device that the command line names. UsageError where one is not known."""
    from hetrun.errors import HetrunError
    from hetrun.plugins import Plugin, Registry, select_device
    from hetrun.testing.expectations import Expectations
    from hetrun.testing.rig import Rig
    from hetrun.toml_table import read_toml

    registry = Registry.load()
    for module in config.getoption("hetrun_plugin"):
        registry.add(Plugin(module, module), partial(importlib.import_module, module))
    try:
        path = config.getoption("hetrun_config")
        devices = registry.devices(read_toml(Path(path)) if path else {})
        found = [select_device(devices, wanted) for wanted in config.getoption("hetrun_device")]
    except HetrunError as error:
        broken = "".join(f"\nplugin {b.name} is broken: {b.error}" for b in registry.broken)
        raise pytest.UsageError(f"{error}{broken}") from None
    ids = tuple(d.info.id for d in devices)
    rigs = {}
    for device in found:
        answers = registry.hook_results("hetrun_conformance", driver=device.driver)
        expectations = next((e for _, e in answers if isinstance(e, Expectations)), Expectations())
        rigs[device.info.id] = Rig(device, ids, expectations)
    return rigs


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest) -> Rig:
    """The bench of the device under test (`hetrun.testing.rig.Rig`)."""
    bench = request.config.pluginmanager.get_plugin("hetrun-bench")
    assert isinstance(bench, _Bench)
    return bench.rigs[request.param]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" not in metafunc.fixturenames or not metafunc.module.__name__.startswith(_SUITE):
        return
    bench = metafunc.config.pluginmanager.get_plugin("hetrun-bench")
    if bench is None:
        skipped = pytest.param(None, id="no-device", marks=pytest.mark.skip(_NO_DEVICE))
        metafunc.parametrize("rig", [skipped], indirect=True, scope="session")
    else:
        metafunc.parametrize("rig", list(bench.rigs), indirect=True, scope="session")


def check_name(item: pytest.Function) -> str:
    """The name of a check in `Expectations`: "op/matmul-Q4_1-7x576x192", or "double_close" without them."""
    name = item.originalname.removeprefix("test_")
    parameters = item.callspec.id.removeprefix(str(item.callspec.params["rig"])).lstrip("-")
    return f"{name}/{parameters}" if parameters else name


@dataclass
class _Tally:
    """What became of the op cases of one device."""

    collected: int = 0
    passed: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def ran(self) -> int:
        return self.passed + self.failed


class _Bench:
    """Registered while devices are under test."""

    def __init__(self, rigs: dict[str, Rig]) -> None:
        self.rigs = rigs
        self.tallies = {device_id: _Tally() for device_id in rigs}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if not isinstance(item, pytest.Function) or not item.module.__name__.startswith(_SUITE):
                continue
            device_id = item.callspec.params.get("rig") if hasattr(item, "callspec") else None
            if device_id not in self.rigs:
                continue
            reason = self.rigs[device_id].expectations.known_failure(check_name(item))
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
            item.user_properties.append((_DEVICE, device_id))
            if item.originalname == "test_op":
                item.user_properties.append((_OP_CASE, True))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            properties = dict(item.user_properties)
            if _OP_CASE in properties:
                self.tallies[str(properties[_DEVICE])].collected += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if _OP_CASE not in properties or (report.when != "call" and report.passed):
            return
        tally = self.tallies[str(properties[_DEVICE])]
        if report.passed:
            tally.passed += 1
        elif report.failed or hasattr(report, "wasxfail"):
            tally.failed += 1
        else:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            kind = tally.refused if reason.startswith("refused: ") else tally.skipped
            kind[reason.removeprefix("refused: ")] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        failed_before = item.session.testsfailed
        result = yield
        # A failed check may leave the device in any state; the next one gets a fresh device.
        device_id = dict(item.user_properties).get(_DEVICE)
        if item.session.testsfailed > failed_before and device_id is not None:
            self.rigs[str(device_id)].release()
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for rig in self.rigs.values():
            rig.release()
        idle = any(tally.collected and not tally.ran for tally in self.tallies.values())
        if idle and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("hetrun conformance")
        for line in self.summary():
            terminalreporter.write_line(line)

    def summary(self) -> Iterator[str]:
        """How many op cases really ran on each device, and why the others did not."""
        for device_id, tally in self.tallies.items():
            backing = self.rigs[device_id].info.backing
            if not tally.collected:
                yield f"{device_id} ({backing}): no op case was selected"
                continue
            share = 100 * tally.ran // tally.collected
            verdict = "" if tally.ran else " - NOTHING RAN, so this is no pass"
            yield (
                f"{device_id} ({backing}): {tally.ran} of {tally.collected} op cases ran on the device ({share}%), "
                f"{tally.failed} failed, {tally.refused.total()} refused{verdict}"
            )
            for name, nmse in self.rigs[device_id].expectations.embeddings.items():
                yield f"  claims an NMSE of {nmse:g} for embeddings of {name}"
            for reason, count in (*tally.refused.most_common(), *tally.skipped.most_common()):
                yield f"  {count:4d} x {reason}"
