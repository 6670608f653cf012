// Weights: read by the ports, and unpacked into packets of bit planes with their scales.
#pragma once

#include <cstdint>

#include "fabric/types.h"
#include "flow.h"
#include "formats.h"
#include "master.h"

namespace hetrun::pynq {
namespace {

uint32_t pairs_of(const Descriptor& d) {
    return d.n_rows / kTileRows * d.n_chunks * (static_cast<uint32_t>(tile_words(kFormats[d.format])) / 2);
}

// Asks for the port's next burst, if there is one.   weights_word: where all begin.
void ask(ReadMaster& weights, uint32_t weights_word, uint32_t n_pairs, uint32_t& asked) {
#pragma HLS INLINE
    if (asked < n_pairs) {
        const uint32_t left = n_pairs - asked;
        weights.read_request(weights_word + 2 * asked, 2 * (left < kPairsOfBurst ? left : kPairsOfBurst));
    }
    asked += HETRUN_PYNQ_PORTS * kPairsOfBurst;
}

// Bursts First, First + ports, ... of the weights: the ports take turns, so that both meet all banks of the DRAM. Each is asked for
// while the ones before it are under way, and a word a cycle is read.
template <uint32_t First>
void read_port(ReadMaster weights, uint32_t weights_word, uint32_t n_pairs, PairStream& out) {
    constexpr uint32_t kSkip = (HETRUN_PYNQ_PORTS - 1) * kPairsOfBurst;
    if (First >= HETRUN_PYNQ_PORTS) return;
    uint32_t asked = First * kPairsOfBurst;
    for (int i = 0; i < HETRUN_PYNQ_OUTSTANDING - 1; ++i) ask(weights, weights_word, n_pairs, asked);
    for (uint32_t pair = First * kPairsOfBurst; pair < n_pairs;) {
#pragma HLS PIPELINE II = 2
        if (pair % kPairsOfBurst == 0) ask(weights, weights_word, n_pairs, asked);
        Pair words;
        words.word[0] = weights.read();
        words.word[1] = weights.read();
        out.write(words);
        if (++pair % kPairsOfBurst == 0) pair += kSkip;
    }
}

// The header of a tile: fields as formats.h has them.
struct Header {
    uint64_t low[8], second[8], high[4], d[4], m[4];

    void set(const Format& f, int at, uint64_t word) {
        int i = at;
        if (f.super) {
            if (i < 8) {
                low[i] = word;
                return;
            }
            i -= 8;
            if (f.second) {
                if (i < 8) {
                    second[i] = word;
                    return;
                }
                i -= 8;
            }
            if (f.high) {
                if (i < 4) {
                    high[i] = word;
                    return;
                }
                i -= 4;
            }
        }
        const int halves = f.super ? 2 : 4;
        if (i < halves) {
            d[i] = word;
        } else {
            m[i - halves] = word;
        }
    }

    // Scale and minimum of sixteenth `sub` of a row's super-block.
    void scale(const Format& f, int row, int sub, Int<8>& scale, UInt<6>& minimum) const {
        const int own = f.subs == 16 ? sub : sub / 2;
        const auto six = [&](int i) {
            return nibble(low[row], i) | static_cast<uint32_t>(high[row / 2] >> (row % 2 * 32 + 2 * i) & 3) << 4;
        };
        uint32_t value;
        if (f.scale_bits == 4) {
            value = nibble(low[row], own);
        } else if (f.scale_bits == 8) {
            value = nibble(low[row], own) | nibble(second[row], own) << 4;
        } else {
            value = six(own);
        }
        if (f.scale_signed && f.scale_bits == 6) value |= (value & 32) ? 0xc0u : 0;
        scale = static_cast<int8_t>(value);
        minimum = static_cast<uint8_t>(!f.minimum ? 0 : f.subs == 16 ? nibble(second[row], own) : six(8 + own));
    }

    Head head(const Format& f, int row) const {
        if (f.super) return {{half_of(d[row / 4], row % 4), 0}, {half_of(m[row / 4], row % 4), 0}};
        const int i = 2 * row;
        return {{half_of(d[i / 4], i % 4), half_of(d[i / 4], i % 4 + 1)}, {half_of(m[i / 4], i % 4), half_of(m[i / 4], i % 4 + 1)}};
    }
};

void unpack(uint32_t format, uint32_t n_pairs, PairStream& in0, PairStream& in1, Stream<Packet, 4>& packets, Stream<Head, 4>& heads,
            uint32_t& busy, uint32_t& stalls) {
    const Format f = kFormats[format];
    const int header = header_words(f), words = tile_words(f), last_packet = packets_of_row(f) - 1;
    Header h{};
#pragma HLS ARRAY_PARTITION variable = h.low complete
#pragma HLS ARRAY_PARTITION variable = h.second complete
#pragma HLS ARRAY_PARTITION variable = h.high complete
#pragma HLS ARRAY_PARTITION variable = h.d complete
#pragma HLS ARRAY_PARTITION variable = h.m complete
    uint64_t planes[8] = {};
#pragma HLS ARRAY_PARTITION variable = planes complete
    int at = 0, plane = 0, row = 0, number = 0;  // word of the tile; plane of the packet; its row and number in the row
    uint32_t n_busy = 0, n_stalls = 0;
    while (n_busy < n_pairs) {
#pragma HLS PIPELINE II = 1
        Pair pair;
        bool came;
        if (HETRUN_PYNQ_PORTS == 2 && n_busy / kPairsOfBurst % 2 != 0) {
            came = in1.read_nb(pair);
        } else {
            came = in0.read_nb(pair);
        }
        if (!came) {
            ++n_stalls;
            continue;
        }
        ++n_busy;
        Packet packet{};
        bool complete = false;  // a packet: at most one of the two words ends one, since codes have two bits at least
        for (int i = 0; i < 2; ++i) {
#pragma HLS UNROLL
            if (at + i < header) {
                h.set(f, at + i, pair.word[i]);
                continue;
            }
            planes[plane++] = pair.word[i];
            if (plane < f.bits) continue;
            for (int b = 0; b < 8; ++b) {
#pragma HLS UNROLL
                packet.plane[b] = planes[b];
            }
            complete = true;
            plane = 0;
        }
        at += 2;
        if (at == words) at = 0;
        if (!complete) continue;
        for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
            h.scale(f, row, number * kSubsOfPacket + s, packet.scale[s], packet.minimum[s]);
        }
        packets.write(packet);
        if (number != last_packet) {
            ++number;
            continue;
        }
        heads.write(h.head(f, row));
        number = 0;
        row = row == kTileRows - 1 ? 0 : row + 1;
    }
    busy = n_busy;
    stalls = n_stalls;
}

}  // namespace
}  // namespace hetrun::pynq
