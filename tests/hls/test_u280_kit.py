"""The conformance kit on the card itself: the whole contract through pyxrt, not through csim's own card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_pyxrt import SHAPES
from fake_u280 import write_xclbin

CONFIG = """[alveo-u280]
xclbin = "{}"
hbm_bytes = 67_108_864
ddr_bytes = 33_554_432
"""


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kit_passes_on_the_card(shape: str, tmp_path: Path) -> None:
    (tmp_path / "kit.toml").write_text(CONFIG.format(write_xclbin(tmp_path / "engine.xclbin")))
    kit = ["-p", "u280_kit", "-p", "no:cacheprovider", "--pyargs", "hetrun.testing.suite", "-q", "--tb=short"]
    device = ["--hetrun-device", "alveo-u280:0", "--hetrun-config", str(tmp_path / "kit.toml")]
    variables = {
        **os.environ,
        "FAKE_PYXRT": shape,
        "FAKE_FOLDER": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *kit, *device],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        env=variables,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    n_passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert n_passed > 500, done.stdout[-500:]
