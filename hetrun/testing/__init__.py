"""The conformance kit: what any device must do, as a pytest plugin that needs no test code from the device's author.

    pytest --pyargs hetrun.testing.suite --hetrun-device ID

The oracle is `hetrun.testing.oracle`, float64 formulas of its own on weights that the `gguf` package dequantised, so
the reference device is held to it like any other.
"""

from hetrun.testing.expectations import Expectations

__all__ = ["Expectations"]
