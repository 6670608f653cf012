"""The cpu driver: finds the host's processor, prices ops on it, compiles segments for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hetrun.device import (
    API_VERSION,
    COMMON_SETTINGS,
    Cost,
    Device,
    DeviceInfo,
    MemorySpace,
    Program,
    Segment,
    Unavailable,
    Unsupported,
    Workload,
    roofline,
)
from hetrun.errors import DeviceError
from hetrun.ops import OP_TYPES, Attention, Op
from hetrun.tensor import Weight
from hetrun_cpu.host import MAX_THREADS, memory_bytes, processor_name, usable_cores, usable_cpus
from hetrun_cpu.program import SPACE, as_run, compile_segment
from hetrun_cpu.steps import DEQUANTISED_TYPES, FLOAT_TYPES, KV_FORMATS, QUANTISED_TYPES

# Threads wait for each other over a hundred times a token: where several take turns on a hardware thread, each wait is
# one of the system's switches. Some more may be meant, to see what their number does.
THREADS_A_CPU = 4
SETTINGS = ("threads", "isa")
TYPES = FLOAT_TYPES | QUANTISED_TYPES | DEQUANTISED_TYPES

# analytic: orders of magnitude of a current core, until `hetrun calibrate` measures them: int8 products,
# the memory's share of one core, the barrier and loop overhead of a step.
FLOPS_PER_S_CORE = {
    "generic": 1.0e10, "avx2": 6.0e10, "avxvnni": 8.0e10, "avx512": 1.0e11, "avx512_bf16": 1.0e11, "amx": 3.0e11,
    "neon": 8.0e9, "dotprod": 3.0e10, "i8mm": 3.0e10,
}  # fmt: skip
BYTES_PER_S_CORE = {
    "generic": 4.0e9, "avx2": 1.0e10, "avxvnni": 1.0e10, "avx512": 1.5e10, "avx512_bf16": 1.5e10, "amx": 1.5e10,
    "neon": 2.0e9, "dotprod": 8.0e9, "i8mm": 8.0e9,
}  # fmt: skip
OP_S = 1.0e-6
LAUNCH_S = 1.0e-6
BASIS = "analytic:cpu driver's defaults per core"


class CpuDriver:
    """One device, "cpu:0".

    Settings: threads (up to 4 a hardware thread; default: the physical cores at hand), isa ("generic", "avx2",
    "avxvnni", "avx512", "avx512_bf16", "amx", "neon", "dotprod", "i8mm"; default: HETRUN_CPU_ISA in the environment,
    else the best here).

    Results depend on the instruction set, but not on the number of threads, and a prefill of n tokens gives the bits of
    n single steps: a row's order of operations follows from its shape alone.
    """

    name = "cpu"
    api_version = API_VERSION

    def probe(self, config: Mapping[str, object]) -> Sequence[DeviceInfo]:
        from hetrun_cpu import native

        problem = native.library_problem()
        isas = () if problem else native.isa_names()
        isa = config.get("isa") or os.environ.get("HETRUN_CPU_ISA") or (isas[-1] if isas else "generic")
        threads = config.get("threads", None)
        if threads is None:
            threads = usable_cores()
        unavailable = None
        if problem:
            unavailable = Unavailable(problem.message, problem.remedy or "reinstall hetrun")
        else:
            unavailable = _bad_settings(config, threads, str(isa), isas)
        n_threads = threads if isinstance(threads, int) and 1 <= threads <= most_threads() else 1
        known = str(isa) if isa in native.ISA_NAMES else "generic"
        return [
            DeviceInfo(
                id="cpu:0",
                description=f"{processor_name()}, {n_threads} thread{'s' if n_threads > 1 else ''}, {known}",
                backing="hardware",
                spaces=(MemorySpace(SPACE, memory_bytes()),),
                launch=Cost(LAUNCH_S, BASIS),
                model={
                    "flops_per_s": FLOPS_PER_S_CORE[known] * n_threads,
                    "bytes_per_s": BYTES_PER_S_CORE[known] * n_threads,
                    "op_s": OP_S,
                    "threads": float(n_threads),
                    "isa": float(native.ISA_NAMES.index(known)),
                },
                unavailable=unavailable,
            )
        ]

    def estimate(self, info: DeviceInfo, op: Op, workload: Workload) -> Cost | Unsupported:
        reason = _refusal(op)
        return Unsupported(reason) if reason else roofline(as_run(op), workload, info, BASIS)

    def compile(self, info: DeviceInfo, segment: Segment) -> Program:
        """DeviceError where an op is one that `estimate` refuses."""
        for op in segment.ops:
            reason = _refusal(op)
            if reason:
                raise DeviceError(f"{op.name}: {reason}")
        return compile_segment(segment)

    def open(self, info: DeviceInfo) -> Device:
        """DeviceError where the device is unavailable, or the system refuses its threads."""
        if info.unavailable:
            raise DeviceError(f"{info.id}: {info.unavailable.reason}", remedy=info.unavailable.remedy)
        if info.backing == "modelled":
            raise DeviceError(f"{info.id} is only modelled", remedy='run on "cpu", or plan without running')
        from hetrun_cpu.device import CpuDevice

        return CpuDevice(info)


def most_threads() -> int:
    """More are refused."""
    return min(MAX_THREADS, max(2, len(usable_cpus())) * THREADS_A_CPU)


def _bad_settings(config: Mapping[str, object], threads: object, isa: str, isas: Sequence[str]) -> Unavailable | None:
    unknown = sorted(set(config) - set(SETTINGS) - COMMON_SETTINGS)
    if unknown:
        return Unavailable(f"unknown setting {unknown[0]!r}", f"settings of cpu: {', '.join(SETTINGS)}")
    most = most_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= most:
        fastest = f"{usable_cores()}, one a core, should be fastest"
        return Unavailable(f"{threads!r} threads", f"choose a whole number of threads from 1 to {most}; {fastest}")
    if isa not in isas:
        return Unavailable(f"this machine cannot run instruction set {isa!r}", f"choose one of {', '.join(isas)}")
    return None


def _refusal(op: Op) -> str | None:
    if OP_TYPES.get(op.kind) is not type(op):
        return f"the cpu device has no op {op.kind!r}"
    for weight in op.weights:
        reason = _weight_refusal(weight)
        if reason:
            return reason
    if isinstance(op, Attention):
        if op.kv.format not in KV_FORMATS:
            return f"KV format {op.kv.format!r}; the cpu device has {', '.join(KV_FORMATS)}"
        return op.kv.format_refusal
    return None


def _weight_refusal(weight: Weight) -> str | None:
    if weight.type.name not in TYPES:
        return f"{weight.name} has type {weight.type}; the cpu device has {', '.join(sorted(TYPES))}"
    if weight.shape[-1] % weight.type.block_size:
        block = f"{weight.type}'s block of {weight.type.block_size}"
        return f"{weight.name} has rows of {weight.shape[-1]}, no multiple of {block}"
    return None
