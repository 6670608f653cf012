"""Placement: what each op costs where, and which device runs it."""
