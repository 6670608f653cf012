"""The page of `hetrun profile --html`, in a real browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from browser import Element, Elements, Opened, open_page, pixels, screenshot
from command import hetrun
from models import tiny_llama

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "%": 1e-2, "": 1.0}
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """(page, the record that --json printed with it, folder). The model's name is one that markup would fall for."""
    folder = tmp_path_factory.mktemp("page")
    model = tiny_llama(folder / "<script>alert(1)</script> & tiny.gguf".replace("/", "_"), n_layers=4)
    pins = ("--pin", "*=reference", "--pin", "blk.[12].ffn_*=cpu")
    both = ("-d", "reference", "-d", "cpu", *pins)
    done = hetrun(folder, "profile", "-m", model, *both, "-r", "2", "--gen-tokens", "4", "--html", "p.html", "--json")
    assert done.code == 0, done.err
    return folder / "p.html", done.json, folder


@pytest.fixture(scope="module")
def opened(made: tuple[Path, dict[str, Any], Path]) -> Opened:
    page, _, folder = made
    return open_page(page, folder)


@pytest.fixture(scope="module")
def elements(opened: Opened) -> list[Element]:
    return Elements(opened.dom).found


def test_scripts_ran_to_their_end_and_nobody_complained(opened: Opened, elements: list[Element]) -> None:
    root = elements[0]
    assert (root.tag, root.attributes.get("data-ready"), root.attributes["data-errors"]) == ("html", "yes", "0")
    assert opened.console == []


def test_the_page_needs_nothing_but_itself(made: tuple[Path, dict[str, Any], Path]) -> None:
    text = made[0].read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "default-src 'none'" in text


def test_names_are_shown_as_text(elements: list[Element], made: tuple[Path, dict[str, Any], Path]) -> None:
    model = made[1]["model"]
    assert "<script>" in model
    assert any(e.text == f"{model} on reference:0, cpu:0" for e in elements)


def number(text: str) -> float:
    """What a shown figure says: "~1.23 ms" is 0.00123."""
    found = re.fullmatch(r"~?([+-]?[\d.]+(?:e[+-]?\d+)?)\s*([kMGT](?=B|F))?(s|ms|us|%|B/s|FLOP/s|)", text)
    assert found, text
    digits, prefix, unit = found.groups()
    return float(digits) * PREFIXES.get(prefix or "", 1.0) * UNITS.get(unit, 1.0)


COLUMNS = {
    "kinds": ["measured_s", "predicted_s", "error", "bytes_per_s", "bytes_of_roof", "flops_per_s", "flops_of_roof"],
    "devices": [
        "measured_s", "predicted_s", "error", "launches", "launch_s", "launch_predicted_s", "idle_s",
        "bytes_per_s", "bytes_of_roof", "flops_per_s", "flops_of_roof",
    ],
}  # fmt: skip
PER_STEP = {"measured_s", "predicted_s", "launch_s", "launch_predicted_s", "idle_s", "launches"}


@pytest.mark.parametrize("table", ["devices", "kinds", "parts", "layers"])
def test_figures_are_those_of_the_record(
    table: str, elements: list[Element], made: tuple[Path, dict[str, Any], Path]
) -> None:
    """Each cell holds the number of the JSON, and shows it to three figures."""
    phase = made[1]["decode"]
    columns = COLUMNS.get(table, COLUMNS["kinds"])
    cells = [
        e for e in elements if e.tag == "td" and table in e.within and "n" in e.attributes.get("class", "").split()
    ]
    assert len(cells) == len(columns) * len(phase[table])
    for i, entry in enumerate(phase[table]):
        for j, key in enumerate(columns):
            cell, want = cells[i * len(columns) + j], entry[key]
            if not want and "data-value" not in cell.attributes:
                assert cell.text == ""
                continue
            assert float(cell.attributes["data-value"]) == want
            shown = want / phase["n_steps"] if key in PER_STEP else want
            slack = 0.006 if key == "error" else 0.0006 if "roof" in key else abs(shown) * 0.006
            assert number(cell.text) == pytest.approx(shown, abs=max(slack, 6e-10))


def test_tiles_are_the_totals(elements: list[Element], made: tuple[Path, dict[str, Any], Path]) -> None:
    phase = made[1]["decode"]
    tiles = {e.attributes["data-figure"]: e for e in elements if "data-figure" in e.attributes}
    keys = {"tokens/s": "tps", "tokens/s predicted": "predicted_tps", "error": "error", "a step": "measured_s"}
    for name, key in keys.items():
        assert float(tiles[name].attributes["data-value"]) == phase[key]
    assert number(tiles["tokens/s"].text) == pytest.approx(phase["tps"], rel=0.006)


def test_map_and_time_line_hold_everything(elements: list[Element], made: tuple[Path, dict[str, Any], Path]) -> None:
    cells = [c for c in made[1]["decode"]["cells"] if c["layer"] is not None]
    drawn = Counter(
        (int(e.attributes["data-layer"]), float(e.attributes["data-value"])) for e in elements if e.tag == "rect"
    )
    assert drawn == Counter((c["layer"], c["measured_s"]) for c in cells)
    [canvas] = [e for e in elements if e.tag == "canvas"]
    [data] = [json.loads(e.text) for e in elements if e.attributes.get("id") == "data"]
    assert int(canvas.attributes["data-slices"]) == len(data["timeline"]["slices"]) > 100
    assert {lane["lane"] for lane in data["timeline"]["lanes"]} == {"host", "reference:0", "cpu:0"}
    assert data["profile"] == made[1]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn(dark: bool, made: tuple[Path, dict[str, Any], Path]) -> None:
    """Many colours on a background that is light or dark: neither blank nor unreadable."""
    page, _, folder = made
    rows = pixels(screenshot(page, folder, width=800, height=700, dark=dark))
    seen = Counter(row[i : i + 3] for row in rows[::3] for i in range(0, len(row), 9))
    background, n = seen.most_common(1)[0]
    assert n < 0.9 * seen.total() and len(seen) > 40
    assert (sum(background) < 3 * 64) == dark
