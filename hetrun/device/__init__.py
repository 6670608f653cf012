"""The device contract: what a plugin implements, and the values that cross it.

Planning needs no hardware: everything that can be pure is on `Driver`, and hardware is touched only behind `open`.
Refusal and cost are one answer (`estimate`), so that they cannot disagree. Data crosses as `memoryview`s: wrap them
with `numpy.frombuffer` or `numpy.asarray` where NumPy is wanted. Plugins import every name from here.

    info.py      what a device is, where its memory lies, what work costs
    driver.py    `Driver`, the half that needs no hardware, and what it may offer
    run.py       `Device`, and what runs on it
    hardware.py  projects and designs, for `hetrun build` and `hetrun explore`
    settings.py  what a probe is given

Rules that the conformance kit (`hetrun.testing`) checks:
- All keys and values of a batch are written before any query is answered; the positions of a slot ascend without gaps.
- Values crossing segments are float32; a device quantises inside, once a value and segment. Zero rows are legal.
- What `estimate` accepts compiles, in any run of ops.
- `synchronize` finishes every run; runs of one device keep their order.
- Packing of weights depends on the weight alone, the layout of a State on its KvSpec alone.
- `DeviceError`, before anything is written, for a batch larger than the segment's or outside a cache, for a weight that
  is missing or too short, and for every use of a buffer, state, executable or device after its `close`.
"""

from hetrun.device.driver import API_VERSION, Described, Detail, Driver, Fusing
from hetrun.device.hardware import (
    BuildStep,
    DesignPoint,
    DesignSpace,
    HardwareSources,
    Resource,
    check_parameters,
    project_files,
)
from hetrun.device.info import (
    Basis,
    Cost,
    DeviceInfo,
    Link,
    MemorySpace,
    Unavailable,
    Unsupported,
    residents,
    roofline,
)
from hetrun.device.run import (
    Batch,
    Bindings,
    Buffer,
    Device,
    Executable,
    Profiled,
    Program,
    RunEvent,
    Segment,
    State,
    StepTimes,
)
from hetrun.device.settings import COMMON_SETTINGS, check_settings, host_threads, threads_problem
from hetrun.ops import KvSpec, Workload

__all__ = [
    "API_VERSION", "COMMON_SETTINGS", "Basis", "Batch", "Bindings", "Buffer", "BuildStep", "Cost", "Described",
    "DesignPoint", "DesignSpace", "Detail", "Device", "DeviceInfo", "Driver", "Executable", "Fusing", "HardwareSources",
    "KvSpec", "Link", "MemorySpace", "Profiled", "Program", "Resource", "RunEvent", "Segment", "State", "StepTimes",
    "Unavailable", "Unsupported", "Workload", "check_parameters", "check_settings", "host_threads", "project_files",
    "residents", "roofline", "threads_problem",
]  # fmt: skip
