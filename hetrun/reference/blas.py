"""How many threads NumPy's matrix products use. OpenBLAS lets its threads poll for tens of milliseconds after each
product: beside a device that has threads of its own, each then waits for the other's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

# The names of NumPy's wheels (since 1.26, and before) and of Linux distributions.
_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's products run on the caller's thread alone meanwhile, where its library is an OpenBLAS."""
    functions = _openblas()
    if functions is None:
        yield
        return
    get, put = functions
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """The functions that read and set the number of threads, of the library that is loaded."""
    for path in _loaded("openblas"):
        library = ctypes.CDLL(path)
        for name in _NAMES:
            if hasattr(library, name.format("get")) and hasattr(library, name.format("set")):
                return library[name.format("get")], library[name.format("set")]
    return None


def _loaded(part: str) -> list[str]:
    """Paths of the libraries of this process that have `part` in their name; none where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            paths = [line.split(maxsplit=5)[-1].rstrip("\n") for line in file if part in line]
    except OSError:
        return []
    return list(dict.fromkeys(path for path in paths if part in path.rpartition("/")[2]))
