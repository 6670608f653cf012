"""What docs/pynq-z1.md says about an accelerator of one's own, typed: a copy of the plugin is a plugin."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from require import require_tool

import hetrun
import hetrun_cpu
import hetrun_modelled
import hetrun_pynq_z1

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "pynq-z1.md").read_text().partition("\n## Your own accelerator")[2]


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return str(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hetrun, its plugins and the copy, as an environment has them side by side."""
    require_tool("cmake", "apt install cmake")
    folder, site = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("site")
    subprocess.run(["bash", "-ec", block("sh")], cwd=folder, env={**os.environ, "HETRUN": str(ROOT)}, check=True)
    (folder / "pyproject.toml").write_text(block("toml"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target", str(site)]
    done = subprocess.run([*install, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for package in (hetrun, hetrun_cpu, hetrun_modelled, hetrun_pynq_z1):
        assert package.__file__
        source = Path(package.__file__).parent
        shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return site


def python(site: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=site, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_a_copy_passes_the_conformance_kit(site: Path) -> None:
    suite = ["--pyargs", "hetrun.testing.suite", "-q", "-p", "no:cacheprovider"]
    out = python(site, "-m", "pytest", *suite, "--hetrun-device", "mine-z1:csim")
    assert re.search(r"mine-z1:csim \(emulated\): 66 of \d+ op cases ran on the device", out), out[-3000:]


def test_a_copy_is_explored_and_built(site: Path, tmp_path: Path) -> None:
    few = ["--set", "lanes=64", "--set", "ports=2", "--set", "fifo_words=128", "--set", "clock_mhz=125"]
    assert "s/token" in python(site, "-m", "hetrun", "explore", "mine-z1", "--shape", "smollm2-135m", *few)
    python(site, "-m", "hetrun", "build", "mine-z1", "--out", str(tmp_path / "project"))
    assert "HETRUN_MINE_LANES" in (tmp_path / "project" / "hls" / "engine.h").read_text()
