// The writer of results, which makes codes of them where a later descriptor reads them.
#pragma once

#include <cstdint>

#include "fabric/activation.h"
#include "fabric/types.h"
#include "flow.h"

namespace hetrun::pynq {
namespace {

// The results of a token and some rows leave together: floats of WRITE_ROWS, or the codes of a block.
void write(uint32_t mode, uint32_t n_rows, uint32_t n_tokens, uint32_t out, uint32_t out_stride, uint32_t out_rows, uint32_t out_scales,
           uint32_t out_scale_stride, OutputStream& results, uint32_t* memory) {
    const bool coded = mode == HETRUN_PYNQ_MODE_CODES_32 || mode == HETRUN_PYNQ_MODE_CODES_256;
    const uint32_t n_pairs = (n_tokens + 1) / 2, block_rows = mode == HETRUN_PYNQ_MODE_CODES_256 ? kMaxBlockRows : kWriteRows;
    float block[kTokenPairs][2][kMaxBlockRows];
#pragma HLS ARRAY_PARTITION variable = block complete dim = 2
#pragma HLS ARRAY_PARTITION variable = block cyclic factor = 2 dim = 3
    uint32_t largest[kTokenPairs][2];
#pragma HLS ARRAY_PARTITION variable = largest complete dim = 0
    float inverses[kTokens], scales[kTokens][kMaxRows / kWriteRows];
    uint32_t n_blocks = 0;
    for (uint32_t first = 0; first < n_rows && mode != HETRUN_PYNQ_MODE_GATE; first += block_rows) {
        const uint32_t left = n_rows - first, rows = left < block_rows ? left : block_rows;
        uint32_t pair = 0, row = 0;
        for (uint32_t i = 0; i < rows * n_pairs; ++i) {
#pragma HLS PIPELINE II = 1
            const ResultPair result = results.read();
            for (int h = 0; h < 2; ++h) {
#pragma HLS UNROLL
                // Magnitudes compare as their bits do, infinities and NaN above all others.
                const uint32_t magnitude = float_bits(result.token[h]) & 0x7fffffffu;
                block[pair][h][row] = result.token[h];
                largest[pair][h] = row == 0 || magnitude > largest[pair][h] ? magnitude : largest[pair][h];
            }
            pair = pair == n_pairs - 1 ? 0 : pair + 1;
            row = pair == 0 ? row + 1 : row;
        }
        for (uint32_t t = 0; t < n_tokens && coded; ++t) {
#pragma HLS PIPELINE II = 1
            const uint32_t most = largest[t / 2][t % 2];
            const bool finite = most < 0x7f800000u, usable = finite && most >= kLeastUsable;
            const float value = usable ? bits_float(most) : 1.0f, inverse = over(127.0f, value), scale = over(value, 127.0f);
            inverses[t] = usable ? inverse : 0.0f;
            scales[t][n_blocks] = usable ? scale : bits_float(finite ? 0 : 0x7fc00000u);
        }
        for (uint32_t t = 0; t < n_tokens; ++t) {
            if (!coded) {
                const uint32_t to = (out + t * out_stride) / 4 + first, n = first >= out_rows ? 0 : out_rows - first < rows ? out_rows - first : rows;
                for (row = 0; row < n; ++row) {
#pragma HLS PIPELINE II = 1
                    memory[to + row] = float_bits(block[t / 2][t % 2][row]);
                }
                continue;
            }
            const uint32_t to = (out + t * out_stride + first) / 4;
            const float inverse = inverses[t];
            for (uint32_t word = 0; word < rows / 4; ++word) {
#pragma HLS PIPELINE II = 2
                uint32_t codes = 0;
                for (uint32_t k = 0; k < 4; ++k) {
#pragma HLS UNROLL
                    const float x = block[t / 2][t % 2][4 * word + k];
                    codes |= static_cast<uint32_t>(code_of(times(x, inverse))) << 8 * k;
                }
                memory[to + word] = codes;
            }
        }
        ++n_blocks;
    }
    for (uint32_t t = 0; t < n_tokens && coded; ++t) {
        const uint32_t to = (out_scales + t * out_scale_stride) / 4;
        for (uint32_t i = 0; i < n_blocks; ++i) {
#pragma HLS PIPELINE II = 1
            memory[to + i] = float_bits(scales[t][i]);
        }
    }
}

}  // namespace
}  // namespace hetrun::pynq
