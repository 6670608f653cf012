"""Where the files that are no Python modules stand: configurations, native libraries, and what is kept for the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetrun.errors import DeviceError, HetrunError

if TYPE_CHECKING:
    import ctypes

_ROOT = Path(__file__).resolve().parent.parent
_CONFIGS = "hetrun/configs/"

Prototypes = Mapping[str, tuple[Any, Sequence[Any]]]
"""Result and arguments of functions of a library, as ctypes has them, by name."""


def resource_path(relative: str) -> Path:
    """The path of a file or folder that ships with hetrun.

    relative: its place in the wheel, such as "hetrun/configs/models.toml" or "hetrun_cpu/_native/libhetrun_cpu.so".
    A checkout's own `configs/` wins over an installed copy, so that an edit there is seen at once.
    HetrunError where no build or installation has put it anywhere.
    """
    candidates = [_ROOT / relative]
    if relative.startswith(_CONFIGS):
        candidates.append(_ROOT / "configs" / relative[len(_CONFIGS) :])
    for path in candidates:
        if path.exists():
            return path
    # An editable install keeps modules in the checkout and built files in site-packages. Reading the installation's
    # metadata takes tens of milliseconds, so it comes last.
    installed = _installed_path(relative)
    if installed is not None and installed.exists():
        return installed
    raise HetrunError(
        f"{relative}: not found beside {_ROOT / 'hetrun'} nor in an installation of hetrun",
        remedy='build and install it: "make dev" in a checkout, or "pip install --force-reinstall hetrun"',
    )


def data_dir() -> Path:
    """The folder of what hetrun keeps for the user: $HETRUN_DATA, else hetrun's place in the user's data."""
    named = os.environ.get("HETRUN_DATA")
    if named:
        return Path(named).expanduser()
    if sys.platform == "linux":
        return xdg_dir("XDG_DATA_HOME", ".local/share") / "hetrun"
    from platformdirs import user_data_path

    return user_data_path("hetrun", appauthor=False)


def xdg_dir(variable: str, default: str) -> Path:
    """A folder of the user by the rule that platformdirs follows on Linux, without its 38 ms import on the way to the
    first token.
    """
    named = os.environ.get(variable, "")
    return Path(named) if os.path.isabs(named) else Path.home() / default


def load_library(
    relative: str, variable: str, abi_function: str, abi: int, prototypes: Prototypes | None = None
) -> ctypes.CDLL:
    """A native library of a plugin, its functions with their prototypes.

    relative: as resource_path takes it.   variable: of the environment, which may name another build.
    abi_function: of the library, gives its version, which must be `abi`.
    HetrunError where it is not installed, DeviceError where it does not load, has another ABI or lacks a function.
    """
    import ctypes

    path = os.environ.get(variable)
    if path is None:
        path = str(resource_path(relative))
    remedy = "reinstall hetrun, or rebuild it with make"
    try:
        library = ctypes.CDLL(path)
        version = getattr(library, abi_function)()
    except (OSError, AttributeError) as error:
        raise DeviceError(f"{path} does not load: {error}", remedy=remedy) from error
    if version != abi:
        raise DeviceError(f"{path} has ABI {version}, this hetrun needs {abi}", remedy="reinstall hetrun")
    for name, (result, arguments) in (prototypes or {}).items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise DeviceError(f"{path} has no function {name}, though its ABI is {abi}", remedy=remedy) from error
        function.restype, function.argtypes = result, list(arguments)
    return library


def _installed_path(relative: str) -> Path | None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return Path(str(distribution("hetrun").locate_file(relative)))
    except PackageNotFoundError:
        return None
