"""How keys and values are kept where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hetrun.device import Cost
from hetrun.errors import PluginError
from hetrun.graph.graph import Graph
from hetrun.ops import Attention, Workload
from hetrun.plan.cost import estimate
from hetrun.plugins import FoundDevice

DEFAULT = "f16"
# The nearest to what the model computed first.
_FORMATS = (DEFAULT, "q8_0", "kv4h", "kv4")


def default_kv_format(graph: Graph, devices: Sequence[FoundDevice]) -> str:
    """The best format that every device takes which has attention for the graph at all, so that the choice of a format
    keeps it off none; f16 where there is none.   graph: of any format.
    """
    attention = {op.signature: op for op in graph.ops if isinstance(op, Attention)}.values()
    if all(_takes(device, list(attention), DEFAULT) for device in devices):
        return DEFAULT
    taken = [{f for f in _FORMATS if _takes(device, list(attention), f)} for device in devices]
    common = set(_FORMATS).intersection(*(formats for formats in taken if formats))
    return next((f for f in _FORMATS if f in common), DEFAULT)


def _takes(device: FoundDevice, attention: Sequence[Attention], kv_format: str) -> bool:
    ops = (replace(op, kv=replace(op.kv, format=kv_format)) for op in attention)
    try:
        return all(isinstance(estimate(device, op, Workload(1, 0)), Cost) for op in ops)
    except PluginError:
        return True  # placement asks again, and names the first op whose answer is wrong
