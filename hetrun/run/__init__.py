"""Compiles and loads plans, and runs them step by step."""
