"""Emulated ARM boards: a Debian Python of the board's architecture under qemu-user, with hetrun's own wheel for it.

Nothing is installed on the host and nothing runs as root: apt resolves and fetches the packages into a folder, and they
are unpacked there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import require

PACKAGES = (
    "libpython3-stdlib",
    "python3-click",
    "python3-hypothesis",
    "python3-minimal",
    "python3-numpy",
    "python3-platformdirs",
    "python3-pytest",
    "python3-tqdm",
    "python3-yaml",
)


@dataclass(frozen=True)
class Architecture:
    """target: as HETRUN_TARGET and wheel tags name it.   debian: as Debian names it.   machine: of its ELF files."""

    target: str
    debian: str
    triplet: str
    qemu: str
    machine: str

    @property
    def compiler(self) -> str:
        return f"{self.triplet}-g++"


ARCHITECTURES = (
    Architecture("armv7l", "armhf", "arm-linux-gnueabihf", "qemu-arm", "ARM"),
    Architecture("aarch64", "arm64", "aarch64-linux-gnu", "qemu-aarch64", "AArch64"),
)


def build_wheel(architecture: Architecture, checkout: Path, folder: Path) -> Path:
    """The wheel for an architecture, as docs/arm.md says to build it."""
    require.require_tool(architecture.compiler, f"sudo apt-get install -y g++-{architecture.triplet}")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(checkout)]
    environment = {**os.environ, "HETRUN_TARGET": architecture.target}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"pip wheel for {architecture.target}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def debian_root(architecture: Architecture, folder: Path) -> Path:
    """A folder tree with Python and NumPy for an architecture, made in `folder` once."""
    root, stamp = folder / "root", folder / "complete"
    if stamp.exists() and stamp.read_text() == "\n".join(PACKAGES):
        return root
    for tool in ("apt-get", "dpkg-deb"):
        require.require_tool(tool, "use Debian or Ubuntu")
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("root", "state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "state/status").touch()
    apt = [
        "apt-get",
        "--quiet",
        *(f"--option={option}" for option in (
            f"APT::Architecture={architecture.debian}",
            f"APT::Architectures={architecture.debian}",
            f"Dir::State={folder}/state",
            f"Dir::State::status={folder}/state/status",
            f"Dir::Cache={folder}/cache",
            *_sources(folder),
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "APT::Sandbox::User=root",
            "Debug::NoLocking=1",
        )),
    ]  # fmt: skip
    # A source that has no such architecture, or is just being mirrored, fails here; what counts is the next command.
    subprocess.run([*apt, "update"], capture_output=True)
    install = [*apt, "--no-install-recommends", "--download-only", "--yes", "install", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["apt-get failed"])[-1]
        require.missing(
            f"Python for {architecture.debian} ({reason})",
            f"a Debian mirror with {architecture.debian} packages in /etc/apt/sources.list.d",
        )
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    libraries = root / "usr/lib" / architecture.triplet
    for library in (*libraries.glob("blas/lib*.so.3"), *libraries.glob("lapack/lib*.so.3")):
        (libraries / library.name).symlink_to(library.relative_to(libraries))  # as update-alternatives does
    shutil.rmtree(folder / "cache")
    shutil.rmtree(folder / "state")
    stamp.write_text("\n".join(PACKAGES))
    return root


def _sources(folder: Path) -> list[str]:
    """apt's options for where packages come from: the system's own sources, but Ubuntu keeps ARM on another server."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "ubuntu":
        return []
    sources = folder / "sources.list"
    keyring = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
    suite = f"http://ports.ubuntu.com/ubuntu-ports {release['VERSION_CODENAME']} main universe"
    sources.write_text(f"deb [signed-by={keyring}] {suite}\n")
    return [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null"]


@dataclass(frozen=True)
class Board:
    """Runs Python programs as a board of an architecture would. root, site: its Debian tree, the unpacked wheel."""

    architecture: Architecture
    root: Path
    site: Path

    @classmethod
    def make(cls, architecture: Architecture, root: Path, wheel: Path, site: Path) -> Board:
        require.require_tool(architecture.qemu, "sudo apt-get install -y qemu-user")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        # The gguf package, which the oracles read blocks with, is pure Python: the host's serves.
        gguf = find_spec("gguf")
        assert gguf is not None
        assert gguf.submodule_search_locations is not None
        (site / "gguf").symlink_to(gguf.submodule_search_locations[0])
        return cls(architecture, root, site)

    def python(self, cpu: str, *args: str, timeout_s: float = 500) -> str:
        """stdout of the board's Python.   cpu: a name that qemu knows."""
        environment = {
            "HOME": str(self.site),
            "PATH": os.environ["PATH"],
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": f"{self.site}:{self.root}/usr/lib/python3/dist-packages",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        interpreter = str(self.root / "usr/bin/python3")
        command = [self.architecture.qemu, "-cpu", cpu, "-L", str(self.root), interpreter, *args]
        done = subprocess.run(
            command, cwd=self.site, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode:
            pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout
