"""The Alveo U280 device: a decoder engine with 2-bit sparse weights and a 4-bit KV cache in HBM."""
