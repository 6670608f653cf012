"""Imports run one way through the core, and devices get nothing that a third party does not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A part of the core imports parts before it, and itself. Its place is the one of the design.
CORE = [
    "errors", "free_list", "native", "resources", "tensor", "ops", "device", "toml_table", "config", "hookspecs",
    "calibration", "plugins", "graph", "model", "plan", "run", "measure", "api", "compress", "view", "cli",
]  # fmt: skip
CONTRACT = set(CORE[: CORE.index("hookspecs") + 1])
ALLOWED: dict[str, set[str]] = {part: set(CORE[: i + 1]) for i, part in enumerate(CORE)}
ALLOWED["reference"] = CONTRACT | {"reference"}
ALLOWED["testing"] = CONTRACT | {"plugins", "reference", "testing"}
ALLOWED["compress"] |= {"reference"}
ALLOWED["cli"] |= {"reference", "testing"}
ALLOWED["__main__"] = {"cli"}
# The package itself names hetrun.load, and finds it when it is used.
ALLOWED["__init__"] = {"api"}


def imported_parts(source: Path, module: str, package: bool) -> Iterator[tuple[int, str]]:
    """(line, part) of every import of hetrun in a file, those inside functions too."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names = alias.name.split(".")
                if names[0] == "hetrun" and len(names) > 1:
                    yield node.lineno, names[1]
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + (1 if package else 0)
                base = parents[:keep] + base
            if not base or base[0] != "hetrun":
                continue
            if len(base) > 1:
                yield node.lineno, base[1]
                continue
            for alias in node.names:
                if alias.name != "__version__":
                    yield node.lineno, "api" if alias.name == "load" else alias.name


def modules(folder: Path, name: str) -> Iterator[tuple[Path, str, bool]]:
    """(file, dotted name, is a package) of every module of a package."""
    for path in sorted(folder.rglob("*.py")):
        parts = [name, *path.relative_to(folder).with_suffix("").parts]
        package = parts[-1] == "__init__"
        yield path, ".".join(parts[:-1] if package else parts), package


def violations(root: Path) -> list[str]:
    """One line for each import in a source tree that the order forbids."""
    found: list[str] = []
    for path, module, package in modules(root / "hetrun", "hetrun"):
        part = module.split(".")[1] if "." in module else "__init__"
        if part not in ALLOWED:
            found.append(f"{path.relative_to(root)}: {part} has no place in the import order")
            continue
        found += _forbidden(root, path, module, package, ALLOWED[part])
    for plugin in sorted((root / "plugins").glob("*/hetrun_*")):
        for path, module, package in modules(plugin, plugin.name):
            # The module of hooks may answer the conformance kit, too.
            allowed = CONTRACT | {"testing"} if path.name == "plugin.py" else CONTRACT
            found += _forbidden(root, path, module, package, allowed)
    return found


def _forbidden(root: Path, path: Path, module: str, package: bool, allowed: set[str]) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: imports hetrun.{part}"
        for line, part in imported_parts(path, module, package)
        if part not in allowed
    ]


def test_imports_run_one_way(checkout: Path) -> None:
    assert violations(checkout) == []


@pytest.mark.parametrize(
    ("path", "code", "found"),
    [
        ("hetrun/tensor.py", "from hetrun.ops import Op", "hetrun/tensor.py:1: imports hetrun.ops"),
        ("hetrun/tensor.py", "import hetrun.ops", "hetrun/tensor.py:1: imports hetrun.ops"),
        ("hetrun/tensor.py", "from hetrun import ops", "hetrun/tensor.py:1: imports hetrun.ops"),
        ("hetrun/tensor.py", "from hetrun import load", "hetrun/tensor.py:1: imports hetrun.api"),
        ("hetrun/tensor.py", "from . import ops", "hetrun/tensor.py:1: imports hetrun.ops"),
        ("hetrun/tensor.py", "def f():\n    from hetrun.run import x", "hetrun/tensor.py:2: imports hetrun.run"),
        ("hetrun/graph/a.py", "from ..model import b", "hetrun/graph/a.py:1: imports hetrun.model"),
        ("hetrun/graph/__init__.py", "from ..model import b", "hetrun/graph/__init__.py:1: imports hetrun.model"),
        ("hetrun/plan/a.py", "import hetrun.reference.ops", "hetrun/plan/a.py:1: imports hetrun.reference"),
        ("hetrun/reference/a.py", "from hetrun.graph import g", "hetrun/reference/a.py:1: imports hetrun.graph"),
        ("hetrun/testing/a.py", "from hetrun.run import s", "hetrun/testing/a.py:1: imports hetrun.run"),
        ("plugins/x/hetrun_x/d.py", "from hetrun.plan import p", "plugins/x/hetrun_x/d.py:1: imports hetrun.plan"),
        (
            "plugins/x/hetrun_x/d.py",
            "from hetrun.testing import E",
            "plugins/x/hetrun_x/d.py:1: imports hetrun.testing",
        ),
        ("hetrun/helpers.py", "", "hetrun/helpers.py: helpers has no place in the import order"),
    ],
)
def test_wrong_import_is_found(tmp_path: Path, path: str, code: str, found: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    assert violations(tmp_path) == [found]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("hetrun/ops/op.py", "from hetrun.errors import E\nfrom hetrun.tensor import T"),
        ("hetrun/ops/op.py", "from hetrun import __version__"),
        ("hetrun/run/a.py", "from . import b\nfrom .b import c\nfrom ..plan.place import p"),
        ("hetrun/testing/a.py", "from hetrun.plugins import p\nfrom hetrun.reference import r"),
        ("plugins/x/hetrun_x/d.py", "from hetrun.device import D\nfrom hetrun_x.e import f\nimport numpy"),
        ("plugins/x/hetrun_x/plugin.py", "from hetrun.testing import Expectations"),
    ],
)
def test_right_import_passes(tmp_path: Path, path: str, code: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    assert violations(tmp_path) == []


def test_importing_hetrun_loads_no_other_package() -> None:
    code = (
        "import sys; before = set(sys.modules); import hetrun; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hetrun"]


def test_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    import hetrun

    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        hetrun.lod  # noqa: B018
