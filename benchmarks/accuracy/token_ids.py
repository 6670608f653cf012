"""The texts as token ids of llama.cpp, which all scripts here are teacher-forced over: {text name: [id, ...]}.

Each vocabulary has a file of its own, `--ids`: texts/ids.json for SmolLM2, texts/ids_gemma3.json for Gemma 3.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"
IDS = TEXTS / "ids.json"


def read_texts() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(TEXTS.glob("*.txt"))}


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ids", type=Path, default=IDS, help="ids of the texts in the model's vocabulary")


def read_ids(path: Path = IDS) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    return ids


def write_ids(ids: dict[str, list[int]], path: Path = IDS) -> None:
    lines = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in ids.items())
    path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
