"""Runs language models from GGUF files over a mix of devices.

    import hetrun

    with hetrun.load("smollm2-135m") as model:
        for piece in model.generate("The capital of France is", max_tokens=16):
            print(piece, end="", flush=True)

Importing the package imports nothing else: `hetrun.load` is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetrun.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    if name == "load":
        from hetrun.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
