"""The texts as token ids of llama.cpp, which all scripts here are teacher-forced over: {text name: [id, ...]}."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"
IDS = TEXTS / "ids.json"


def read_texts() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(TEXTS.glob("*.txt"))}


def read_ids() -> dict[str, list[int]]:
    ids: dict[str, list[int]] = json.loads(IDS.read_text(encoding="utf-8"))
    return ids


def write_ids(ids: dict[str, list[int]]) -> None:
    lines = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in ids.items())
    IDS.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
