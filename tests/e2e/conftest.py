"""A wheel of this checkout, and clean environments that it is installed in."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import require


@dataclass(frozen=True)
class Environment:
    """A virtual environment whose programs run outside the checkout, with nothing of ours on sys.path."""

    root: Path

    def run(self, program: str, *args: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        done = subprocess.run(
            [str(self.root / "bin" / program), *args],
            cwd=self.root,
            env={**clean, **env},
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            pytest.fail(f"{program} {' '.join(args)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def python(self, code: str) -> str:
        """stdout of `code`."""
        return self.run("python", "-c", code).stdout.strip()

    def pip_install(self, *args: str) -> None:
        """Installs from the package index; without one the test is skipped."""
        done = self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *args, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            if any("No matching distribution" in line or "onnection" in line for line in lines):
                require.missing(f"a package index ({lines[-1]})", f"pip install {' '.join(args)}")
            pytest.fail(f"pip install {' '.join(args)}\n{done.stdout}{done.stderr}")


def make_environment(root: Path) -> Environment:
    done = subprocess.run([sys.executable, "-m", "venv", str(root)], capture_output=True, text=True)
    if done.returncode:
        require.missing("the module venv", "sudo apt-get install -y python3-venv")
    return Environment(root)


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"pip wheel: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A clean environment that holds hetrun and what it depends on. Tests leave it as it is."""
    environment = make_environment(tmp_path_factory.mktemp("installed"))
    environment.pip_install(str(wheel))
    return environment


@pytest.fixture
def fresh_installed(wheel: Path, tmp_path: Path) -> Environment:
    """The same, for one test alone, which may install more."""
    environment = make_environment(tmp_path / "environment")
    environment.pip_install(str(wheel))
    return environment


@pytest.fixture(scope="session")
def editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with an editable install of this checkout and none of its dependencies."""
    environment = make_environment(tmp_path_factory.mktemp("editable"))
    environment.pip_install("--no-deps", "--editable", str(checkout))
    return environment
