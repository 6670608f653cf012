"""The meaning of every op in NumPy: the oracle of all other devices, and the simplest device.

`ops` holds one pure function an op, `dequant` the meaning of the tensor types, `kv` that of the KV cache; `driver` and
`device` make a device of them. This package imports without NumPy, as do `plugin` and `driver`.
"""
