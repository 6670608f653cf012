"""Runs on an emulated board: python generate_on_board.py N_TOKENS MODEL... prints greedy tokens and what was imported.

stdout: {"tokens": {model: {isa: [id, ...]}}, "modules": [name, ...]}
"""

import json
import sys

import hetrun
from hetrun_cpu import native

PROMPT = (5, 260, 17, 42, 99, 100, 3)


def greedy(model: str, isa: str, n_tokens: int) -> list[int]:
    """Token ids behind PROMPT, the likeliest each time."""
    with hetrun.load(model, devices=["cpu"], driver_settings={"cpu": {"isa": isa, "threads": 2}}) as loaded:
        for _ in loaded.generate(PROMPT, max_tokens=n_tokens + 1, temperature=0.0):
            pass
        return list(loaded.session.tokens())[len(PROMPT) :]


if __name__ == "__main__":
    n_tokens, *models = sys.argv[1:]
    tokens = {model: {isa: greedy(model, isa, int(n_tokens)) for isa in native.isa_names()} for model in models}
    print(json.dumps({"tokens": tokens, "modules": sorted(sys.modules)}))
