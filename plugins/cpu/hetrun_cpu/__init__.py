"""The host's own processor as a device: native kernels behind a C ABI, one call a segment."""
