"""llama.cpp's side of benchmarks/peer.py and long_context.py: python llama_cpp_worker.py MODEL THREADS N_CTX [KV_TYPE]

KV_TYPE, one of f16, q8_0 and q4_0, also turns flash attention on. Each line of stdin, as for hetrun_worker.py, is
answered by the seconds spent in llama_decode and llama_synchronize: no sampling, no batch filling, no Python
class of llama-cpp-python's.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time

import llama_cpp as api

_silent = api.llama_log_callback(lambda level, text, user_data: None)


KV_TYPES = {"f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0, "q4_0": api.GGML_TYPE_Q4_0}


class Peer:
    def __init__(self, model: str, n_threads: int, n_ctx: int, kv_type: str = "") -> None:
        api.llama_log_set(_silent, ctypes.c_void_p())
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {model}")
        settings = api.llama_context_default_params()
        settings.n_ctx = n_ctx
        settings.n_batch = settings.n_ubatch = 512  # its default for both, and hetrun's
        settings.n_threads = settings.n_threads_batch = n_threads
        if kv_type:
            settings.type_k = settings.type_v = KV_TYPES[kv_type]
            settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = api.llama_init_from_model(self.model, settings)
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(512, 0, 1)

    def truncate(self, length: int) -> None:
        api.llama_memory_seq_rm(api.llama_get_memory(self.context), 0, length, -1)

    def step(self, tokens: list[int], start: int) -> float:
        """Seconds of one llama_decode over tokens at positions from `start`; logits of the last one."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        started = time.perf_counter()
        status = api.llama_decode(self.context, batch)
        api.llama_synchronize(self.context)
        elapsed_s = time.perf_counter() - started
        if status:
            raise SystemExit(f"llama_decode: status {status}")
        return elapsed_s


def main() -> None:
    model, threads, n_ctx, *kv_type = sys.argv[1:]
    peer = Peer(model, int(threads), int(n_ctx), *kv_type)
    rng = random.Random(0)
    tokens = [rng.randrange(3, peer.n_vocab) for _ in range(int(n_ctx))]
    print("ready", flush=True)
    length = 0
    for line in sys.stdin:
        test, n = line.split()
        if test in ("prefill", "decode"):
            length = 0
            peer.truncate(0)
        if test == "decode":
            peer.step(tokens[:1], 0)
            length = 1
        end = int(n) if test == "extend" else length + int(n)
        chunk = 512 if test in ("prefill", "extend") else 1
        elapsed_s = sum(peer.step(tokens[i : min(i + chunk, end)], i) for i in range(length, end, chunk))
        if test == "append":
            peer.truncate(length)
        else:
            length = end
        print(elapsed_s, flush=True)


if __name__ == "__main__":
    main()
