"""What stays in memory while the cpu device runs a model from a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import require_device

CODE = """
import sys
import hetrun

with hetrun.load(sys.argv[1], devices=["cpu"], n_ctx=640) as model:
    model.generate(range(0, 49152, 96), max_tokens=2).finish()
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status")
def test_the_file_does_not_stay_beside_packed_weights(smollm2_path):
    """512 embeddings are looked up all over the table of 30 MB.

    Where weights are packed, the file's pages go back; where they are used in place, they are the only copy.
    """
    require_device("cpu")
    run = subprocess.run([sys.executable, "-c", CODE, str(smollm2_path)], capture_output=True, text=True, check=True)
    beside_mb = int(run.stdout) * 1024 / 1e6 - smollm2_path.stat().st_size / 1e6
    assert beside_mb < 60, f"{beside_mb:.0f} MB beside the weights: Python, the KV cache, and scratch take 50"
