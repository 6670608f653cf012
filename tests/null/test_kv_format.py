"""How keys and values are kept where nobody says it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from hetrun.device import Unsupported
from hetrun.plan.kv_format import default_kv_format

from .fakes import FakeDriver, fake
from .graphs import llama_graph

ALL = ("f32", "f16", "q8_0", "kv4", "kv4h")


@dataclass
class Keeper(FakeDriver):
    """formats: those that its attention takes."""

    formats: tuple[str, ...] = field(default=())

    def estimate(self, info, op, workload):
        if op.kind == "attention" and op.kv.format not in self.formats:
            return Unsupported(f"no {op.kv.format}")
        return super().estimate(info, op, workload)


def keeper(name, *formats):
    return replace(fake(name), driver=Keeper(name, formats=formats))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([ALL], "f16"),
        ([ALL, ALL], "f16"),
        ([("kv4", "kv4h")], "kv4h"),
        ([("kv4",)], "kv4"),
        ([("f32", "q8_0", "kv4")], "q8_0"),
        ([ALL, ("kv4", "kv4h")], "kv4h"),
        ([ALL, ()], "f16"),  # a device without attention has no say
        ([("kv4",), ()], "kv4"),
        ([("f16",), ("kv4",)], "f16"),  # nothing in common
        ([()], "f16"),
    ],
)
def test_a_format_that_every_device_with_attention_takes(devices, expected):
    found = [keeper(f"d{i}", *formats) for i, formats in enumerate(devices)]
    assert default_kv_format(llama_graph(), found) == expected


def test_a_driver_that_fails_is_left_to_placement():
    class Broken(FakeDriver):
        def estimate(self, info, op, workload):
            raise ZeroDivisionError

    assert default_kv_format(llama_graph(), [replace(fake("bad"), driver=Broken("bad"))]) == "f16"
