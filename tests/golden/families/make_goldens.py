"""Makes the logits of this folder by `transformers`, from the weights of `cases`: see README.md.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/families/make_goldens.py

Neither package is needed to run the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, random_weights, tokens

FOLDER = Path(__file__).parent


def golden(case: str, config: dict[str, Any]) -> tuple[dict[str, list[int]], np.ndarray]:
    """Shapes of all tensors, and logits float32 [n_tokens, n_vocab]."""
    options = {k: v for k, v in config.items() if k != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(options)))
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=torch.float32).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if made.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    values = {name: torch.from_numpy(value) for name, value in random_weights(case, shapes).items()}
    model.load_state_dict(values, strict=not made.tie_word_embeddings)
    model.tie_weights()
    with torch.no_grad():
        logits = model(torch.tensor([tokens(case)]), use_cache=False).logits[0]
    return shapes, logits.numpy()


def main() -> None:
    shapes, logits = {}, {}
    for case, config in CASES.items():
        shapes[case], logits[case] = golden(case, config)
        print(f"{case}: logits {np.std(logits[case]):.3f} about {np.mean(logits[case]):.3f}")
    lines = ",\n".join(f" {json.dumps(case)}: {json.dumps(of)}" for case, of in shapes.items())
    (FOLDER / "shapes.json").write_text(f"{{\n{lines}\n}}\n")
    np.savez_compressed(FOLDER / "logits.npz", **logits)


if __name__ == "__main__":
    main()
