"""docs/plugins.md shows the example plugin as it is, and the example passes the kit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformance.test_kit import SUITE, Kit

from hetrun.config import load_system
from hetrun.toml_table import read_toml

pytest_plugins = ["pytester"]

EXAMPLE = Path("examples/hetrun_example_device")


def blocks(checkout: Path, language: str) -> list[str]:
    page = (checkout / "docs" / "plugins.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_python_is_the_examples(checkout: Path) -> None:
    module = (checkout / EXAMPLE / "hetrun_example_device.py").read_text()
    shown = blocks(checkout, "python")
    assert len(shown) >= 6
    assert [block for block in shown if block not in module] == []


def test_entry_point_is_the_examples(checkout: Path) -> None:
    assert blocks(checkout, "toml")[0] in (checkout / EXAMPLE / "pyproject.toml").read_text()


def test_system_file_is_valid(checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(blocks(checkout, "toml")[1])
    board = tmp_path / "my-board.toml"
    board.write_text((checkout / "configs" / "devices" / "pynq-z1.toml").read_text())
    assert load_system(path).drivers == {"modelled": {"profiles": [str(board)]}}


def test_report_is_what_the_kit_prints(
    checkout: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example passes, and the report that the page shows is the one that it gets."""
    monkeypatch.syspath_prepend(checkout / EXAMPLE)
    result = Kit(pytester).run(SUITE, "--hetrun-plugin", "hetrun_example_device", device="example")
    assert result.ret == pytest.ExitCode.OK
    (report,) = blocks(checkout, "text")
    result.stdout.fnmatch_lines(report.splitlines())


def test_options_of_the_page_exist(checkout: Path, pytester: pytest.Pytester) -> None:
    page = (checkout / "docs" / "plugins.md").read_text()
    options = set(re.findall(r"--hetrun-\w+", page))
    printed = Kit(pytester).run("--help", device=None).stdout.str()
    assert options and [option for option in options if option not in printed] == []


def test_example_needs_few_lines(checkout: Path) -> None:
    """One module that is read in one sitting, and a few lines of TOML."""
    folder = checkout / EXAMPLE
    assert len((folder / "hetrun_example_device.py").read_text().splitlines()) <= 250
    assert read_toml(folder / "pyproject.toml")["tool"]["setuptools"] == {"py-modules": ["hetrun_example_device"]}
