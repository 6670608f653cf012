"""Teacher-forced logits of hetrun, as float32 [n_tokens, n_vocab] in DIR/<text>.npy.

python benchmarks/accuracy/hetrun_logits.py --model model.gguf --device cpu --out DIR [--kv f32]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from token_ids import add_option, read_ids

import hetrun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a path, or a name of configs/models.toml")
    parser.add_argument("--device", action="append", required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="a directory outside the repository: 300 MB a set, 1.2 GB for Gemma 3"
    )
    parser.add_argument("--kv", default="f16", help="how keys and values are kept; f32 for the exact reference")
    add_option(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with hetrun.load(args.model, devices=args.device, kv_format=args.kv) as model:
        for name, ids in read_ids(args.ids).items():
            logits = np.asarray(model.logits(ids), dtype=np.float32)
            np.save(args.out / f"{name}.npy", logits)
            print(f"{'+'.join(args.device)}: {name}, {len(ids)} tokens", flush=True)


if __name__ == "__main__":
    main()
