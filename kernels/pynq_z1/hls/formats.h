// Weights as the engine reads them: a stream of tiles, each 8 rows by one chunk of columns (256 of a super-block, 64 of blocks of
// 32), with exactly the bytes that GGUF has. 64-bit words, little-endian. A tile is a header, then the codes.
//
// Header of a super-block, where the format has the section:
//   low      8 words, one a row: nibble i is the low part of sub-block i's scale (Q4_K, Q5_K: of scale i, i < 8, or minimum i - 8)
//   second   8 words, one a row: nibble i is the minimum of Q2_K, or the high part of Q6_K's scale
//   high     4 words, two rows each: bit pair i is the high part of the scale (or minimum) of `low`
//   d        2 words, four rows each: binary16
//   m        2 words, the same: dmin
// Header of blocks of 32: d, then m, 4 words each: the half of row r and block b of the two is number 2 * r + b.
// Codes: row after row in packets of 64 columns, each as bit planes: word b holds bit b of the 64 codes.
//
// Offsets are taken out by inverting the top bit: signed codes and scales are two's complement, so nothing is subtracted.
#pragma once

#include "engine.h"

namespace hetrun::pynq {

constexpr int kTileRows = HETRUN_PYNQ_TILE_ROWS;
constexpr int kPacket = 64;  // codes of a packet

struct Format {
    int bits;            // of a code
    bool is_signed;      // two's complement
    bool super;          // super-blocks of 256, else two blocks of 32
    int subs;            // scales of a super-block: 16 or 8
    bool second, high, minimum;
    bool subtracts;      // minima are subtracted (K-quants), else added
    int scale_bits;      // of a scale; signed where scale_signed
    bool scale_signed;
};

constexpr Format kFormats[HETRUN_PYNQ_FORMATS] = {
    {2, false, true, 16, true, false, true, true, 4, false},    // Q2_K
    {3, true, true, 16, false, true, false, false, 6, true},    // Q3_K
    {4, false, true, 8, false, true, true, true, 6, false},     // Q4_K
    {5, false, true, 8, false, true, true, true, 6, false},     // Q5_K
    {6, true, true, 16, true, false, false, false, 8, true},    // Q6_K
    {4, true, false, 0, false, false, false, false, 0, false},  // Q4_0
    {4, false, false, 0, false, false, true, false, 0, false},  // Q4_1
    {5, true, false, 0, false, false, false, false, 0, false},  // Q5_0
    {5, false, false, 0, false, false, true, false, 0, false},  // Q5_1
    {8, true, false, 0, false, false, false, false, 0, false},  // Q8_0
};

constexpr int chunk_columns(const Format& f) { return f.super ? 256 : 64; }
constexpr int packets_of_row(const Format& f) { return f.super ? 4 : 1; }
constexpr int header_words(const Format& f) {
    return f.super ? 8 + (f.second ? 8 : 0) + (f.high ? 4 : 0) + 2 + (f.minimum ? 2 : 0) : 4 + (f.minimum ? 4 : 0);
}
constexpr int tile_words(const Format& f) { return header_words(f) + kTileRows * packets_of_row(f) * f.bits; }

}  // namespace hetrun::pynq
