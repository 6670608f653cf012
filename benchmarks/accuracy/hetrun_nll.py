"""hetrun's side of every_type.py: hetrun_nll.py MODEL WINDOWS KV THREADS FIRST, as llama_cpp_nll.py.

KV: as --kv-type takes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hetrun
from hetrun.run.perplexity import perplexity


def main() -> None:
    path, windows_file, kv, threads, first = sys.argv[1:]
    windows = json.loads(Path(windows_file).read_text())
    n = max(map(len, windows))
    with hetrun.load(path, devices=["cpu"], threads=int(threads), n_ctx=n, kv_format=kv) as model:
        for window in windows[int(first) :]:
            print(perplexity(model.session, window, n_ctx=n).nll, flush=True)


if __name__ == "__main__":
    main()
