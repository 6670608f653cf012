"""Measures devices: small programs through the ordinary contract, and prices that explain their times."""
