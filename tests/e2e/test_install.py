"""What a user gets from `pip install`: the whole package, found from anywhere, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

LIBRARIES = {
    "core": "hetrun/_native/libhetrun_core.so",
    "cpu": "hetrun_cpu/_native/libhetrun_cpu.so",
    "pynq_z1": "hetrun_pynq_z1/_native/libhetrun_pynq_z1.so",
    "alveo_u280": "hetrun_alveo_u280/_native/libhetrun_alveo_u280.so",
}

BUILT = {".pyc", ".so"}


def built_libraries(checkout: Path) -> list[str]:
    return [path for part, path in LIBRARIES.items() if (checkout / "kernels" / part / "CMakeLists.txt").exists()]


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_serves_every_python_of_the_platform(wheel: Path) -> None:
    assert re.fullmatch(r"hetrun-[0-9.]+-py3-none-(linux|macosx)_\w+\.whl", wheel.name)


def test_wheel_holds_its_packages_and_no_more(members: set[str]) -> None:
    tops = {name.split("/")[0] for name in members if ".dist-info/" not in name}
    assert tops <= {"hetrun", "hetrun_alveo_u280", "hetrun_cpu", "hetrun_modelled", "hetrun_pynq_z1"}


def test_wheel_holds_every_module(checkout: Path, members: set[str]) -> None:
    sources = {f"hetrun/{path.relative_to(checkout / 'hetrun')}" for path in (checkout / "hetrun").rglob("*.py")}
    for package in (checkout / "plugins").glob("*/hetrun_*"):
        sources |= {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}
    assert sources - members == set()


def test_wheel_holds_configs_licence_and_type_marker(checkout: Path, members: set[str]) -> None:
    folder = checkout / "configs"
    configs = {f"hetrun/configs/{path.relative_to(folder)}" for path in folder.rglob("*.toml")}
    assert configs - members == set()
    assert "hetrun/py.typed" in members
    assert any(name.endswith("licenses/LICENSE") for name in members)


def test_wheel_holds_the_native_libraries(checkout: Path, members: set[str]) -> None:
    assert set(built_libraries(checkout)) - members == set()


def test_wheel_holds_hardware_sources_but_no_others(members: set[str]) -> None:
    """Those that a user may synthesize, and that the driver reads its registers from."""
    sources = {name for name in members if name.endswith((".cpp", ".h", ".o", ".a", "CMakeLists.txt"))}
    engines = ("hetrun_alveo_u280", "hetrun_pynq_z1")
    folders = tuple(f"{engine}/_sources/{part}/" for engine in engines for part in ("hls", "fabric"))
    assert {f"{engine}/_sources/hls/engine.h" for engine in engines} <= sources
    assert {name for name in sources if not name.startswith(folders)} == set()


def test_source_archive_holds_what_the_build_needs(checkout: Path, tmp_path: Path, require_module: Any) -> None:
    require_module("build", "pip install '.[dev]'")
    require_module("scikit_build_core", "pip install '.[dev]'")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check"]
    subprocess.run([*command, "--outdir", str(tmp_path), str(checkout)], check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"}
    for folder in ("hetrun", "plugins", "kernels", "configs"):
        files = (path for path in (checkout / folder).rglob("*") if path.is_file() and path.suffix not in BUILT)
        needed |= {str(path.relative_to(checkout)) for path in files}
    assert needed - names == set()


def test_installed_package_is_not_the_checkout(installed: Any) -> None:
    assert Path(installed.python("import hetrun; print(hetrun.__file__)")).is_relative_to(installed.root)


def test_installed_version_is_the_packages(installed: Any) -> None:
    code = "import hetrun, importlib.metadata as m; print(hetrun.__version__ == m.version('hetrun'))"
    assert installed.python(code) == "True"


def test_dependencies_agree(installed: Any) -> None:
    installed.run("python", "-m", "pip", "check")


def resources(checkout: Path) -> list[str]:
    return ["hetrun/configs/models.toml", *built_libraries(checkout)]


@pytest.mark.parametrize("environment", ["installed", "editable"])
def test_every_resource_is_found(environment: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    env = request.getfixturevalue(environment)
    for relative in resources(checkout):
        path = Path(env.python(f"from hetrun.resources import resource_path; print(resource_path({relative!r}))"))
        assert path.is_file(), relative


@pytest.mark.parametrize("environment", ["installed", "editable"])
def test_native_libraries_load(environment: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    env = request.getfixturevalue(environment)
    for relative in built_libraries(checkout):
        env.python(
            f"import ctypes; from hetrun.resources import resource_path; ctypes.CDLL(str(resource_path({relative!r})))"
        )


def test_editable_install_reads_the_checkouts_configs(editable: Any, checkout: Path) -> None:
    code = "from hetrun.resources import resource_path; print(resource_path('hetrun/configs/models.toml'))"
    assert editable.python(code) == str(checkout / "configs" / "models.toml")


def test_missing_resource_says_what_to_do(installed: Any) -> None:
    code = (
        "from hetrun.errors import HetrunError; from hetrun.resources import resource_path\n"
        "try: resource_path('hetrun/_native/libnone.so')\n"
        "except HetrunError as error: print(error)"
    )
    said = installed.python(code)
    assert said.startswith("hetrun/_native/libnone.so: not found beside ")
    assert 'pip install --force-reinstall hetrun"' in said


LOAD_ENTRY_POINTS = """
from importlib.metadata import distribution
points = [point for point in distribution("hetrun").entry_points if point.group == "{group}"]
assert points
for point in points:
    point.load()
"""


@pytest.mark.parametrize("group", ["hetrun", "console_scripts"])
def test_every_entry_point_loads(installed: Any, group: str) -> None:
    installed.python(LOAD_ENTRY_POINTS.format(group=group))


def test_pytest_plugin_loads(fresh_installed: Any) -> None:
    fresh_installed.pip_install("pytest")
    fresh_installed.python(LOAD_ENTRY_POINTS.format(group="pytest11"))


def test_command_answers_outside_the_checkout(installed: Any) -> None:
    assert "generate" in installed.run("hetrun", "--help").stdout
