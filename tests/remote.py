"""Devices whose memory the reference cannot simply share: for copies and shared memory without hardware.

Each wraps the reference and gives its values a space of their own. `behind` is discrete: no host view, links with a
cost. `beside` is an overlay on the host's memory: the host sees its buffers, but it takes no others.
"""

from __future__ import annotations

from dataclasses import replace

from hetrun.device import API_VERSION, Bindings, Cost, DeviceInfo, Link, MemorySpace
from hetrun.errors import DeviceError
from hetrun.plugins import FoundDevice
from hetrun.reference.driver import ReferenceDriver


class RemoteBuffer:
    def __init__(self, inner, visible):
        self.inner = inner
        self.nbytes = inner.nbytes
        self.visible = visible
        self.n_writes = self.n_reads = 0

    def write(self, data, offset=0):
        self.n_writes += 1
        self.inner.write(data, offset)

    def read(self, out, offset=0):
        self.n_reads += 1
        self.inner.read(out, offset)

    def host_view(self):
        return self.inner.host_view() if self.visible else None

    def close(self):
        self.inner.close()


class RemoteExecutable:
    """Runs only when it is waited for, so that a session that forgets to wait reads old values."""

    def __init__(self, inner, device):
        self.inner = inner
        self.device = device

    def run(self, batch):
        self.device.pending.append((self.inner, batch))
        self.device.n_runs += 1

    def close(self):
        self.inner.close()


class RemoteDevice:
    def __init__(self, inner, visible):
        self.inner = inner
        self.visible = visible
        self.pending = []
        self.buffers = []
        self.n_runs = 0
        self.closed = False

    def alloc(self, nbytes):
        buffer = RemoteBuffer(self.inner.alloc(nbytes), self.visible)
        read = buffer.read

        def synchronised_read(out, offset=0):
            self.flush()
            read(out, offset)

        buffer.read = synchronised_read
        self.buffers.append(buffer)
        return buffer

    def state(self, kv):
        return self.inner.state(kv)

    def load(self, program, weights, bindings):
        if not all(any(b is own for own in self.buffers) for b in bindings.values.values()):
            raise DeviceError("a buffer of another device was bound")
        values = {name: b.inner for name, b in bindings.values.items()}
        return RemoteExecutable(self.inner.load(program, weights, Bindings(values, bindings.states)), self)

    def flush(self):
        for executable, batch in self.pending:
            executable.run(batch)
        self.pending.clear()

    def synchronize(self):
        self.flush()
        return self.inner.synchronize()

    def close(self):
        self.closed = True
        self.inner.close()


class RemoteDriver:
    api_version = API_VERSION

    def __init__(self, name, visible):
        self.name = name
        self.visible = visible
        self.reference = ReferenceDriver()
        self.opened = []

    def probe(self, config):
        link = Link(1e-6, 1e9, "analytic:test")
        up = None if self.visible else link
        space = MemorySpace(f"{self.name}:0/ram", 1 << 32, 64, up, up)
        [info] = self.reference.probe({})
        return [replace(info, id=f"{self.name}:0", spaces=(space,), launch=Cost(1e-5, "analytic:test"))]

    def estimate(self, info, op, workload):
        """Ten times the reference's cost, so that only pins bring an op here."""
        cost = self.reference.estimate(info, op, workload)
        return replace(cost, seconds=10 * cost.seconds) if isinstance(cost, Cost) else cost

    def compile(self, info, segment):
        return self.reference.compile(info, segment)

    def open(self, info: DeviceInfo):
        device = RemoteDevice(self.reference.open(info), self.visible)
        self.opened.append(device)
        return device


def found(driver):
    return FoundDevice(driver, driver.probe({})[0], driver.name)


def behind(name="behind"):
    return found(RemoteDriver(name, visible=False))


def beside(name="beside"):
    return found(RemoteDriver(name, visible=True))


def reference():
    return found(ReferenceDriver())
