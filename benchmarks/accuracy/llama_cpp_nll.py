"""llama.cpp's side of every_type.py, with the peer's Python: llama_cpp_nll.py MODEL WINDOWS KV THREADS FIRST

WINDOWS: a JSON file of lists of token ids. One line to stdout for each from number FIRST on: the sum of -ln p over the
window's tokens but the first. Each is one llama_decode from an empty context, keys and values in KV (f16, q8_0, q4_0).
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp as api
import numpy as np

_silent = api.llama_log_callback(lambda level, text, user_data: None)


def main() -> None:
    path, windows_file, kv, threads, first = sys.argv[1:]
    windows = json.loads(Path(windows_file).read_text())
    api.llama_log_set(_silent, ctypes.c_void_p())
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    n = max(map(len, windows))
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = n
    settings.n_threads = settings.n_threads_batch = int(threads)
    settings.type_k = settings.type_v = gguf.GGMLQuantizationType[kv.upper()]
    context = api.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit(f"llama.cpp does not run {path} with keys and values in {kv}")
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(n, 0, 1)
    for window in windows[int(first) :]:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        batch.n_tokens = len(window)
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if status := api.llama_decode(context, batch):
            raise SystemExit(f"llama_decode: status {status}")
        nll = 0.0
        for i, token in enumerate(window[1:]):
            row = np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (n_vocab,)).astype(np.float64)
            row -= row.max()
            nll += float(np.log(np.exp(row).sum()) - row[token])
        print(nll, flush=True)


if __name__ == "__main__":
    main()
