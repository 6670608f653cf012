"""What an engine takes of the U280: an estimate part by part, each with its basis. Nothing was synthesised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hetrun_alveo_u280.definition import definition
from hetrun_alveo_u280.timing import Design

# Of 1,304K LUT, 9,024 DSP, 2,016 BRAM36 and 960 URAM what the shell and the HBM subsystem leave. analytic: LUT and DSP
# of a dry run of such an engine; flip-flops two a LUT; a quarter of the block RAM taken, an assumption; URAM untouched.
CAPACITY = {"LUT": 968_000, "FF": 1_936_000, "DSP": 8_197, "BRAM36": 1_512, "URAM": 960}
MOST_SHARE = 0.75

COMPUTED = "analytic:computed from the source's arrays and partitions"
ESTIMATED = "analytic:counted by hand, LUT and FF x 1.25 for HLS"

HLS_FACTOR = 1.25
# Of a float unit, DSP and LUT. analytic: Vitis HLS's products of "medium" use, sums with and without DSP, quotients.
_PRODUCT, _SUM, _SUM_IN_LUT, _QUOTIENT = (2, 150), (2, 220), (0, 400), (0, 800)
# fabric/activation.h: a product with log2(e), a shift, a table, integer products of 15, 15 and 25 bits, a difference.
_EXPONENTIAL = (_PRODUCT[0] + 4, _PRODUCT[1] + 250)
_TO_FLOAT, _OF_HALF, _LARGER = 100, 40, 40  # LUT: a sum of codes, a binary16, the larger of two
_LUT_RAM = 0.6  # LUT a bit, up to 32 words
_URAM_BYTES = 32_768  # 4,096 x 64 bits; the eight for parity are not used


@dataclass(frozen=True)
class Part:
    """A part of the engine.   slr0: it has to stand beside the ports of HBM."""

    name: str
    lut: float
    ff: float
    dsp: float
    bram36: float
    uram: float
    basis: str
    slr0: bool = False


def parts(design: Design) -> tuple[Part, ...]:
    """Every part of an engine."""
    return tuple(_parts(design))


def totals(design: Design) -> dict[str, float]:
    """The sums, by the names of CAPACITY."""
    found = parts(design)
    return {
        "LUT": sum(p.lut for p in found),
        "FF": sum(p.ff for p in found),
        "DSP": sum(p.dsp for p in found),
        "BRAM36": sum(p.bram36 for p in found),
        "URAM": sum(p.uram for p in found),
    }


def _logic(
    name: str, lut: float, dsp: float, bram36: float = 0, uram: float = 0, ff_of_lut: float = 1.3, slr0: bool = False
) -> Part:
    """A part counted by hand.   ff_of_lut: pipelines of 250 MHz and more have a register behind most levels."""
    lut *= HLS_FACTOR
    return Part(name, lut, lut * ff_of_lut, dsp, bram36, uram, ESTIMATED, slr0)


def _flat(lut: float, registers: float) -> tuple[float, float]:
    """LUT and flip-flops of logic with so many registers beside those of its pipelines."""
    return lut * HLS_FACTOR, lut * HLS_FACTOR * 1.3 + registers


def _parts(design: Design) -> Iterator[Part]:
    n = definition().numbers
    channels, lanes, vector = design.channels, design.lanes, design.vector_floats
    tokens, rows = design.pass_tokens, 4
    # A product each, of two rows or two weights; operands chosen of four columns (8 bits, two rows), six formats.
    yield _logic("lanes: products", channels * lanes * (16 + 8), channels * lanes)
    # Two sums of a cascade of eight apart; of each row and two tokens shifts by an exponent and a tree.
    yield _logic("lanes: sums of a beat", channels * (lanes // 8 * 60 + rows * 2 * 3 * 22), 0)
    # scale x sum of four rows and two tokens, added in 56 bits, chosen among a pass's pairs (registers); whole sums of
    # two blocks, and dots of three groups of 32 that wait for scales, in LUT RAM.
    sums, pairs = rows * 2 * 56, -(-tokens // 2)
    chosen, done, result = sums * -(-pairs // 4), 2 * sums * _LUT_RAM, 8 * 56 // 4
    held = 8 * 29 * _LUT_RAM * -(-3 * tokens * 4 // 32)
    lut = sums + chosen + done + result + held
    yield Part(
        "lanes: scales, sums of rows",
        *_flat(channels * lut, channels * tokens * rows * 56),
        channels * rows * 2,
        0,
        0,
        ESTIMATED,
    )
    yield _logic("lanes: floats", channels * (2 * _PRODUCT[1] + 200), channels * 2 * _PRODUCT[0])
    # A score: three products and a sum. p: a difference and an exponential; w, p x minimum, two sums; a weight's code.
    dsp = _EXPONENTIAL[0] + 6 * _PRODUCT[0] + 4 * _SUM[0]
    lut = _EXPONENTIAL[1] + 6 * _PRODUCT[1] + 4 * _SUM[1] + _TO_FLOAT + 4 * _OF_HALF + 2 * _LARGER + 80
    yield _logic("attention: scores and weights", channels * lut, channels * dsp, bram36=channels / 2)
    # Sixteen sums of 30 bits in LUT RAM (16 queries, eight parts of a value); eight values of two tiles, which a choice
    # of eight turns into their banks, and their weights; products are the lanes' DSPs'.
    lut = 16 * 30 + 16 * 30 * _LUT_RAM * 4 + 512 * _LUT_RAM + 512 * 2 + 8 * 12 * 2
    yield _logic("attention: sums of values", channels * lut, 0)
    scores = channels * -(-4 * 2 * n["MAX_SCORES"] // _URAM_BYTES)  # of two units
    yield Part("attention: scores of a head", 0, 0, 0, 0, scores, COMPUTED)
    # Each channel's own, 64 columns of two rows at once, 72 bits a RAM; a quarter of the channels in URAM.
    width, depth = 64 * 2 * 8, -(-n["MAX_COLUMNS"] // 64) * -(-tokens // 2)
    in_uram = channels // 4
    codes = (channels - in_uram) * -(-width // 72) * -(-depth // 512)
    yield Part("lanes: codes of activations", 0, 0, 0, codes, in_uram * -(-width // 72), COMPUTED)
    fifo = channels * -(-design.fifo_beats * n["BEAT_BYTES"] // _URAM_BYTES)
    # A FIFO of 512 bits is 8 URAMs wide, however short.
    yield Part("readers: FIFOs", 0, 0, 0, 0, max(fifo, 8 * channels), COMPUTED, slr0=True)
    yield _logic("readers: masters and bursts", channels * 1_500, 0, bram36=8 * channels, ff_of_lut=2.0, slr0=True)
    # Beats, commands and results between SLRs: four registers of 512 bits each way, for two kernels of three.
    yield Part("streams between SLRs", 0, channels * 2 / 3 * 4 * 2 * 512, 0, 0, 0, COMPUTED)
    # Two products and a sum for each float, a comparison, a conversion to a code.
    lut = vector * (2 * _PRODUCT[1] + _SUM_IN_LUT[1] + 40 + 120)
    yield _logic("vector: floats", lut, vector * 2 * _PRODUCT[0], slr0=True)
    memory = max(-(-vector // 2), -(-4 * n["VECTOR_FLOATS"] * tokens // _URAM_BYTES))
    yield Part("vector: memory", 0, 0, 0, 0, memory, COMPUTED, slr0=True)
    gates = min(8, vector)
    lut = gates * (_EXPONENTIAL[1] + _SUM_IN_LUT[1] + _QUOTIENT[1] + _PRODUCT[1])
    yield _logic("vector: gate x up", lut, gates * (_EXPONENTIAL[0] + _PRODUCT[0]), bram36=gates / 2, slr0=True)
    # Rounding of keys and values, Hadamard's butterflies, quotients of rows; maxima and sums to and from the lanes.
    lut = 32 * _SUM_IN_LUT[1] + 4_000 + 64 * 32 + 5_000
    # Queries of eight kernels and sums of values, both 512 bits wide; keys, values and scales of the pass.
    yield _logic("vector: keys, values, queries", lut, 16 * _PRODUCT[0], bram36=64 + 32, uram=8 + 8, slr0=True)
    yield _logic("fetch, checks, DDR", 12_000, 0, bram36=30, slr0=True)
