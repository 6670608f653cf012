"""What starting the engine costs: the number of the profile that plans without this driver go by."""

from __future__ import annotations

from functools import cache

from hetrun.device import Cost
from hetrun.resources import resource_path
from hetrun.toml_table import read_toml

PROFILE = "hetrun/configs/devices/pynq-z1.toml"


@cache
def launch_cost() -> Cost:
    """Registers, the wait, and the cache maintenance of what goes in and out."""
    launch = read_toml(resource_path(PROFILE))["launch_s"]
    return Cost(float(launch["value"]), str(launch["basis"]))
