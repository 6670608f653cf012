"""The driver of the reference device. Imports no NumPy: that waits until a device is opened."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from hetrun.device import (
    API_VERSION,
    Cost,
    DeviceInfo,
    KvSpec,
    MemorySpace,
    Segment,
    Unavailable,
    Unsupported,
    Workload,
    check_settings,
    residents,
    roofline,
)
from hetrun.errors import ConfigError, DeviceError
from hetrun.ops import OP_TYPES, Op
from hetrun.reference.program import KV_STORED_AS, ReferenceProgram
from hetrun.tensor import ENCODED_TYPES, TENSOR_TYPES, Weight

if TYPE_CHECKING:
    from hetrun.device import Device

OWN_TYPES = frozenset(
    ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
GGUF_TYPES = frozenset(
    (
        *("IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS", "IQ4_NL", "IQ4_XS"),
        *("MXFP4", "NVFP4", "TQ1_0", "TQ2_0"),
    ),
)
"""Types that only `gguf.quants.dequantize` gives a meaning to."""

# analytic: float32 matrix products of NumPy and Python's overhead an op, on a small core. Low on purpose: no plan is to
# prefer the reference to a device that was made to be fast.
MODEL = {"flops_per_s": 1e9, "bytes_per_s": 1e9, "op_s": 1e-4, "launch_s": 1e-4}
BASIS = "analytic:float32 NumPy"


class ReferenceDriver:
    """Runs every op in NumPy, on the host, as `hetrun.reference.ops` defines it."""

    name = "reference"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        """One device. `config` may set the numbers of `MODEL`; ConfigError where one is not positive."""
        model = {**MODEL, **_numbers(config)}
        unavailable = None
        if importlib.util.find_spec("numpy") is None:
            unavailable = Unavailable("NumPy is not installed", 'run "pip install numpy"')
        info = DeviceInfo(
            id="reference:0",
            description="the meaning of every op, in float32 NumPy: slow and exact",
            backing="hardware",
            spaces=(MemorySpace("host", _memory_bytes()),),
            launch=Cost(model["launch_s"], BASIS),
            model=model,
            unavailable=unavailable,
        )
        return [info]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        if OP_TYPES.get(op.kind) is not type(op):
            return Unsupported(f"no meaning for op {op.kind}")
        for weight in op.weights:
            if weight.type.name not in OWN_TYPES | GGUF_TYPES | ENCODED_TYPES.keys():
                return Unsupported(f"no meaning for tensor type {weight.type.name}")
        kv = getattr(op, "kv", None)
        if isinstance(kv, KvSpec):
            if kv.format not in KV_STORED_AS:
                return Unsupported(f"no KV format {kv.format}; there is {', '.join(KV_STORED_AS)}")
            if kv.format_refusal:
                return Unsupported(kv.format_refusal)
        return roofline(_as_stored(op), workload, info, BASIS)

    def compile(self, info: DeviceInfo, segment: Segment) -> ReferenceProgram:
        """DeviceError for an op that `estimate` refuses."""
        resident: dict[tuple[str, str], int] = {}
        for op in segment.ops:
            cost = self.estimate(info, op, Workload(1, 0))
            if isinstance(cost, Unsupported):
                raise DeviceError(f"{info.id}: {op.name}: {cost.reason}")
            resident.update(residents(_as_stored(op), info.spaces[-1].name))
        return ReferenceProgram(segment, resident)

    def open(self, info: DeviceInfo) -> Device:
        if info.unavailable is not None:
            raise DeviceError(f"{info.id}: {info.unavailable.reason}", remedy=info.unavailable.remedy)
        if info.backing == "modelled":
            raise DeviceError(f"{info.id}: a modelled device can be planned for, not run")
        from hetrun.reference.device import ReferenceDevice

        return ReferenceDevice(info)


def _as_stored(op: Op) -> Op:
    """The op as the reference holds its constants: weights in float32, the KV cache in a NumPy type."""
    stored: dict[str, Any] = {}
    for name in (f.name for f in fields(op)):
        value = getattr(op, name)
        if isinstance(value, Weight):
            stored[name] = replace(value, type=TENSOR_TYPES["F32"])
        elif isinstance(value, KvSpec):
            stored[name] = replace(value, format=KV_STORED_AS[value.format])
    return replace(op, **stored) if stored else op


def _numbers(config: Mapping[str, object]) -> dict[str, float]:
    """The numbers of the model that a configuration sets."""
    check_settings(ReferenceDriver.name, config, MODEL)
    numbers: dict[str, float] = {}
    for key in MODEL.keys() & config.keys():
        value = config[key]
        if not isinstance(value, (int, float)) or not value > 0:
            raise ConfigError(f"reference: {key} = {value!r} is no positive number", remedy=f"try {key} = {MODEL[key]}")
        numbers[key] = float(value)
    return numbers


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
