"""Quantises a GGUF file by llama.cpp's own quantiser, with the peer's Python: llama_cpp_quantise.py SOURCE TARGET TYPE

Every matrix gets the type, but the embedding table, which is the output matrix too: Q8_0, as in SmolLM2's own file, or
the type itself where that is a float. [PATTERN] after TYPE: only the matrices whose name it matches, others Q8_0.
Types that ask for an importance matrix get one of ones: all weights alike.
"""

from __future__ import annotations

import ctypes
import os
import sys

import gguf
import llama_cpp as api

FILE_TYPES = {
    "F32": "ALL_F32",
    "Q3_K": "MOSTLY_Q3_K_S",
    "Q4_K": "MOSTLY_Q4_K_S",
    "Q5_K": "MOSTLY_Q5_K_S",
    "MXFP4": "MOSTLY_MXFP4_MOE",
}
FLOATS = ("F32", "F16", "BF16")

_silent = api.llama_log_callback(lambda level, text, user_data: None)


def main() -> None:
    source, target, type_name, *pattern = sys.argv[1:]
    if "LLAMA_LOG" not in os.environ:
        api.llama_log_set(_silent, ctypes.c_void_p())
    settings = api.llama_model_quantize_default_params()
    settings.nthread = int(os.environ.get("THREADS", "2"))
    kept = type_name if type_name in FLOATS else "Q8_0"
    settings.output_tensor_type = settings.token_embedding_type = gguf.GGMLQuantizationType[kept]
    settings.ftype = getattr(api, f"LLAMA_FTYPE_{FILE_TYPES.get(type_name, f'MOSTLY_{type_name}')}")
    settings.pure = True
    matrices = [t for t in gguf.GGUFReader(source).tensors if len(t.shape) == 2]
    entries = (api.llama_model_imatrix_data * (len(matrices) + 1))()
    ones = {n: (ctypes.c_float * n)(*[1.0] * n) for n in {int(t.shape[0]) for t in matrices}}
    for entry, tensor in zip(entries, matrices, strict=False):
        n = int(tensor.shape[0])
        entry.name, entry.data, entry.size = tensor.name.encode(), ones[n], n
    if type_name.startswith(("IQ1", "IQ2", "IQ3_XXS")):
        settings.imatrix = entries
    if pattern:
        kind = gguf.GGMLQuantizationType[type_name]
        overrides = (api.llama_model_tensor_override * 2)()
        overrides[0].pattern, overrides[0].type = pattern[0].encode(), kind
        settings.tt_overrides, settings.pure = overrides, False
        settings.ftype = api.LLAMA_FTYPE_MOSTLY_Q8_0
    api.llama_backend_init()
    status = api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
    if status:
        raise SystemExit(f"llama_model_quantize: status {status}")


if __name__ == "__main__":
    main()
