"""The registry: provenance, broken plugins kept apart, near matches."""

from __future__ import annotations

import types

import pytest
import remote

from hetrun.device import API_VERSION
from hetrun.errors import DeviceError
from hetrun.hookspecs import hookimpl
from hetrun.plugins import Plugin, Registry, select_device
from hetrun.reference.driver import ReferenceDriver


def plugin_of(*drivers, hook="hetrun_drivers"):
    module = types.ModuleType("made_up")
    setattr(module, hook, hookimpl(lambda: drivers, specname=hook))
    return module


def registry_with(**plugins):
    registry = Registry()
    for name, load in plugins.items():
        registry.add(Plugin(name, f"{name}.module"), load)
    return registry


def good():
    return plugin_of(ReferenceDriver())


def raising(error):
    def load():
        raise error

    return load


@pytest.mark.parametrize(
    "error", [ImportError("no board"), SystemExit(3), SyntaxError("oops"), RuntimeError("x")], ids=repr
)
def test_a_plugin_that_fails_to_import_stops_nobody(error):
    registry = registry_with(bad=raising(error), good=good)
    assert [d.info.id for d in registry.devices()] == ["reference:0"]
    [broken] = registry.broken
    assert (broken.name, broken.module) == ("bad", "bad.module")
    assert type(error).__name__ in broken.error
    assert "Traceback" in broken.detail


def test_ctrl_c_during_an_import_is_no_broken_plugin():
    with pytest.raises(KeyboardInterrupt):
        registry_with(bad=raising(KeyboardInterrupt()))


class Wrong(ReferenceDriver):
    name = "wrong"


class OldDriver(Wrong):
    api_version = API_VERSION + 1


class ThrowingProbe(Wrong):
    def probe(self, config):
        raise OSError("bus error")


@pytest.mark.parametrize(("driver", "message"), [(OldDriver, "contract version"), (ThrowingProbe, "bus error")])
def test_a_driver_that_fails_is_named_and_the_others_stay(driver, message):
    registry = registry_with(bad=lambda: plugin_of(driver()), good=good)
    assert [d.info.id for d in registry.devices()] == ["reference:0"]
    registry.devices()
    [broken] = registry.broken  # said once, however often it is asked
    assert message in broken.error


def test_a_hook_that_raises_is_kept_apart():
    module = types.ModuleType("made_up")
    module.hetrun_drivers = hookimpl(raising(ValueError("in the hook")), specname="hetrun_drivers")
    registry = registry_with(bad=lambda: module, good=good)
    assert len(registry.drivers()) == 1
    assert "in the hook" in registry.broken[0].error


def test_two_plugins_of_one_name_are_no_crash():
    registry = Registry()
    registry.add(Plugin("twin", "a"), good)
    registry.add(Plugin("twin", "b"), good)
    assert len(registry.plugins) == 1
    assert registry.broken[0].module == "b"


def test_each_driver_gets_its_own_table_over_the_common_one():
    seen = {}

    class Asking(ReferenceDriver):
        def probe(self, config):
            seen.update(config)
            return []

    Asking.name = "asking"
    registry = registry_with(a=lambda: plugin_of(Asking()))
    registry.devices({"asking": {"depth": 2}, "other": {"depth": 3}}, {"threads": 4})
    assert seen == {"depth": 2, "threads": 4}


def test_a_device_is_found_by_id_or_driver_name():
    found = [remote.reference(), remote.behind()]
    assert select_device(found, "behind").info.id == "behind:0"
    assert select_device(found, "reference:0") is found[0]


def test_an_unknown_device_gets_near_matches():
    with pytest.raises(DeviceError, match=r"no device 'referense'.*did you mean reference"):
        select_device([remote.reference()], "referense")
    with pytest.raises(DeviceError, match=r"devices here: none"):
        select_device([], "cpu")


def test_installed_plugins_have_a_provenance():
    registry = Registry.load()
    reference = next(p for p in registry.plugins if p.name == "reference")
    assert (reference.distribution, reference.module) == ("hetrun", "hetrun.reference.plugin")
    assert reference.version
