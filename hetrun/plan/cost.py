"""What a placement costs: ops, launches, copies and resident bytes, as the drivers estimate them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetrun.device import Cost, DeviceInfo, Unsupported
from hetrun.errors import PluginError
from hetrun.graph.graph import Graph
from hetrun.ops import VALUE_BYTES, Op, Workload
from hetrun.plan.plan import PhaseCost
from hetrun.plan.segment import runs
from hetrun.plugins import FoundDevice

HOST = "host"


def values_domain(info: DeviceInfo) -> str:
    """Where a device's values live: one name for all devices that the host's memory serves without copies."""
    space = info.spaces[0]
    return HOST if space.upload is None and space.download is None else info.id


@dataclass(frozen=True)
class CostTable:
    """Every device's answer for every op of a graph under one workload. Costs are asked once, here."""

    graph: Graph
    workload: Workload
    devices: tuple[DeviceInfo, ...]
    answers: tuple[Mapping[str, Cost | Unsupported], ...]

    @classmethod
    def ask(cls, graph: Graph, workload: Workload, devices: Sequence[FoundDevice]) -> CostTable:
        """PluginError where a driver's answer is no cost."""
        answers = tuple({d.info.id: _estimate(d, op, workload) for d in devices} for op in graph.ops)
        if any(d.calibration for d in devices):
            answers = tuple(_calibrated(graph, workload, devices, answers))
        return cls(graph, workload, tuple(d.info for d in devices), answers)

    def price(self, placement: Sequence[str]) -> PhaseCost:
        """Predicted time of one step. `placement` names a device for each op, in order, all of which accept their
        op.
        """
        infos = {d.id: d for d in self.devices}
        seconds = 0.0
        for device, answer in zip(placement, self.answers, strict=True):
            cost = answer[device]
            assert isinstance(cost, Cost)
            seconds += cost.seconds
        segments = runs(placement)
        launch_s = sum(infos[device].launch.seconds for device, _, _ in segments)
        return PhaseCost(seconds, launch_s, self._copy_seconds(placement, infos), len(segments))

    def resident(self, placement: Sequence[str]) -> dict[tuple[str, str, str], int]:
        """Bytes by (device, space, block name); ops that name the same block share it."""
        blocks: dict[tuple[str, str, str], int] = {}
        for device, answer in zip(placement, self.answers, strict=True):
            cost = answer[device]
            assert isinstance(cost, Cost)
            blocks.update({(device, space, name): n for (space, name), n in cost.resident.items()})
        return blocks

    @cached_property
    def _sharers(self) -> Counter[tuple[str, tuple[str, str]]]:
        """How many ops name each block of a device."""
        return Counter(
            (d, b) for answers in self.answers for d, a in answers.items() if isinstance(a, Cost) for b in a.resident
        )

    def memory_price(self, op: int, device: str, prices: Mapping[str, float]) -> float:
        """Seconds for the bytes that an op keeps, where a byte of a space costs prices[space].

        A block that several ops name is divided among them, and each of the two phases pays half: so the prices of a
        placement never sum to more than its bytes do, which makes them a bound.
        """
        answer = self.answers[op][device]
        if not prices or not isinstance(answer, Cost):
            return 0.0
        shares = (
            prices[space] * nbytes / self._sharers[device, (space, name)]
            for (space, name), nbytes in answer.resident.items()
            if space in prices
        )
        return sum(shares) / 2

    def _copy_seconds(self, placement: Sequence[str], infos: Mapping[str, DeviceInfo]) -> float:
        """Each value is copied once into each domain that reads it; the logits go to the host."""
        made_on: dict[str, str] = {}
        present: set[tuple[str, str]] = set()
        total = 0.0
        for op, device in zip(self.graph.ops, placement, strict=True):
            domain = values_domain(infos[device])
            for value in op.inputs:
                if (value.name, domain) not in present:
                    present.add((value.name, domain))
                    nbytes = VALUE_BYTES * value.width * self.workload.rows(value.rows)
                    total += copy_seconds(infos[made_on[value.name]], infos[device], nbytes)
            made_on[op.name] = device
            present.add((op.name, domain))
        logits = VALUE_BYTES * self.graph.n_vocab * self.workload.n_outputs
        return total + copy_seconds(infos[placement[-1]], None, logits)


def copy_seconds(source: DeviceInfo, target: DeviceInfo | None, nbytes: int) -> float:
    """A copy out of `source`'s memory and into `target`'s (None: the host's)."""
    download = source.spaces[0].download
    upload = target.spaces[0].upload if target else None
    return sum(link.seconds(nbytes) for link in (download, upload) if link)


def _calibrated(
    graph: Graph,
    workload: Workload,
    devices: Sequence[FoundDevice],
    answers: Sequence[Mapping[str, Cost | Unsupported]],
) -> Iterator[dict[str, Cost | Unsupported]]:
    """The answers, with the times that measurements give them where a device has been calibrated."""
    from hetrun.calibration.terms import footprint_bytes, with_again

    footprint = footprint_bytes(graph.ops)
    measured = {d.info.id: d.calibration for d in devices if d.calibration}
    for (op, again), by_device in zip(with_again(graph.ops), answers, strict=True):
        yield {
            device: measured[device].cost(answer, op, workload, footprint, again)
            if isinstance(answer, Cost) and device in measured
            else answer
            for device, answer in by_device.items()
        }


def _estimate(device: FoundDevice, op: Op, workload: Workload) -> Cost | Unsupported:
    try:
        answer = device.driver.estimate(device.info, op, workload)
    except Exception as error:
        fault = f"estimate of {op.name} ({op.kind}) raised {type(error).__name__}: {error}"
        raise PluginError.broken_contract(device.info.id, device.plugin, fault) from error
    if isinstance(answer, Unsupported):
        return answer
    if not isinstance(answer, Cost) or not math.isfinite(answer.seconds) or answer.seconds < 0:
        fault = f"estimate of {op.name} ({op.kind}) is no cost: {answer!r:.80}"
        raise PluginError.broken_contract(device.info.id, device.plugin, fault)
    return answer
