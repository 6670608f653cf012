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

// A walk over a channel's cells: those of the cache, whose block's scales are read where a run or a block begins, then own ones.
struct Walk {
    uint32_t run, in_run;
    Beat scales[2];

    void begin(const Cells& cells) {
        run = in_run = 0;
        skip(cells);
    }
    void skip(const Cells& cells) {
        for (uint32_t i = 0; i < kRuns; ++i) {
#pragma HLS UNROLL
            if (run < kRuns && in_run == cells.n[run]) {
                ++run;
                in_run = 0;
            }
        }
    }
    // The next cell's scale and minimum; sink: whether it is of the first run.
    template <class Beats>
    Affine next(const Cells& cells, Beats& beats, bool& sink) {
#pragma HLS INLINE
        const uint32_t place = cells.place[run] + in_run, i = place % HETRUN_U280_KV_BLOCK;
        if (in_run == 0 || i == 0) {
            for (Beat& beat : scales) beat = beats.read();
        }
        sink = run == 0;
        ++in_run;
        skip(cells);
        return affine_of(word_of(scales[i / kFloats], i % kFloats));
    }
};

// The most cells of a channel.
inline uint32_t most_cells(const Lanes& lanes) {
    uint32_t most = 0;
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        const uint32_t n = lanes.attention[c].cells.count();
        most = n > most ? n : most;
    }
    return most;
}

// set: of queries, 1 where the cell is a sink and they have their own.
inline void score(Attention& a, uint32_t set, uint32_t cell, uint32_t n_queries, uint32_t chunks, Affine with, const Beat* key) {
    for (uint32_t q = 0; q < n_queries; ++q) {
#pragma HLS PIPELINE II = 1
        int32_t dot = 0;
        for (uint32_t i = 0; i < chunks * 128; ++i) {
#pragma HLS UNROLL factor = 128
            dot += static_cast<int>(key[i / 128].byte[i % 128 / 2] >> 4 * (i % 2) & 15) * static_cast<int>(a.query[set][q][i]);
        }
        const float offset = times(with.minimum, static_cast<float>(a.code_sum[set][q]));
        const float value = times(a.scale[set][q], plus(times(with.scale, static_cast<float>(dot)), offset));
        a.scores[cell * n_queries + q] = value;
        a.largest[q] = larger(a.largest[q], value);
    }
}

// Floats of queries, 16 a beat.
template <class Commands>
void take_floats(Commands& commands, float* x, uint32_t n) {
    for (uint32_t first = 0; first < n; first += kFloats) {
        const Beat beat = commands.read();
        for (uint32_t q = first; q < n && q < first + kFloats; ++q) x[q] = float_of(beat, q - first);
    }
}

// Of each channel: its cells; if there are any, of each set and query a beat with its scale (float) and the sum of its codes, and two
// beats of codes a chunk; of each own cell a beat with its word and whether it is a sink, and its codes.
template <class Commands>
void take_keys(Attention& a, const Command& command, Commands& commands) {
    const uint32_t n_queries = command.n_queries, chunks = command.chunks;
    a.cells = cells_of(commands.read());
    if (a.cells.count() == 0) return;
    for (uint32_t q = 0; q < n_queries; ++q) a.largest[q] = bits_float(kMinusInfinity);
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
    for (uint32_t i = 0; i < a.cells.n_own; ++i) {
        a.own[i].head = commands.read();
        for (uint32_t k = 0; k < chunks; ++k) a.own[i].codes[k] = commands.read();
    }
}

// A command is taken as a whole before any result is given: vector sends all of it before it reads. Channels walk side by side.
template <class Commands, class Beats, class Results>
void attend_keys(Lanes& lanes, const Command& command, Commands& commands, Beats* beats, Results& results) {
    const uint32_t n_queries = command.n_queries, chunks = command.chunks, of_sinks = command.n_sets - 1;
    Walk walk[kLaneChannels];
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        take_keys(lanes.attention[c], command, commands);
        walk[c].begin(lanes.attention[c].cells);
    }
    const uint32_t most = most_cells(lanes);
    for (uint32_t cell = 0; cell < most; ++cell) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
            Attention& a = lanes.attention[c];
            if (cell >= a.cells.count()) continue;
            Beat key[2];
            if (cell < a.cells.n_old()) {
                bool sink;
                const Affine with = walk[c].next(a.cells, beats[c], sink);
                for (uint32_t k = 0; k < chunks; ++k) key[k] = beats[c].read();
                score(a, sink ? of_sinks : 0, cell, n_queries, chunks, with, key);
            } else {
                const OwnCell& own = a.own[cell - a.cells.n_old()];
                score(a, word_of(own.head, 1) != 0 ? of_sinks : 0, cell, n_queries, chunks, affine_of(word_of(own.head, 0)), own.codes);
            }
        }
    }
    for (const Attention& a : lanes.attention) {
        for (uint32_t first = 0; first < n_queries && a.cells.count() != 0; first += kFloats) {
            Beat out{};
            for (uint32_t q = first; q < n_queries && q < first + kFloats; ++q) set_float(out, q - first, a.largest[q]);
            results.write(out);
        }
    }
}

inline void weigh(Attention& a, uint32_t cell, uint32_t n_queries, Affine with) {
    for (uint32_t q = 0; q < n_queries; ++q) {
#pragma HLS PIPELINE II = 1
        float& score = a.scores[cell * n_queries + q];
        const float p = exp_of_minus(plus(a.largest[q], -score)), weight = times(p, with.scale), minimum = times(p, with.minimum);
        const uint32_t part = cell % kParts;
        a.p[q][part] = plus(a.p[q][part], p);
        a.minima[q][part] = plus(a.minima[q][part], minimum);
        a.most[q] = larger(a.most[q], weight);
        score = weight;
    }
}

// Of each channel that has cells: the largest score of each query, 16 a beat; of each own cell a beat with its word. Back: of each query
// a beat.
template <class Commands, class Beats, class Results>
void attend_weights(Lanes& lanes, const Command& command, Commands& commands, Beats* beats, Results& results) {
    const uint32_t n_queries = command.n_queries;
    Walk walk[kLaneChannels];
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        Attention& a = lanes.attention[c];
        walk[c].begin(a.cells);
        if (a.cells.count() == 0) continue;
        take_floats(commands, a.largest, n_queries);
        for (uint32_t i = 0; i < a.cells.n_own; ++i) a.own[i].head = commands.read();
        for (uint32_t q = 0; q < n_queries; ++q) {
            for (uint32_t part = 0; part < kParts; ++part) a.p[q][part] = a.minima[q][part] = 0;
            a.most[q] = 0;
        }
    }
    const uint32_t most = most_cells(lanes);
    for (uint32_t cell = 0; cell < most; ++cell) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
            Attention& a = lanes.attention[c];
            if (cell >= a.cells.count()) continue;
            bool sink;
            const bool old = cell < a.cells.n_old();
            weigh(a, cell, n_queries, old ? walk[c].next(a.cells, beats[c], sink) : affine_of(word_of(a.own[cell - a.cells.n_old()].head, 0)));
        }
    }
    for (const Attention& a : lanes.attention) {
        for (uint32_t q = 0; q < n_queries && a.cells.count() != 0; ++q) {
            Beat out{};
            set_float(out, 0, sum_of_parts(a.p[q]));
            set_float(out, 1, sum_of_parts(a.minima[q]));
            set_float(out, 2, a.most[q]);
            results.write(out);
        }
    }
}

inline void gather(Attention& a, uint32_t cell, uint32_t n_queries, uint32_t chunks, const Beat* value) {
    for (uint32_t q = 0; q < n_queries; ++q) {
#pragma HLS PIPELINE II = 1
        // 2^23: the last place of the sum is one.
        const uint32_t code = float_bits(plus(times(a.scores[cell * n_queries + q], a.inverse[q]), 8388608.0f)) & 0xfff;
        for (uint32_t i = 0; i < chunks * 128; ++i) {
#pragma HLS UNROLL factor = 128
            a.sums[q][i] += static_cast<int>(code) * static_cast<int>(value[i / 128].byte[i % 128 / 2] >> 4 * (i % 2) & 15);
        }
    }
}

// Of each channel that has cells: the inverse of each query, 16 a beat; of each own cell its codes. Back: of each query 8 beats a chunk,
// of 16 sums each.
template <class Commands, class Beats, class Results>
void attend_values(Lanes& lanes, const Command& command, Commands& commands, Beats* beats, Results& results) {
    const uint32_t n_queries = command.n_queries, chunks = command.chunks;
    for (Attention& a : lanes.attention) {
        if (a.cells.count() == 0) continue;
        take_floats(commands, a.inverse, n_queries);
        for (uint32_t i = 0; i < a.cells.n_own; ++i) {
            for (uint32_t k = 0; k < chunks; ++k) a.own[i].codes[k] = commands.read();
        }
        for (uint32_t q = 0; q < n_queries; ++q) {
            for (uint32_t i = 0; i < chunks * 128; ++i) a.sums[q][i] = 0;
        }
    }
    const uint32_t most = most_cells(lanes);
    for (uint32_t cell = 0; cell < most; ++cell) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
            Attention& a = lanes.attention[c];
            if (cell >= a.cells.count()) continue;
            Beat value[2];
            for (uint32_t k = 0; k < chunks; ++k) value[k] = cell < a.cells.n_old() ? Beat(beats[c].read()) : a.own[cell - a.cells.n_old()].codes[k];
            gather(a, cell, n_queries, chunks, value);
        }
    }
    for (const Attention& a : lanes.attention) {
        for (uint32_t q = 0; q < n_queries && a.cells.count() != 0; ++q) {
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
