// The loader of a descriptor's activations into block RAM.
#pragma once

#include <cstdint>

#include "fabric/types.h"
#include "flow.h"
#include "formats.h"

namespace hetrun::pynq {
namespace {

void load(const uint64_t* memory, const Descriptor& d, Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket],
          Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket], float scales[kTokenPairs][2][kMaxPackets][2]) {
    const Format f = kFormats[d.format];
    const uint32_t n_words = d.n_chunks * static_cast<uint32_t>(chunk_columns(f) / 8);
    const uint32_t n_scale_words = f.super ? (d.n_chunks + 1) / 2 : d.n_chunks;
    for (uint32_t t = 0; t < d.n_tokens; ++t) {
        const uint32_t codes_word = (d.codes + t * d.code_stride) / 8;
        Int<12> half = 0;
        for (uint32_t i = 0; i < n_words; ++i) {
#pragma HLS PIPELINE II = 1
            const uint64_t word = memory[codes_word + i];
            Int<12> sum = 0;
            for (int k = 0; k < 8; ++k) {
#pragma HLS UNROLL
                const Int<8> code = static_cast<int8_t>(word >> 8 * k);
                for (uint32_t octet = 0; octet < 8; ++octet) {  // a bank is written in one place
#pragma HLS UNROLL
                    if (octet == i % 8) codes[t / 2][t % 2][i / 8][8 * octet + static_cast<uint32_t>(k)] = code;
                }
                sum = sum + code;
            }
            if (i % 2 == 0) {
                half = sum;
            } else {
                code_sums[t / 2][t % 2][i / 8][i / 2 % 4] = half + sum;
            }
        }
        const uint32_t scales_word = (d.scales + t * d.scale_stride) / 8;
        for (uint32_t i = 0; i < n_scale_words; ++i) {
#pragma HLS PIPELINE II = 1
            const uint64_t word = memory[scales_word + i];
            scales[t / 2][t % 2][i][0] = bits_float(static_cast<uint32_t>(word));
            scales[t / 2][t % 2][i][1] = bits_float(static_cast<uint32_t>(word >> 32));
        }
    }
}

}  // namespace
}  // namespace hetrun::pynq
