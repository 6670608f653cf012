"""How much memory compression takes: what one layer needs, however many there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from models import tiny_llama

from hetrun.compress.solve import METHODS

from .conftest import TEXT

N_EMBD, N_FF = 512, 1024  # a layer far larger than what a heap's gaps add to the peak, 3 MB at most
LAYER_BYTES = 4 * (2 * N_EMBD * N_EMBD + 2 * N_EMBD * N_EMBD // 2 + 3 * N_FF * N_EMBD)  # float32, as it is solved
CODE = """
import sys
from pathlib import Path
from hetrun.cli.process import peak_rss_bytes
from hetrun.compress.run import Options, compress

model, output, method = sys.argv[1:]
compress(Path(model), sys.stdin.read(), Path(output), Options(n_ctx=128, tokens=2048, method=method))
print(peak_rss_bytes())
"""


def peak_bytes(folder: Path, n_layers: int, method: str) -> int:
    """VmHWM of a process that compresses a model of so many layers."""
    model = tiny_llama(
        folder / f"{n_layers}.gguf", n_layers, "F16", metadata={"embedding_length": N_EMBD, "feed_forward_length": N_FF}
    )
    arguments = [sys.executable, "-c", CODE, str(model), str(folder / f"{n_layers}.small"), method]
    return int(subprocess.run(arguments, input=TEXT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status")
@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_layers(method: str, tmp_path: Path) -> None:
    """Six more layers are 57 MB in float32; what is finished waits on disk."""
    few, many = (peak_bytes(tmp_path, n_layers, method) for n_layers in (2, 8))
    assert many - few < LAYER_BYTES, f"{(many - few) / 1e6:.1f} MB more for six layers of {LAYER_BYTES / 1e6:.1f} MB"
