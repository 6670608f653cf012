"""The checks: `pytest --pyargs hetrun.testing.suite --hetrun-device ID`."""
