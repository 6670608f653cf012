"""What an engine takes of the XC7Z020: an estimate part by part, each with its basis. Nothing was placed and routed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hetrun_pynq_z1.definition import definition
from hetrun_pynq_z1.timing import Design

# DS190: XC7Z020.
CAPACITY = {"LUT": 53_200, "FF": 106_400, "DSP": 220, "BRAM36": 140}
# A part fuller than this is hard to route.
MOST_SHARE = 0.8

SYNTHESISED = "simulated:Yosys synth_xilinx of hand-written RTL of the same part, before routing"
LIKE_HLS = SYNTHESISED + ", LUT and FF x 1.3 for HLS"
COMPUTED = "analytic:computed from the source's arrays and partitions"
ESTIMATED = "analytic:an estimate from the size of such blocks, an assumption"

HLS_FACTOR = 1.3

# Decode, dot product, scales and minima of one token at 16, 32 and 64 lanes: LUT, FF, DSP (Yosys).
_LEAF = {16: (440, 270, 19), 32: (923, 609, 38), 64: (1848, 1198, 76)}


@dataclass(frozen=True)
class Part:
    """A part of the engine.   bram36: block RAMs of 36 kbit; halves count."""

    name: str
    lut: float
    ff: float
    dsp: float
    bram36: float
    basis: str


def parts(design: Design, max_columns: int) -> tuple[Part, ...]:
    """Every part of an engine and of what joins it to the processing system.

    max_columns: of the activations in block RAM.   ValueError for a number of lanes that was never synthesised.
    """
    return tuple(_parts(design, max_columns))


def totals(design: Design, max_columns: int) -> dict[str, float]:
    """The sums, by the names of CAPACITY."""
    found = parts(design, max_columns)
    return {
        "LUT": sum(p.lut for p in found),
        "FF": sum(p.ff for p in found),
        "DSP": sum(p.dsp for p in found),
        "BRAM36": sum(p.bram36 for p in found),
    }


def _parts(design: Design, max_columns: int) -> Iterator[Part]:
    if design.lanes not in _LEAF:
        raise ValueError(f"{design.lanes} lanes: estimates are there for {', '.join(map(str, _LEAF))}")
    lut, ff, dsp = _LEAF[design.lanes]
    # Two tokens share the DSP of a lane; what follows the products is there twice, counted as the whole leaf's logic.
    pair_dsp = design.lanes + 2 * (dsp - design.lanes)
    yield Part("lanes", 2 * lut * HLS_FACTOR, 2 * ff * HLS_FACTOR, pair_dsp, 0, LIKE_HLS)
    # Of each lane an adder of 8 bits, which puts two tokens 17 bits apart, and what the lower product has borrowed.
    yield Part("two tokens a multiplier", 13 * design.lanes, 0, 0, 0, ESTIMATED)
    # 824 LUT take one word a cycle; the unpacker takes two. Flip-flops: a packet of eight planes, twice.
    yield Part("planes", 2 * 824 * HLS_FACTOR, 2 * 512 * HLS_FACTOR, 0, 0, LIKE_HLS)
    # Registers of 28 words for 8 rows, and the multiplexers that choose a row of them.
    yield Part("tile header", 190 * design.rows, 4 * design.rows * 64, 0, 0, ESTIMATED)
    # Two blocks and two tokens have a tail each: conversion, three products, two sums (1,534 LUT and 8 DSP in RTL).
    yield Part("float tails", 4 * 1534 * HLS_FACTOR, 4 * 1500 * HLS_FACTOR, 4 * 8, 0, LIKE_HLS)
    # Integer sums of each token, which wait for the next packet: 104 bits, and what chooses two of them.
    yield Part("sums of tokens", 60 * design.tokens, 104 * design.tokens, 0, 0, ESTIMATED)
    # The sums of the two blocks of two tokens, addresses and strides of descriptors.
    yield Part("last sums, addresses", 1000, 1250, 14, 0, ESTIMATED)
    pairs = -(-design.tokens // 2)
    yield Part("sums in flight", 0, 0, 0, _bram36(4, design.rows * pairs, 32), COMPUTED)
    yield from _activation(pairs)
    banks = 2 * 64  # codes: by two tokens and 64 columns
    yield Part("activation codes", 0, 0, 0, _bram36(banks, pairs * (max_columns // 64), 8), COMPUTED)
    yield Part("activation sums", 0, 0, 0, _bram36(2 * 4, pairs * (max_columns // 64), 12), COMPUTED)
    yield Part("activation scales", 0, 0, 0, _bram36(2 * 2, pairs * (max_columns // 64), 32), COMPUTED)
    # A pair of words is 128 bits wide: two block RAMs of 72, up to 512 deep.
    fifo = 2 * -(-design.fifo_words // 2 // 512)
    yield Part("FIFOs", 60 * design.ports, 40 * design.ports, 0, fifo * design.ports, COMPUTED)
    masters = design.ports + 2
    yield Part("AXI masters", 800 * masters, 1000 * masters, 0, masters, ESTIMATED)
    yield Part("load, fetch, write, control", 1800, 2200, 0, 0, ESTIMATED)
    yield Part("interconnect, reset", 500 * masters + 600, 600 * masters + 700, 0, 0, ESTIMATED)


def _activation(pairs: int) -> Iterator[Part]:
    """silu(gate) * up for one token at a time, and the writer, which makes two codes a cycle."""
    n = definition().numbers
    # Three products, a sum and a quotient in floats; a shifter, four products of integers; half a table.
    yield Part("gate x up", 1800, 2600, 15, _bram36(1, 256, 25), ESTIMATED)
    yield Part("gates", 0, 0, 0, _bram36(2, pairs * n["MAX_ROWS"], 32), COMPUTED)
    # Two products and sums, two quotients, the largest of each token.
    yield Part("codes of results", 2500, 3800, 10, 0, ESTIMATED)
    scales = _bram36(1, 2 * pairs * n["MAX_ROWS"] // 32, 32)
    yield Part("results to write", 0, 0, 0, _bram36(2 * 2, pairs * 256 // 2, 32) + scales, COMPUTED)
    yield Part("results that wait", 60, 40, 0, _bram36(2, n["OUTPUT_PAIRS"], 32), COMPUTED)


def _bram36(arrays: int, depth: int, width: int) -> float:
    """Block RAMs for arrays that are apart: a half holds 512 x 36, 1,024 x 18, 2,048 x 9, 4,096 x 4 bits or longer
    (UG473).
    """
    widths = {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}
    halves = min(-(-depth // d) * -(-width // w) for d, w in widths.items())
    return arrays * halves / 2
