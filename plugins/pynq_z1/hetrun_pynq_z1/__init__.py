"""A streaming block-float matmul engine on a PYNQ-Z1: HLS source, its run on this machine, driver and cost model."""
