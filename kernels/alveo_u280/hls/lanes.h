// The lanes of a channel: an array, and the activations that it multiplies with. Their commands, but for those of attention.
#pragma once

#include "fabric/pipeline.h"
#include "flow.h"
#include "multiply.h"

namespace hetrun::u280 {

// A cell that the pass itself has written: the word of its scale and minimum, whether it is a sink, and its codes.
struct OwnCell {
    Beat head, codes[2];
};

constexpr uint32_t kParts = 8;  // of a float sum over cells, or of a maximum
static_assert(kParts == kCascade, "cells whose values meet in a cascade");

// What a channel keeps of ATTEND, by query; of a query's codes and sums a place for each beat of a key. Three units (a row and a group of KV
// heads) are under way: of the first values are summed, of the second weights, of the third scores.
struct Attention {
    Cells cells[3];
    OwnCell own[kTokens];
    Beat own_values[kTokens][2];
    uint32_t own_words[kTokens], half;  // half: of the scores, that the third takes when the first has given it up
    float scores[2][kMaxScores];        // by cell and query; then weights
    // Queries, and those that sinks meet: what their scores are multiplied with, sum of their codes, codes.
    float scale[2][kMaxQueries];
    int32_t code_sum[2][kMaxQueries];
    Int<8> query[2][kMaxQueries][kChunk];
    float best[kMaxQueries][kParts], largest[kMaxQueries], inverse[kMaxQueries];  // scores; the largest of all channels; of the largest weight
    float p[kMaxQueries][kParts], minima[kMaxQueries][kParts], most[kMaxQueries][kParts];  // sums, and weights
    Int<30> sums[kMaxQueries][kChunk / kCascades][kCascades];
};

struct Lanes {
    Code codes[kTokens / 2][2][kMaxColumns];
    UInt<3> exponents[kTokens][kMaxBlocks];
    Int<20> sums[kTokens][kMaxBlocks];  // of a block's codes, times 2^exponent
    float scales[kTokens];
    Attention attention;
};

// Behind the command: a beat of the rows' scales, then of each row its codes, with a beat of 64 exponents (bytes) before each 32 beats of
// them.
template <class Commands>
void load_activations(Lanes& lanes, const Command& command, Commands& commands) {
    const Beat scales = commands.read();
    for (uint32_t t = 0; t < command.n_tokens; ++t) {
        lanes.scales[t] = float_of(scales, t);
        for (uint32_t first = 0; first < command.n_columns / kCodes; first += kShared) {
            const Beat exponents = commands.read();
            for (uint32_t w = first; w < first + kShared && w < command.n_columns / kCodes; ++w) {
                HETRUN_FABRIC_PIPELINE(1);
                const Beat beat = commands.read();
                for (uint32_t b = 0; b < kBlocks; ++b) {
#pragma HLS UNROLL
                    const UInt<3> exponent = static_cast<uint8_t>(exponents.byte[(w - first) * kBlocks + b]);
                    Int<13> sum = 0;
                    for (uint32_t i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
                        const Int<8> code = static_cast<int8_t>(beat.byte[b * kBlock + i]);
                        lanes.codes[t / 2][t % 2][w * kCodes + b * kBlock + i] = code;
                        sum += code;
                    }
                    lanes.exponents[t][w * kBlocks + b] = exponent;
                    lanes.sums[t][w * kBlocks + b] = Int<20>(sum) * (1 << exponent);
                }
            }
        }
    }
}

// Scales and minima of values, which came behind them.
struct Scales {
    Beat scales, minima;
};

using Accumulator = Int<56>;

constexpr uint32_t kSides = 3;

// The sums of the blocks of rows of one channel that are under way.
struct Sums {
    Accumulator sum[kTokens][4];                 // of the block whose beats come
    Accumulator done[2][kTokens][4];             // of whole blocks, whose results are to go
    Int<29> held[kSides][kTokens][kBeatScales];  // dots by beat of their group, row and part, until their scales are there
};

// Dots of a beat with tokens t and, if there are two, t + 1.   number: of the beat in its block; side: of what is held.
inline void add_values(uint32_t format, const Lanes& lanes, const Values& values, uint32_t number, uint32_t side, uint32_t t, bool two, Sums& sums) {
#pragma HLS INLINE
    const Format f = kFormats[format];
    const uint32_t parts = parts_of(format), column = number * f.columns, first = column / kBlock;
    Int<22> dots[2][kMaxDots];
    dots_of(format, values, lanes.codes, column, t, two, dots);
    const uint32_t of_row = f.scales / f.rows, at = f.scales == 0 ? 0 : number % scaled_beats(f) * f.scales;
    for (uint32_t h = 0; h < (two ? 2u : 1u); ++h) {
#pragma HLS UNROLL
        const uint32_t e0 = lanes.exponents[t + h][first], e1 = f.columns == 64 ? uint32_t{lanes.exponents[t + h][first + 1]} : e0;
        for (uint32_t r = 0; r < f.rows; ++r) {
#pragma HLS UNROLL
            const Int<29> low = Int<29>(dots[h][r * parts]) * (1 << e0);
            const Int<29> high = parts == 1 ? Int<29>(0) : Int<29>(Int<29>(dots[h][r * parts + 1]) * (1 << e1));
            if (f.scales == 0) {
                const Int<15> scale = static_cast<int16_t>(short_of(values.beat, 8 * r + 7) & 0x3fff);
                sums.sum[t + h][r] += Accumulator(low + high) * scale;
            } else if (of_row == 2) {
                sums.held[side][t + h][at + 2 * r] = low;
                sums.held[side][t + h][at + 2 * r + 1] = high;
            } else {
                sums.held[side][t + h][at + r] = low + high;
            }
        }
    }
}

// What was held of beat `number` meets its scales.
inline void add_scaled(uint32_t format, const Lanes& lanes, const Scales& with, uint32_t number, uint32_t side, uint32_t t, bool two, Sums& sums) {
#pragma HLS INLINE
    const Format f = kFormats[format];
    if (f.scales == 0) return;
    const uint32_t of_row = f.scales / f.rows, first = number % scaled_beats(f) * f.scales;
    for (uint32_t h = 0; h < (two ? 2u : 1u); ++h) {
#pragma HLS UNROLL
        for (uint32_t i = 0; i < f.scales; ++i) {
#pragma HLS UNROLL
            const uint32_t r = i / of_row;
            const Int<16> raw = short_of(with.scales, first + i);
            Int<29> value = sums.held[side][t + h][first + i];
            Int<16> scale = raw;
            if (format == HETRUN_U280_FORMAT_W2) {
                const uint32_t bits = static_cast<uint16_t>(static_cast<int>(raw));
                scale = static_cast<int16_t>(bits & 0x3fff);
                value -= static_cast<int>(bits >> 14) * (lanes.sums[t + h][2 * number] + lanes.sums[t + h][2 * number + 1]);
            }
            sums.sum[t + h][r] += Accumulator(value) * scale;
            if (f.minima) sums.sum[t + h][r] += Accumulator(lanes.sums[t + h][number]) * short_of(with.minima, first + i);
        }
    }
}

// The block's sums of tokens t and, if there are two, t + 1 are whole: so the adders have one set of sums to choose from.
inline void end_sums(uint32_t side, uint32_t t, bool two, Sums& sums) {
#pragma HLS INLINE
    for (uint32_t h = 0; h < (two ? 2u : 1u); ++h) {
#pragma HLS UNROLL
        for (uint32_t r = 0; r < 4; ++r) {
#pragma HLS UNROLL
            sums.done[side][t + h][r] = sums.sum[t + h][r];
            sums.sum[t + h][r] = 0;
        }
    }
}

// y = float(sum) * row scale * activation scale.   Nearest even from the integer.
inline float result_of(Accumulator sum, float row_scale, float scale) {
    return times(times(static_cast<float>(static_cast<int64_t>(sum)), row_scale), scale);
}

// What comes in a cycle of multiply.
enum class Phase : uint8_t { kRowScales, kValues, kScales, kMinima, kNothing };

// Beats of values that share beats of scales, on their way through multiply.
struct Group {
    uint32_t from, n;
    bool last;  // of its block
};

// One loop over all beats, II = 1, of rows beyond two ceil(rows / 2) iterations a beat, in three stages beside one another: beats come and
// become dots; dots of the group before meet their scales; results of the block before leave, a row and token an iteration. So neither
// scales nor results cost a beat's time, but for the last block, and for blocks of fewer iterations than results. Results: of each block
// of rows a beat a token.
template <class Beats, class Results>
void multiply(const Lanes& lanes, uint32_t format, const Command& command, Beats& beats, Results& results) {
#pragma HLS INLINE
    const Format f = kFormats[format];
    const uint32_t n_values = value_beats(f, command.n_columns), n_tokens = command.n_tokens, step = cycle_tokens(format);
    const uint32_t many = f.scales == 0 ? n_values : scaled_beats(f);
    Values values;
    Scales with[kSides];
    Group groups[kSides];
    Sums sums;
#pragma HLS ARRAY_PARTITION variable = groups complete
#pragma HLS ARRAY_PARTITION variable = sums.sum complete dim = 0
#pragma HLS ARRAY_PARTITION variable = sums.done cyclic factor = 2 dim = 2
#pragma HLS ARRAY_PARTITION variable = sums.done complete dim = 3
#pragma HLS BIND_STORAGE variable = sums.done type = ram_s2p impl = lutram
#pragma HLS ARRAY_PARTITION variable = sums.held cyclic factor = 2 dim = 2
#pragma HLS ARRAY_PARTITION variable = sums.held cyclic factor = 4 dim = 3
#pragma HLS BIND_STORAGE variable = sums.held type = ram_s2p impl = lutram
    for (auto& of_token : sums.sum) {
        for (Accumulator& sum : of_token) sum = 0;
    }
    Beat row_scales[2], out{};
    // Beats: of block b, the group from beat `from` on, its beat i and token t; on which side its dots are held.
    Phase phase = Phase::kRowScales;
    uint32_t b = 0, in_group = 0, from = 0, i = 0, t = 0, side = 0;
    // Groups: how many wait for the second stage, the first of them, and its beat and token. Blocks that are summed.
    uint32_t waiting = 0, scaled_side = 0, scaled_i = 0, scaled_t = 0, summed = 0;
    // Blocks whose results are out; the next one's token and row.
    uint32_t given = 0, given_t = 0, given_r = 0;
    while (given < command.n_blocks) {
        HETRUN_FABRIC_PIPELINE(1);
        if (given < summed) {
            const uint32_t at = given % group_blocks(f) * f.rows + given_r;
            const Accumulator sum = sums.done[given % 2][given_t][given_r];
            set_float(out, given_r, result_of(sum, float_of(row_scales[given / group_blocks(f) % 2], at), lanes.scales[given_t]));
            if (++given_r == f.rows) {
                results.write(out);
                given_r = 0;
                given += given_t + 1 == n_tokens ? 1 : 0;
                given_t = given_t + 1 == n_tokens ? 0 : given_t + 1;
            }
        }
        const Group& group = groups[scaled_side];
        if (waiting != 0 && (group.from + scaled_i + scaled_t != 0 || summed < given + 2)) {
            const bool two = step == 2 && scaled_t + 1 < n_tokens;
            add_scaled(format, lanes, with[scaled_side], group.from + scaled_i, scaled_side, scaled_t, two, sums);
            if (group.last && scaled_i + 1 == group.n) end_sums(summed % 2, scaled_t, two, sums);
            scaled_t += step;
            if (scaled_t >= n_tokens) {
                scaled_t = 0;
                if (++scaled_i == group.n) {
                    scaled_i = 0;
                    summed += group.last ? 1 : 0;
                    scaled_side = scaled_side + 1 == kSides ? 0 : scaled_side + 1;
                    --waiting;
                }
            }
        }
        const uint32_t n = n_values - from < many ? n_values - from : many;
        const bool last = from + n == n_values;
        const auto end_block = [&] {
            from = 0;
            ++b;
            in_group = in_group + 1 == group_blocks(f) ? 0 : in_group + 1;
            phase = b == command.n_blocks ? Phase::kNothing : in_group == 0 ? Phase::kRowScales : Phase::kValues;
        };
        switch (phase) {
            case Phase::kRowScales:
                if (given + group_blocks(f) < b) break;  // those that are there are still wanted
                row_scales[b / group_blocks(f) % 2] = beats.read();
                phase = Phase::kValues;
                break;
            case Phase::kValues: {
                if (i + t == 0 && (f.scales == 0 ? b >= given + 2 : waiting == kSides)) break;  // no place for sums, or dots
                const bool two = step == 2 && t + 1 < n_tokens;
                if (t == 0) take_values(format, beats.read(), values);
                add_values(format, lanes, values, from + i, side, t, two, sums);
                if (f.scales == 0 && from + i + 1 == n_values) end_sums(b % 2, t, two, sums);
                t += step;
                if (t < n_tokens) break;
                t = 0;
                if (++i < n) break;
                i = 0;
                phase = Phase::kScales;
                if (f.scales != 0) break;
                ++summed;
                end_block();
                break;
            }
            case Phase::kScales:
            case Phase::kMinima:
                if (phase == Phase::kScales) {
                    with[side].scales = beats.read();
                } else {
                    with[side].minima = beats.read();
                }
                if (f.minima && phase == Phase::kScales) {
                    phase = Phase::kMinima;
                    break;
                }
                groups[side] = {from, n, last};
                ++waiting;
                side = side + 1 == kSides ? 0 : side + 1;
                from += n;
                phase = Phase::kValues;
                if (last) end_block();
                break;
            case Phase::kNothing: break;
        }
    }
}

// The integers of a row of a block, columns of one beat: value = row scale * (scale * code + minimum).
inline int32_t integer_at(uint32_t format, const Beat& beat, const Scales& with, uint32_t in_group, uint32_t row, uint32_t column) {
    const Format f = kFormats[format];
    if (f.scales == 0) {
        const KeptPair pair = kept_pair(beat, row, column / 4);
        const int w = pair.w0 != 0 && pair.column0 == column ? static_cast<int>(pair.w0)
                      : pair.w1 != 0 && pair.column1 == column ? static_cast<int>(pair.w1)
                                                               : 0;
        return w * (short_of(beat, 8 * row + 7) & 0x3fff);
    }
    const uint32_t of_row = f.scales / f.rows, at = in_group * f.scales + row * of_row + column / (f.columns / of_row);
    const int scale = short_of(with.scales, at), w = weight_at(format, beat, row, column);
    if (format == HETRUN_U280_FORMAT_W2) return (w - (scale >> 14 & 3)) * (scale & 0x3fff);
    return w * scale + (f.minima ? short_of(with.minima, at) : 0);
}

// Results: the row's values, sixteen a beat, those of whole beats of values.
template <class Beats, class Results>
void embed(const Command& command, Beats& beats, Results& results) {
    const uint32_t format = command.format;
    const Format f = kFormats[format];
    const uint32_t n_values = value_beats(f, command.n_columns), many = f.scales == 0 ? 1 : scaled_beats(f);
    const float row_scale = float_of(beats.read(), command.block % group_blocks(f) * f.rows + command.row);
    for (uint32_t from = 0; from < n_values; from += many) {
        const uint32_t n = from + many < n_values ? many : n_values - from;
        Beat values[kBeatScales / 2];
        Scales with{};
        for (uint32_t i = 0; i < n; ++i) {
            HETRUN_FABRIC_PIPELINE(1);
            values[i] = beats.read();
        }
        if (f.scales != 0) with.scales = beats.read();
        if (f.minima) with.minima = beats.read();
        for (uint32_t i = 0; i < n; ++i) {
            for (uint32_t first = 0; first < f.columns; first += kFloats) {
                HETRUN_FABRIC_PIPELINE(1);
                Beat out{};
                for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
                    set_float(out, k, times(static_cast<float>(integer_at(format, values[i], with, i, command.row, first + k)), row_scale));
                }
                results.write(out);
            }
        }
    }
}

// Results: n_forward[0] beats, as they are.
template <class Beats, class Results>
void forward(const Command& command, Beats& beats, Results& results) {
    for (uint32_t i = 0; i < command.n_forward[0]; ++i) {
        HETRUN_FABRIC_PIPELINE(1);
        results.write(beats.read());
    }
}

}  // namespace hetrun::u280
