// Attention in the lanes: a channel's keys against the queries of their head, and the weighted sum of its values.
//
// A row of the pass and a group of KV heads take three commands, and a maximum over all channels between them:
//
//   Keys     score = f * (s_k * (codes_k . codes_q) + m_k * sum(codes_q)), f = f0 * the query's scale; back: the largest of each query
//   Weights  p = exp(score - largest of all channels), w = p * s_v; back: sum p, sum p * m_v, largest w
//   Values   codes of w: nearest even of w * inverse, 0 to 4095; back: sum of codes_w * codes_v, integers
//
// Cells are taken in the order of their positions. A float sum of a channel is eight, of cells 0, 8, ..., of 1, 9, ... and so on, added
// as ((0+4)+(2+6)) + ((1+5)+(3+7)). A largest that meets NaN stays NaN.
#pragma once

#include "fabric/activation.h"
#include "flow.h"
#include "lanes.h"

namespace hetrun::u280 {

constexpr uint32_t kParts = 8;

inline bool is_nan(float x) { return (float_bits(x) & 0x7fffffffu) > 0x7f800000u; }
inline float larger(float a, float b) { return is_nan(a) ? a : is_nan(b) || b > a ? b : a; }
constexpr uint32_t kMinusInfinity = 0xff800000u;

inline float sum_of_parts(const float* part) {
    return plus(plus(plus(part[0], part[4]), plus(part[2], part[6])), plus(plus(part[1], part[5]), plus(part[3], part[7])));
}

// A cell's scale and minimum, as one word holds them.
struct Affine {
    float scale, minimum;
};
inline Affine affine_of(uint32_t word) { return {half_to_float(static_cast<uint16_t>(word)), half_to_float(static_cast<uint16_t>(word >> 16))}; }

// The scales of the block that a place is in: read where a run or a block begins.
struct BlockScales {
    Beat beat[2];

    template <class Beats>
    void meet(uint32_t place, bool first, Beats& beats) {
        if (!first && place % HETRUN_U280_KV_BLOCK != 0) return;
        for (Beat& b : beat) b = beats.read();
    }
    Affine of(uint32_t place) const {
        const uint32_t i = place % HETRUN_U280_KV_BLOCK;
        return affine_of(word_of(beat[i / kFloats], i % kFloats));
    }
};

// set: of queries, 1 where the cell is a sink and they have their own.
inline void score(Attention& a, uint32_t set, uint32_t cell, uint32_t n_queries, uint32_t chunks, Affine with, const Beat* key, float* largest) {
    for (uint32_t q = 0; q < n_queries; ++q) {
#pragma HLS PIPELINE II = 1
        int32_t dot = 0;
        for (uint32_t i = 0; i < chunks * 128; ++i) {
#pragma HLS UNROLL factor = 128
            dot += static_cast<int>(key[i / 128].byte[i % 128 / 2] >> 4 * (i % 2) & 15) * static_cast<int>(a.query[set][q][i]);
        }
        const float value = times(a.scale[set][q], plus(times(with.scale, static_cast<float>(dot)), times(with.minimum, static_cast<float>(a.code_sum[set][q]))));
        a.scores[cell * n_queries + q] = value;
        largest[q] = larger(largest[q], value);
    }
}

// Behind the command, of each channel: its cells; if there are any, of each set and query a beat with its scale (float) and the sum of
// its codes, and two beats of codes a chunk; of each own cell a beat with its word and whether it is a sink, and its codes.
template <class Commands, class Beats, class Results>
void attend_keys(Lanes& lanes, const Command& command, Commands& commands, Beats* beats, Results& results) {
    const uint32_t n_queries = command.n_queries, chunks = command.chunks;
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        Attention& a = lanes.attention[c];
        a.cells = cells_of(commands.read());
        if (a.cells.count() == 0) continue;
        float largest[kMaxHeads];
        for (uint32_t q = 0; q < n_queries; ++q) largest[q] = bits_float(kMinusInfinity);
        for (uint32_t set = 0; set < command.n_sets; ++set) {
            for (uint32_t q = 0; q < n_queries; ++q) {
                const Beat head = commands.read();
                a.scale[set][q] = float_of(head, 0);
                a.code_sum[set][q] = static_cast<int32_t>(word_of(head, 1));
                for (uint32_t i = 0; i < 2 * chunks; ++i) {
                    const Beat codes = commands.read();
                    for (uint32_t k = 0; k < kCodes; ++k) a.query[set][q][i * kCodes + k] = static_cast<int8_t>(codes.byte[k]);
                }
            }
        }
        const uint32_t of_sinks = command.n_sets - 1;
        uint32_t cell = 0;
        Beat key[2];
        BlockScales scales{};
        for (uint32_t run = 0; run < kRuns; ++run) {
            for (uint32_t i = 0; i < a.cells.n[run]; ++i) {
                const uint32_t place = a.cells.place[run] + i;
                scales.meet(place, i == 0, beats[c]);
                for (uint32_t k = 0; k < chunks; ++k) key[k] = beats[c].read();
                score(a, run == 0 ? of_sinks : 0, cell++, n_queries, chunks, scales.of(place), key, largest);
            }
        }
        for (uint32_t i = 0; i < a.cells.n_own; ++i) {
            const Beat head = commands.read();
            for (uint32_t k = 0; k < chunks; ++k) key[k] = commands.read();
            score(a, word_of(head, 1) != 0 ? of_sinks : 0, cell++, n_queries, chunks, affine_of(word_of(head, 0)), key, largest);
        }
        for (uint32_t first = 0; first < n_queries; first += kFloats) {
            Beat out{};
            for (uint32_t q = first; q < n_queries && q < first + kFloats; ++q) set_float(out, q - first, largest[q]);
            results.write(out);
        }
    }
}

// Sums over the cells of a channel, by query.
struct Weighed {
    float p[kMaxHeads][kParts], minima[kMaxHeads][kParts], largest[kMaxHeads];
};

inline void weigh(Attention& a, uint32_t cell, uint32_t n_queries, Affine with, const float* largest, Weighed& sums) {
    for (uint32_t q = 0; q < n_queries; ++q) {
#pragma HLS PIPELINE II = 1
        float& score = a.scores[cell * n_queries + q];
        const float p = exp_of_minus(plus(largest[q], -score)), weight = times(p, with.scale), minimum = times(p, with.minimum);
        const uint32_t part = cell % kParts;
        sums.p[q][part] = plus(sums.p[q][part], p);
        sums.minima[q][part] = plus(sums.minima[q][part], minimum);
        sums.largest[q] = larger(sums.largest[q], weight);
        score = weight;
    }
}

// Behind the command, of each channel that has cells: the largest score of each query, 16 a beat; of each own cell a beat with its
// word. Back: of each query a beat.
template <class Commands, class Beats, class Results>
void attend_weights(Lanes& lanes, const Command& command, Commands& commands, Beats* beats, Results& results) {
    const uint32_t n_queries = command.n_queries;
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        Attention& a = lanes.attention[c];
        if (a.cells.count() == 0) continue;
        float largest[kMaxHeads];
        for (uint32_t first = 0; first < n_queries; first += kFloats) {
            const Beat beat = commands.read();
            for (uint32_t q = first; q < n_queries && q < first + kFloats; ++q) largest[q] = float_of(beat, q - first);
        }
        Weighed sums;
        for (uint32_t q = 0; q < n_queries; ++q) {
            for (uint32_t part = 0; part < kParts; ++part) sums.p[q][part] = sums.minima[q][part] = 0;
            sums.largest[q] = 0;
        }
        uint32_t cell = 0;
        BlockScales scales{};
        for (uint32_t run = 0; run < kRuns; ++run) {
            for (uint32_t i = 0; i < a.cells.n[run]; ++i) {
                const uint32_t place = a.cells.place[run] + i;
                scales.meet(place, i == 0, beats[c]);
                weigh(a, cell++, n_queries, scales.of(place), largest, sums);
            }
        }
        for (uint32_t i = 0; i < a.cells.n_own; ++i) weigh(a, cell++, n_queries, affine_of(word_of(commands.read(), 0)), largest, sums);
        for (uint32_t q = 0; q < n_queries; ++q) {
            Beat out{};
            set_float(out, 0, sum_of_parts(sums.p[q]));
            set_float(out, 1, sum_of_parts(sums.minima[q]));
            set_float(out, 2, sums.largest[q]);
            results.write(out);
        }
    }
}

inline void gather(Attention& a, uint32_t cell, uint32_t n_queries, uint32_t chunks, const float* inverse, const Beat* value) {
    for (uint32_t q = 0; q < n_queries; ++q) {
#pragma HLS PIPELINE II = 1
        // 2^23: the last place of the sum is one.
        const Int<13> code = static_cast<int16_t>(float_bits(plus(times(a.scores[cell * n_queries + q], inverse[q]), 8388608.0f)) & 0xfff);
        for (uint32_t i = 0; i < chunks * 128; ++i) {
#pragma HLS UNROLL factor = 128
            a.sums[q][i] += static_cast<int>(code) * static_cast<int>(value[i / 128].byte[i % 128 / 2] >> 4 * (i % 2) & 15);
        }
    }
}

// Behind the command, of each channel that has cells: the inverse of each query, 16 a beat; of each own cell its codes. Back: of each
// query 8 beats a chunk, of 16 sums each.
template <class Commands, class Beats, class Results>
void attend_values(Lanes& lanes, const Command& command, Commands& commands, Beats* beats, Results& results) {
    const uint32_t n_queries = command.n_queries, chunks = command.chunks;
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        Attention& a = lanes.attention[c];
        if (a.cells.count() == 0) continue;
        float inverse[kMaxHeads];
        for (uint32_t first = 0; first < n_queries; first += kFloats) {
            const Beat beat = commands.read();
            for (uint32_t q = first; q < n_queries && q < first + kFloats; ++q) inverse[q] = float_of(beat, q - first);
        }
        for (uint32_t q = 0; q < n_queries; ++q) {
            for (uint32_t i = 0; i < chunks * 128; ++i) a.sums[q][i] = 0;
        }
        Beat value[2];
        const uint32_t n_old = a.cells.n_old();
        for (uint32_t cell = 0; cell < a.cells.count(); ++cell) {
            for (uint32_t k = 0; k < chunks; ++k) value[k] = cell < n_old ? beats[c].read() : commands.read();
            gather(a, cell, n_queries, chunks, inverse, value);
        }
        for (uint32_t q = 0; q < n_queries; ++q) {
            for (uint32_t first = 0; first < chunks * 128; first += kFloats) {
                Beat out{};
                for (uint32_t k = 0; k < kFloats; ++k) set_word(out, k, static_cast<uint32_t>(static_cast<int32_t>(a.sums[q][first + k])));
                results.write(out);
            }
        }
    }
}

// One command. False at the end.
template <class Commands, class Beats, class Results>
bool lanes_step(Lanes& lanes, Commands& commands, Beats* beats, Results& results) {
    const Command command = command_of(commands.read());
    switch (command.kind) {
        case kCommandActivations: load_activations(lanes, command, commands); return true;
        case kCommandMultiply:
#ifdef HETRUN_U280_FAST
            multiply_in_format(command.format, [&](auto format) __attribute__((always_inline)) { multiply(lanes, format(), command, beats, results); });
#else
            multiply(lanes, command.format, command, beats, results);
#endif
            return true;
        case kCommandEmbed: embed(command, beats, results); return true;
        case kCommandForward: forward(command, beats, results); return true;
        case kCommandKeys: attend_keys(lanes, command, commands, beats, results); return true;
        case kCommandWeights: attend_weights(lanes, command, commands, beats, results); return true;
        case kCommandValues: attend_values(lanes, command, commands, beats, results); return true;
        default: return false;
    }
}

}  // namespace hetrun::u280
