"""What the scripts in benchmarks/ say to arguments that cannot be meant; their figures are no test's business."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(("script", "option"), [("peer.py", ()), ("long_context.py", ("--model",))])
def test_an_unknown_file_is_one_clear_line(script: str, option: tuple[str, ...]) -> None:
    command = [sys.executable, str(BENCHMARKS / script), *option, "Q4_7"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"{script}: error: ") and "no file Q4_7; choose one of SmolLM2-135M_Q4_1, " in last
    assert "Traceback" not in result.stderr
