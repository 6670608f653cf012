// The lanes: codes of weights meet those of activations, as integers.
#pragma once

#include <cstdint>

#include "fabric/types.h"
#include "flow.h"
#include "formats.h"
#ifdef HETRUN_PYNQ_FAST
#include HETRUN_PYNQ_FAST  // host/fast.h
#endif

namespace hetrun::pynq {
namespace {

// Two's complement of n bits, or unsigned, from planes.
void codes_of(const Packet& packet, const Format& f, Int<8> codes[kPacket]) {
#pragma HLS INLINE
#ifdef HETRUN_PYNQ_FAST
    codes_of_planes(packet.plane, f.bits, f.is_signed, codes);
#else
    for (int k = 0; k < kPacket; ++k) {
#pragma HLS UNROLL
        uint32_t code = 0;
        for (int b = 0; b < 8; ++b) {
#pragma HLS UNROLL
            const int from = b < f.bits ? b : f.bits - 1;  // the sign extends
            if (b < f.bits || f.is_signed) code |= static_cast<uint32_t>(packet.plane[from] >> k & 1) << b;
        }
        codes[k] = static_cast<int8_t>(code);
    }
#endif
}

// Sixteen products with each of two tokens.   n: of the two, those that are there.
void dot16(const Int<8>* weights, const Int<8>* x0, const Int<8>* x1, uint32_t n, Int<20>& dot0, Int<20>& dot1) {
#pragma HLS INLINE
#ifdef HETRUN_FABRIC_AP
    // A multiplier takes both tokens, 17 bits apart: a lower product below zero has borrowed one from the upper.
    (void)n;
    Int<20> low = 0, high = 0;
    for (int k = 0; k < kSub; ++k) {
#pragma HLS UNROLL
        const Int<25> both = (Int<25>(x1[k]) << 17) + x0[k];
        const Int<33> product = both * weights[k];
#pragma HLS BIND_OP variable = product op = mul impl = dsp
        const Int<17> lower = product;
        low += lower;
        high += Int<16>((product >> 17) + product[16]);
    }
    dot0 = low;
    dot1 = high;
#elif defined(HETRUN_PYNQ_FAST)
    dot0 = dot_of_sixteen(weights, x0);
    dot1 = n == 2 ? dot_of_sixteen(weights, x1) : 0;
#else
    int low = 0, high = 0;
    for (int k = 0; k < kSub; ++k) low += weights[k] * x0[k];
    for (int k = 0; k < kSub && n == 2; ++k) high += weights[k] * x1[k];
    dot0 = low;
    dot1 = high;
#endif
}

// A packet meets two tokens an iteration. One flat loop: a nest would fill and drain its pipeline for every packet.
void multiply(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens,
              const Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket], const Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket],
              Stream<Packet, 4>& packets, Stream<PartialPair, 8>& partials) {
    const Format f = kFormats[format];
    const uint32_t n_packets = static_cast<uint32_t>(packets_of_row(f)), n_pairs = (n_tokens + 1) / 2, row_packets = n_chunks * n_packets;
    const uint32_t n = n_rows * row_packets * n_pairs;
    Packet packet{};
    Int<8> weights[kPacket] = {};
#pragma HLS ARRAY_PARTITION variable = weights complete
    Partial sums[kTokenPairs][2] = {};
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 0
    uint32_t pair = 0, first = 0;  // pair of tokens; first packet of the chunk
    uint32_t p = 0;                // packet of the row in its chunk
    int row = 0;                   // of the tile
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = HETRUN_PYNQ_PACKET_CYCLES
        if (pair == 0) {
            packet = packets.read();
            codes_of(packet, f, weights);
        }
        const uint32_t at = first + p, here = n_tokens - 2 * pair;
        Int<20> dot[2][kSubsOfPacket];
        for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
            dot16(weights + s * kSub, codes[pair][0][at] + s * kSub, codes[pair][1][at] + s * kSub, here < 2 ? 1 : 2, dot[0][s], dot[1][s]);
        }
        PartialPair out{};
        for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
            if (h >= here) continue;
            Partial sum = sums[pair][h];
            if (f.super) {
                Int<29> isum = 0;
                Int<23> msum = 0;
                for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
                    const Int<28> scaled = packet.scale[s] * dot[h][s];
                    const Int<18> least = packet.minimum[s] * code_sums[pair][h][at][s];
                    isum = isum + scaled;
                    msum = msum + least;
                }
                sum.isum[0] = p == 0 ? isum : Int<29>(sum.isum[0] + isum);
                sum.msum[0] = p == 0 ? msum : Int<23>(sum.msum[0] + msum);
            } else {
                for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                    sum.isum[b] = dot[h][2 * b] + dot[h][2 * b + 1];
                    sum.msum[b] = code_sums[pair][h][at][2 * b] + code_sums[pair][h][at][2 * b + 1];
                }
            }
            sums[pair][h] = sum;
            out.token[h] = sum;
        }
        if (p == n_packets - 1) partials.write(out);
        if (++pair < n_pairs) continue;
        pair = 0;
        if (++p < n_packets) continue;
        p = 0;
        if (++row < kTileRows) continue;
        row = 0;
        first += n_packets;
        if (first == row_packets) first = 0;
    }
}

}  // namespace
}  // namespace hetrun::pynq
