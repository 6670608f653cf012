// The float tail: sums of the lanes become results, and results meet their gates.
#pragma once

#include <cstdint>

#include "fabric/activation.h"
#include "fabric/types.h"
#include "flow.h"
#include "formats.h"

namespace hetrun::pynq {
namespace {

// acc = acc + (d * xd) * isum, then, of formats with minima, acc = acc -+ (m * xd) * msum: each operator rounds to nearest even,
// integers that exceed 24 bits too. The columns come in order; the two blocks of a 64-column chunk have a sum each, added last.
// Two tokens an iteration. A sum is met again after SUM_DISTANCE of them, which hides the latency of two additions: a single pair
// of tokens has an idle iteration beside it, which costs nothing, since rows come no faster. The sums of a group leave row by row.
void finish(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens,
            const float scales[kTokenPairs][2][kMaxPackets][2], Stream<Head, 4>& heads, Stream<PartialPair, 8>& partials,
            Stream<ResultPair, 16>& results) {
    const Format f = kFormats[format];
    const uint32_t n_pairs = (n_tokens + 1) / 2, n_slots = n_pairs < kLeastPairs ? kLeastPairs : n_pairs;
    const uint32_t n = n_rows * n_chunks * n_slots;
    float sums[kTileRows][kTokenPairs][2][2];  // by row, pair, token and block
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 3
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 4
#pragma HLS DEPENDENCE variable = sums inter RAW distance = HETRUN_PYNQ_SUM_DISTANCE true
    float head_d[2] = {}, head_m[2] = {};
    uint32_t slot = 0, chunk = 0;
    int row = 0;
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
        if (slot == 0) {
            const Head head = heads.read();
            for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                head_d[b] = half_to_float(head.d[b]);
                head_m[b] = half_to_float(head.m[b]);
            }
        }
        if (slot < n_pairs) {
            const PartialPair pair = partials.read();
            ResultPair result{};
            for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
                if (2 * slot + h >= n_tokens) continue;
                // A word of two scales: of two super-blocks, or of the two blocks of a chunk.
                const uint32_t word = f.super ? chunk / 2 : chunk;
                const float even = scales[slot][h][word][0], odd = scales[slot][h][word][1];
                float block[2] = {};
                for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                    if (f.super && b != 0) continue;
                    const float xd = (f.super ? chunk % 2 != 0 : b != 0) ? odd : even;
                    const Partial& partial = pair.token[h];
                    const float product = times(times(head_d[b], xd), static_cast<float>(static_cast<int>(partial.isum[b])));
                    float sum = chunk == 0 ? product : plus(sums[row][slot][h][b], product);
                    if (f.minimum) {
                        const float least = times(times(head_m[b], xd), static_cast<float>(static_cast<int>(partial.msum[b])));
                        sum = plus(sum, f.subtracts ? -least : least);
                    }
                    sums[row][slot][h][b] = sum;
                    block[b] = sum;
                }
                result.token[h] = f.super ? block[0] : plus(block[0], block[1]);
            }
            if (chunk == n_chunks - 1) results.write(result);
        }
        if (++slot < n_slots) continue;
        slot = 0;
        if (++row < kTileRows) continue;
        row = 0;
        chunk = chunk == n_chunks - 1 ? 0 : chunk + 1;
    }
}

// Results pass, or stay as gates, or meet the gates of the descriptor before.
void activate(uint32_t mode, uint32_t gate_row, uint32_t n_rows, uint32_t n_tokens, float gates[kTokenPairs][2][kMaxRows],
              Stream<ResultPair, 16>& in, OutputStream& out) {
    const uint32_t n_pairs = (n_tokens + 1) / 2, n = n_rows * n_pairs;
    uint32_t pair = 0, row = gate_row;
    if (mode == HETRUN_PYNQ_MODE_WRITE || mode == HETRUN_PYNQ_MODE_GATE) {
        for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
            const ResultPair result = in.read();
            if (mode == HETRUN_PYNQ_MODE_WRITE) {
                out.write(result);
            } else {
                gates[pair][0][row] = result.token[0];
                gates[pair][1][row] = result.token[1];
            }
            pair = pair == n_pairs - 1 ? 0 : pair + 1;
            row = pair == 0 ? row + 1 : row;
        }
        return;
    }
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 2  // the two tokens share the operators
        ResultPair result = in.read();
        for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
            if (2 * pair + h < n_tokens) result.token[h] = silu_times(gates[pair][h][row], result.token[h]);
        }
        out.write(result);
        pair = pair == n_pairs - 1 ? 0 : pair + 1;
        row = pair == 0 ? row + 1 : row;
    }
}

}  // namespace
}  // namespace hetrun::pynq
