"""Devices that are known only by a profile: they can be planned for, not run."""
