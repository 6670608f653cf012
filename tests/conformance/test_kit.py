"""The kit catches what it is made to catch, passes what is sound, and never calls it a pass when nothing ran."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

import gguf.quants  # noqa: F401  pytester forgets what a run imported, and this takes longest to import anew
import pytest
import require
from command import require_device
from conformance.broken_drivers import FAULTS

pytest_plugins = ["pytester"]

SUITE = "hetrun.testing.suite"


OPTIONS = "-p no:cacheprovider -p no:hypothesispytest --hetrun-plugin conformance.broken_drivers -q -rA"


class Kit:
    """Runs the kit in this process, on the devices of `conformance.broken_drivers`."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def run(self, *arguments: str, device: str | None) -> pytest.RunResult:
        plugin = [] if is_installed("hetrun.testing.plugin") else ["-p", "hetrun.testing.plugin"]
        wanted = ["--hetrun-device", device] if device else []
        return self.pytester.runpytest_inprocess(*plugin, *OPTIONS.split(), *wanted, "--pyargs", *arguments)


def is_installed(module: str) -> bool:
    """Whether an installed hetrun registers that plugin module."""
    groups = (metadata.entry_points(group=group) for group in ("pytest11", "hetrun"))
    return any(entry.value == module for group in groups for entry in group)


@pytest.fixture
def kit(pytester: pytest.Pytester) -> Kit:
    return Kit(pytester)


def select(caught_by: str) -> list[str]:
    """pytest arguments for "<module>::<test> <words>"."""
    test, _, words = caught_by.partition(" ")
    return [f"{SUITE}.{test}", *(["-k", words] if words else [])]


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(kit: Kit, name: str) -> None:
    _, caught_by = FAULTS[name]
    result = kit.run(*select(caught_by), device=f"{name}:0")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes().get("failed", 0) > 0
    assert "errors" not in result.parseoutcomes()


def test_sound_driver_passes(kit: Kit) -> None:
    """What catches the faults is not what fails anyway."""
    result = kit.run(SUITE, device="sound:0")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["sound:0 (*): 24* of 24* op cases ran on the device (100%), 0 failed, 0 refused"])


IN_TREE = {
    "reference:0": "hetrun.reference.plugin",
    "cpu:0": "hetrun_cpu.plugin",
    "alveo-u280:csim": "hetrun_alveo_u280.plugin",  # the card, simulated: tests/hls/test_u280_kit.py
    "pynq-z1:csim": "hetrun_pynq_z1.plugin",  # the board's devices, simulated: tests/hls/pynq_kit_cases.py
}


@pytest.mark.parametrize("device", IN_TREE)
def test_device_passes(kit: Kit, device: str) -> None:
    module = IN_TREE[device]
    if find_spec(module.partition(".")[0]) is None:
        require.missing(f"the device {device}", "make dev")
    result = kit.run(SUITE, *([] if is_installed(module) else ["--hetrun-plugin", module]), device=device)
    if f"{device} is not here" in result.stdout.str():
        require.missing(f"the native library of {device}", "make dev")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([f"{device} (*): * op cases ran on the device (*), 0 failed, * refused"])


def test_modelled_device_is_planned_and_no_pass(kit: Kit) -> None:
    """Estimates and compiles are checked; nothing ran, so it is no pass."""
    module = "hetrun_modelled.plugin"
    arguments = [] if is_installed(module) else ["--hetrun-plugin", module]
    result = kit.run(SUITE, *arguments, device="model:cortex-a9")
    outcomes = result.parseoutcomes()
    assert (result.ret, outcomes.get("failed", 0)) == (pytest.ExitCode.TESTS_FAILED, 0)
    assert outcomes["passed"] > 100
    result.stdout.fnmatch_lines(["model:cortex-a9 (modelled): 0 of * NOTHING RAN*"])


@pytest.mark.parametrize("device", ["cortex-a9-reference", "cortex-a76-cpu", "alveo-u280-cpu"])
def test_modelled_device_with_a_stand_in_passes(kit: Kit, device: str) -> None:
    """In the host's memory and behind links, by either device."""
    if device.endswith("-cpu"):
        require_device("cpu")
    result = kit.run(SUITE, "--hetrun-plugin", "conformance.stand_ins", device=f"acted:{device}")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([f"acted:{device} (emulated): * op cases ran on the device (*), 0 failed, * refused"])


def test_nothing_ran_is_no_pass(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", device="refuses-all:0")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["refuses-all:0 (*): 0 of * (0%), 0 failed, * refused - NOTHING RAN*", "*x a paperweight"]
    )


def test_absent_device_is_reported_and_no_pass(kit: Kit) -> None:
    """Its pure part is checked, the rest is skipped with reason and remedy."""
    result = kit.run(SUITE, device="absent:0")
    outcomes = result.parseoutcomes()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert outcomes.get("failed", 0) == 0
    assert outcomes["passed"] > 100
    result.stdout.fnmatch_lines(["*NOTHING RAN*", "*absent:0 is not here: no board on the bus; plug one in"])


def test_share_of_ops_that_ran_is_shown(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "scale-", device="sound:0")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["sound:0 (hardware): 8 of 8 op cases ran on the device (100%), 0 failed, 0 refused"])


def test_case_replays_by_its_id(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op[sound:0-matmul-Q4_1-7x576x192]", device="sound:0")
    result.assert_outcomes(passed=1)


def test_broken_promise_fails(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "scale-1x", device="promises:0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the plugin promised to run this*"])


def test_tighter_bound_holds(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "matmul-Q4_1-1x", device="stricter:0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NMSE * exceeds 0"])


def test_looser_bound_is_an_error(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "matmul-Q4_1-1x", device="looser:0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a bound of 0.5 is looser than the kit's 0.0002*"])


def test_claim_for_embeddings_is_allowed_and_shown(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "embedding-Q4_1", device="claims:0")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*claims an NMSE of 1e-08 for embeddings of Q4_1"])


def test_claim_for_embeddings_is_held_to(kit: Kit) -> None:
    """To its own number, and of its own type."""
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "embedding-Q4_1 or embedding-Q5_0", device="claims-less:0")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*NMSE * exceeds 1e-11", "*NMSE * exceeds 1e-12"])


def test_claim_beyond_the_limit_is_an_error(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "embedding-Q4_1", device="claims-too-much:0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a claim of 0.001 for embeddings of Q4_1 is beyond the 1e-07*"])


def test_known_failure_is_shown_with_its_reason(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "matmul-Q4_1-1x", device="known:0")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["*five bits only, until the next bitstream*"])


def test_known_failure_that_passes_is_a_failure(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_ops::test_op", "-k", "matmul-Q4_1-1x", device="known-too-long:0")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*XPASS(strict)*long mended*"])


def test_settings_reach_the_probe(kit: Kit) -> None:
    (kit.pytester.path / "boards.toml").write_text("[configured]\nboards = 3\n")
    result = kit.run(
        f"{SUITE}.test_contract::test_id_is_unique", "--hetrun-config", "boards.toml", device="configured:2"
    )
    result.assert_outcomes(passed=1)


def test_unknown_device_names_near_ones(kit: Kit) -> None:
    result = kit.run(SUITE, device="sond:0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no device 'sond:0' (did you mean sound:0*"])


def test_broken_plugin_is_named(kit: Kit) -> None:
    kit.pytester.syspathinsert()
    kit.pytester.makepyfile(bad_plugin="import no_such_module_at_all")
    result = kit.run(SUITE, "--hetrun-plugin", "bad_plugin", device="bad:0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*plugin bad_plugin is broken: ModuleNotFoundError: *no_such_module_at_all*"])


def test_without_a_device_all_is_skipped_with_the_option(kit: Kit) -> None:
    result = kit.run(f"{SUITE}.test_memory", device=None)
    assert not {"passed", "failed", "errors"} & set(result.parseoutcomes())
    result.stdout.fnmatch_lines(["*no device was asked for: give --hetrun-device ID*"])
