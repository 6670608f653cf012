"""The immutable graph of ops."""
