// A kernel of lanes: four channels with an array each, and the activations that they share. Its commands, but for those of attention.
#pragma once

#include "flow.h"
#include "multiply.h"

namespace hetrun::u280 {

// A cell that the pass itself has written: the word of its scale and minimum, whether it is a sink, and its codes.
struct OwnCell {
    Beat head, codes[2];
};

constexpr uint32_t kParts = 8;  // of a float sum over cells

// What a channel keeps of a row and KV head of ATTEND, by query.
struct Attention {
    Cells cells;
    OwnCell own[kTokens];
    float scores[kMaxScores];  // by cell and query; then weights
    // Queries, and those that sinks meet: what their scores are multiplied with, sum of their codes, codes.
    float scale[2][kMaxHeads];
    int32_t code_sum[2][kMaxHeads];
    Int<8> query[2][kMaxHeads][kMaxHeadDim];
    float largest[kMaxHeads], most[kMaxHeads], inverse[kMaxHeads];  // score; weight; of the largest weight of all
    float p[kMaxHeads][kParts], minima[kMaxHeads][kParts];          // sums
    Int<30> sums[kMaxHeads][kMaxHeadDim];
};

struct Lanes {
    Code codes[kTokens / 2][2][kMaxColumns];
    UInt<3> exponents[kTokens][kMaxBlocks];
    Int<20> sums[kTokens][kMaxBlocks];       // of a block's codes, times 2^exponent
    float scales[kTokens];
    Attention attention[kLaneChannels];
};

// Behind the command: a beat of the rows' scales, then of each row 64 exponents a beat (bytes), and its codes.
template <class Commands>
void load_activations(Lanes& lanes, const Command& command, Commands& commands) {
    const Beat scales = commands.read();
    const uint32_t n_blocks = command.n_columns / kBlock;
    for (uint32_t t = 0; t < command.n_tokens; ++t) {
        lanes.scales[t] = float_of(scales, t);
        for (uint32_t first = 0; first < n_blocks; first += kCodes) {
            const Beat beat = commands.read();
            for (uint32_t i = 0; i < kCodes && first + i < n_blocks; ++i) lanes.exponents[t][first + i] = static_cast<uint8_t>(beat.byte[i]);
        }
        for (uint32_t first = 0; first < n_blocks; first += kCodes / kBlock) {
#pragma HLS PIPELINE II = 1
            const Beat beat = commands.read();
            for (uint32_t b = 0; b < kCodes / kBlock; ++b) {
#pragma HLS UNROLL
                Int<13> sum = 0;
                for (uint32_t i = 0; i < kBlock; ++i) {
#pragma HLS UNROLL
                    const Int<8> code = static_cast<int8_t>(beat.byte[b * kBlock + i]);
                    lanes.codes[t / 2][t % 2][first * kBlock + b * kBlock + i] = code;
                    sum += code;
                }
                lanes.sums[t][first + b] = Int<20>(sum) * (1 << lanes.exponents[t][first + b]);
            }
        }
    }
}

// Scales and minima of values, which came behind them.
struct Scales {
    Beat scales, minima;
};

using Accumulator = Int<56>;

// The sums of a block of rows of one channel.
struct Block {
    Accumulator sum[kTokens][4];
    // Dots by beat of their group, row and part: of the group that arrives, and of the one before it, whose scales are there.
    Int<29> held[2][kTokens][kBeatScales];
};

// Dots of a beat with tokens t and, if there are two, t + 1.   number: of the beat in its block.
inline void add_values(uint32_t format, const Lanes& lanes, const Values& values, uint32_t number, uint32_t side, uint32_t t, bool two, Block& block) {
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
                block.sum[t + h][r] += Accumulator(low + high) * scale;
            } else if (of_row == 2) {
                block.held[side][t + h][at + 2 * r] = low;
                block.held[side][t + h][at + 2 * r + 1] = high;
            } else {
                block.held[side][t + h][at + r] = low + high;
            }
        }
    }
}

// What was held of beat `number` meets its scales.
inline void add_scaled(uint32_t format, const Lanes& lanes, const Scales& with, uint32_t number, uint32_t side, uint32_t t, bool two, Block& block) {
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
            Int<29> value = block.held[side][t + h][first + i];
            Int<16> scale = raw;
            if (format == HETRUN_U280_FORMAT_W2) {
                const uint32_t bits = static_cast<uint16_t>(static_cast<int>(raw));
                scale = static_cast<int16_t>(bits & 0x3fff);
                value -= static_cast<int>(bits >> 14) * (lanes.sums[t + h][2 * number] + lanes.sums[t + h][2 * number + 1]);
            }
            block.sum[t + h][r] += Accumulator(value) * scale;
            if (f.minima) block.sum[t + h][r] += Accumulator(lanes.sums[t + h][number]) * short_of(with.minima, first + i);
        }
    }
}

// y = float(sum) * row scale * activation scale.   Nearest even from the integer.
inline float result_of(Accumulator sum, float row_scale, float scale) {
    return times(times(static_cast<float>(static_cast<int64_t>(sum)), row_scale), scale);
}

// A block of rows of the four channels. Their beats have the same meaning, so that one loop takes all. While a group of values arrives,
// the one before it meets its scales; after the last there are as many cycles for its own.
template <class Beats>
void multiply_block(const Lanes& lanes, uint32_t format, uint32_t n_values, uint32_t n_tokens, Beats* beats, Block* block) {
    const Format f = kFormats[format];
    const uint32_t many = f.scales == 0 ? n_values : scaled_beats(f), step = cycle_tokens(format);
    Values values[kLaneChannels];
    Scales with[kLaneChannels];
    uint32_t before = 0, n_before = 0, side = 0;  // the group before: its first beat, and how many
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
        for (uint32_t t = 0; t < n_tokens; ++t) {
            for (uint32_t r = 0; r < f.rows; ++r) block[c].sum[t][r] = 0;
        }
    }
    for (uint32_t from = 0; from < n_values + many && (from < n_values || n_before != 0); from += many) {
        const uint32_t n = from >= n_values ? 0 : from + many < n_values ? many : n_values - from;
        uint32_t i = 0, t = 0;
        while (i < n || i < n_before) {
#pragma HLS PIPELINE II = 1
            const bool two = step == 2 && t + 1 < n_tokens;
            for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
                if (i < n && t == 0) take_values(format, beats[c].read(), values[c]);
                if (i < n) add_values(format, lanes, values[c], from + i, side, t, two, block[c]);
                if (i < n_before) add_scaled(format, lanes, with[c], before + i, 1 - side, t, two, block[c]);
            }
            t += step;
            if (t < n_tokens) continue;
            t = 0;
            ++i;
        }
        if (f.scales == 0) return;
        for (uint32_t c = 0; c < kLaneChannels && n != 0; ++c) {
#pragma HLS UNROLL
            with[c].scales = beats[c].read();
            if (f.minima) with[c].minima = beats[c].read();
        }
        before = from;
        n_before = n;
        side = 1 - side;
    }
}

// Results: of each 16 rows of the four channels, channel by channel, a beat for each token.
template <class Beats, class Results>
void multiply(const Lanes& lanes, uint32_t format, const Command& command, Beats* beats, Results& results) {
    const Format f = kFormats[format];
    const uint32_t n_values = value_beats(f, command.n_columns), n_tokens = command.n_tokens;
    Beat row_scales[kLaneChannels], out[kLaneChannels][kTokens] = {};
    for (uint32_t b = 0; b < command.n_blocks; ++b) {
        const uint32_t in_group = b % group_blocks(f);
        for (uint32_t c = 0; c < kLaneChannels && in_group == 0; ++c) {
#pragma HLS UNROLL
            row_scales[c] = beats[c].read();
        }
        Block block[kLaneChannels];
        multiply_block(lanes, format, n_values, n_tokens, beats, block);
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
            for (uint32_t t = 0; t < n_tokens; ++t) {
                for (uint32_t r = 0; r < f.rows; ++r) {
                    const uint32_t at = in_group * f.rows + r;
                    set_float(out[c][t], at, result_of(block[c].sum[t][r], float_of(row_scales[c], at), lanes.scales[t]));
                }
            }
        }
        if (in_group + 1 < group_blocks(f) && b + 1 < command.n_blocks) continue;
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
            for (uint32_t t = 0; t < n_tokens; ++t) results.write(out[c][t]);
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
void embed(const Command& command, Beats* beats, Results& results) {
    const uint32_t format = command.format;
    const Format f = kFormats[format];
    const uint32_t n_values = value_beats(f, command.n_columns), many = f.scales == 0 ? 1 : scaled_beats(f);
    Beats& own = beats[command.channel];
    const float row_scale = float_of(own.read(), command.block % group_blocks(f) * f.rows + command.row);
    for (uint32_t from = 0; from < n_values; from += many) {
        const uint32_t n = from + many < n_values ? many : n_values - from;
        Beat values[kBeatScales / 2];
        Scales with{};
        for (uint32_t i = 0; i < n; ++i) values[i] = own.read();
        if (f.scales != 0) with.scales = own.read();
        if (f.minima) with.minima = own.read();
        for (uint32_t i = 0; i < n; ++i) {
            for (uint32_t first = 0; first < f.columns; first += kFloats) {
#pragma HLS PIPELINE II = 1
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

// Results: n_forward beats of each channel, as they are.
template <class Beats, class Results>
void forward(const Command& command, Beats* beats, Results& results) {
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
        for (uint32_t i = 0; i < command.n_forward[c]; ++i) results.write(beats[c].read());
    }
}

}  // namespace hetrun::u280
