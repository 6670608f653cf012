"""What the README's section on planning and docs/placement.md tell a user to type, typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command import Done, hetrun, require_device

from hetrun.config import load_system
from hetrun.toml_table import shipped

ROOT = Path(__file__).resolve().parent.parent.parent
REFUSED = "hetrun plan --shape llama2-7b --system pynq-z1"  # the page shows how a refusal looks


def readme_commands() -> list[str]:
    """Of the section "Plan", in order."""
    section = (ROOT / "README.md").read_text().partition("\n## Plan\n")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def page_commands() -> list[str]:
    page = (ROOT / "docs" / "placement.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def typed(command: str, folder: Path, model: Path) -> Done:
    program, *arguments = shlex.split(command, comments=True)
    assert program == "hetrun"
    require_device("cpu")
    if arguments[0] == "calibrate":  # a minute or more otherwise; what it finds is of no account here
        arguments += ["--quick", "--device", "cpu"]
    return hetrun(folder, *arguments, env={"HETRUN_CACHE": str(model.parent), "HETRUN_DATA": str(folder / "data")})


def test_readme_section_runs_from_top_to_bottom(smollm2_path: Path, tmp_path: Path) -> None:
    commands = readme_commands()
    assert len(commands) >= 6
    for command in commands:
        done = typed(command, tmp_path, smollm2_path)
        assert done.code == 0, f"{command}\n{done.err}"
        assert done.out.strip() or "--save" in command
    assert "Paris" in done.out and "which stood in" in done.err


@pytest.mark.parametrize("command", page_commands())
def test_example_of_the_page_runs(command: str, smollm2_path: Path, tmp_path: Path) -> None:
    done = typed(command, tmp_path, smollm2_path)
    assert done.code == (6 if command == REFUSED else 0), done.err


def test_page_lists_every_system() -> None:
    page = (ROOT / "docs" / "placement.md").read_text()
    assert [name for name in shipped("systems") if f"| `{name}` |" not in page] == []


def test_pages_table_has_every_shape_on_every_system() -> None:
    """Made by benchmarks/placement.py --write; a system or shape that is added later must be in it."""
    page = (ROOT / "docs" / "placement.md").read_text()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines() if line.startswith("|")}
    wanted = {(shape, system) for shape in ("smollm2-135m", "tinyllama", "llama2-7b") for system in shipped("systems")}
    assert wanted - rows == set()


def test_system_file_of_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "placement.md").read_text(), re.DOTALL)
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "my-board.toml").write_text((ROOT / "configs" / "devices" / "pynq-z1.toml").read_text())
    assert [d.id for d in load_system(tmp_path / "mine.toml").devices] == ["cpu", "model:my-board"]
