"""The conformance kit on the board's two devices: weights that stay in its memory, and weights that pass through it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pynq_rig import Make, board, overlay

from hetrun_pynq_z1.settings import LEAST_STAGING_BYTES

__all__ = ["board", "overlay"]  # fixtures


class Outcomes:
    """Of the kit's checks: how many op cases passed, and what failed."""

    def __init__(self) -> None:
        self.ops: Counter[str] = Counter()
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid}: {report.longreprtext}")
        if report.when == "call" and "::test_op[" in report.nodeid:
            self.ops[report.outcome] += 1


@pytest.mark.parametrize(("device_id", "n_ops"), [("pynq-z1:0", 66), ("pynq-z1:stream", 63)])
def test_the_conformance_kit_passes(board: Make, overlay: Path, tmp_path: Path, device_id: str, n_ops: int) -> None:
    """The engine's csim behind registers and caches. The device that streams refuses the activation."""
    simulated = board()
    config = tmp_path / "settings.toml"
    config.write_text(f'[pynq-z1]\noverlay = "{overlay}"\nstaging_bytes = {LEAST_STAGING_BYTES}\n')
    outcomes = Outcomes()
    options = ["--hetrun-device", device_id, "--hetrun-config", str(config), "-q", "-p", "no:cacheprovider"]
    result = pytest.main([*options, "--pyargs", "hetrun.testing.suite"], plugins=[outcomes])
    assert not outcomes.failures, "\n".join(outcomes.failures)
    assert (result, outcomes.ops["passed"]) == (pytest.ExitCode.OK, n_ops)
    assert not simulated.live
