// Attention in the lanes: a channel's keys against the queries of their head, and the weighted sum of its values.
//
// A unit is a row of the pass and a group of KV heads. It takes three parts, and a maximum over all channels between them:
//
//   Keys     score = f * (s_k * (codes_k . codes_q) + m_k * sum(codes_q)), f = f0 * the query's scale; back: the largest of each query
//   Weights  p = exp(score - largest of all channels), w = p * s_v; back: sum p, sum p * m_v, largest w
//   Values   codes of w: nearest even of w * inverse, 0 to 4095; back: sum of codes_w * codes_v, integers
//
// A command has the values of a unit, and after them the weights of the next beside the keys of the one behind that: lanes have enough to do
// while vector takes sums and maxima. Of the first and the last commands some parts are missing. All words of a command are taken before any
// result is given, since vector sends all of it before it reads.
//
// Cells are taken in the order of their positions. A float sum of a channel is eight, of cells 0, 8, ..., of 1, 9, ... and so on, added
// as ((0+4)+(2+6)) + ((1+5)+(3+7)). A largest that meets NaN stays NaN.
//
// Values are one loop over beats and cells, weights and keys together another; neither drains in between.
#pragma once

#include "fabric/activation.h"
#include "fabric/pipeline.h"
#include "flow.h"
#include "lanes.h"

namespace hetrun::u280 {

inline bool is_nan(float x) { return (float_bits(x) & 0x7fffffffu) > 0x7f800000u; }
inline float larger(float a, float b) { return is_nan(a) ? a : is_nan(b) || b > a ? b : a; }
constexpr uint32_t kMinusInfinity = 0xff800000u;

// Of 0 to 4095 and a little, to nearest even.
inline uint32_t nearest(float x) {
#pragma HLS INLINE
    const uint32_t exponent = float_bits(x) >> 23 & 255, fraction = (float_bits(x) & 0x7fffffu) | 0x800000u;
    if (exponent < 126) return 0;  // less than a half
    const uint32_t shift = exponent < 138 ? 150 - exponent : 12, kept = fraction >> shift;
    const uint32_t rest = fraction & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return (kept + (rest > tie || (rest == tie && kept % 2 != 0) ? 1 : 0)) & HETRUN_U280_P_CODES;
}

inline float sum_of_parts(const float* part) {
    return plus(plus(plus(part[0], part[4]), plus(part[2], part[6])), plus(plus(part[1], part[5]), plus(part[3], part[7])));
}
inline float largest_of_parts(const float* part) {
    return larger(larger(larger(part[0], part[4]), larger(part[2], part[6])), larger(larger(part[1], part[5]), larger(part[3], part[7])));
}

// A cell's scale and minimum, as one word holds them.
struct Affine {
    float scale, minimum;
};
inline Affine affine_of(uint32_t word) { return {half_to_float(static_cast<uint16_t>(word)), half_to_float(static_cast<uint16_t>(word >> 16))}; }

// A walk over a channel's cells: those of the cache, with two beats of scales where a run or a block begins, then own ones.
struct Walk {
    RunWalk runs;
    uint32_t cell, n_old, n_scales;
    Beat scales[2];

    explicit Walk(const Cells& cells) : runs(cells), cell(0), n_old(cells.n_old()), n_scales(0) {}
    bool old() const { return cell < n_old; }
    uint32_t own() const { return old() ? 0 : cell - n_old; }
    uint32_t place(const Cells& cells) const { return runs.ended() ? 0 : runs.place(cells) % HETRUN_U280_KV_BLOCK; }
    // True where a beat of scales comes before the cell: it is taken.
    template <class Beats>
    bool take_scales(const Cells& cells, Beats& beats) {
#pragma HLS INLINE
        if (!old() || n_scales == 2 || !runs.begins_block(cells)) return false;
        scales[n_scales++] = beats.read();
        return true;
    }
    // own_word: of the cell, where it is an own one.
    Affine affine(const Cells& cells, uint32_t own_word) const {
#pragma HLS INLINE
        const uint32_t i = place(cells);
        return affine_of(old() ? word_of(scales[i / kFloats], i % kFloats) : own_word);
    }
    void next(const Cells& cells) {
#pragma HLS INLINE
        if (old()) {
            runs.next(cells, 1);
            n_scales = 0;
        }
        ++cell;
    }
};

static_assert(kMaxQueries <= kFloats, "a float of each query is one beat");
inline void take_floats(const Beat& beat, float* x) {
#pragma HLS INLINE
    for (uint32_t q = 0; q < kMaxQueries; ++q) {
#pragma HLS UNROLL
        x[q] = float_of(beat, q);
    }
}

// If there are cells: a beat with the inverse of each query's largest weight; of each own cell its codes.
template <class Commands>
void take_values(Attention& a, uint32_t chunks, Commands& commands) {
#pragma HLS INLINE
    if (a.cells[0].count() == 0) return;
    take_floats(commands.read(), a.inverse);
    for (uint32_t r = 0; r < a.cells[0].n_own; ++r) {
        for (uint32_t k = 0; k < chunks; ++k) {
            HETRUN_FABRIC_PIPELINE(1);
            a.own_values[r][k] = commands.read();
        }
    }
}

// If there are cells: a beat with the largest score of each query; of each own cell a beat with its word.
template <class Commands>
void take_weights(Attention& a, Commands& commands) {
#pragma HLS INLINE
    if (a.cells[1].count() == 0) return;
    take_floats(commands.read(), a.largest);
    for (uint32_t r = 0; r < a.cells[1].n_own; ++r) {
        HETRUN_FABRIC_PIPELINE(1);
        a.own_words[r] = word_of(commands.read(), 0);
    }
}

// The channel's cells; if there are any, of each set and query a beat with its scale (float) and the sum of its codes, and beats of 64
// codes; of each own cell a beat with its word and whether it is a sink, and its codes.
template <class Commands>
void take_keys(Attention& a, const Command& command, Commands& commands) {
#pragma HLS INLINE
    const uint32_t n_queries = command.n_queries, chunks = command.chunks, n_codes = divided(command.n_columns, kCodes);
    a.cells[2] = cells_of(commands.read());
    if (a.cells[2].count() == 0) return;
    uint32_t set = 0, q = 0, i = 0;
    while (set < command.n_sets) {
        HETRUN_FABRIC_PIPELINE(1);
        const Beat beat = commands.read();
        if (i == 0) {
            a.scale[set][q] = float_of(beat, 0);
            a.code_sum[set][q] = static_cast<int32_t>(word_of(beat, 1));
        } else {
            for (uint32_t k = 0; k < kCodes; ++k) {
#pragma HLS UNROLL
                Int<8>* const codes = a.query[set][q * chunks + (i - 1) / 2];
                codes[(i - 1) % 2 * kCodes + k] = static_cast<int8_t>(beat.byte[k]);
                if ((i - 1) % 2 == 0) codes[kCodes + k] = 0;
            }
        }
        if (i++ < n_codes) continue;
        i = 0;
        if (++q < n_queries) continue;
        q = 0;
        ++set;
    }
    for (uint32_t r = 0; r < a.cells[2].n_own; ++r) {
        for (uint32_t k = 0; k < 1 + chunks; ++k) {
            HETRUN_FABRIC_PIPELINE(1);
            const Beat beat = commands.read();
            if (k == 0) a.own[r].head = beat;
            if (k != 0) a.own[r].codes[k - 1] = beat;
        }
    }
}

// A beat of a key meets a query, whose score is there with the key's last.   number: of the score.
struct Scoring {
    Beat key[2];
    int32_t dot;

    template <class Beats>
    void step(Attention& a, const Command& command, const Walk& walk, uint32_t q, uint32_t chunk, uint32_t number, Beats& beats) {
#pragma HLS INLINE
        const OwnCell& own = a.own[walk.own()];
        if (q == 0) key[chunk] = walk.old() ? beats.read() : own.codes[chunk];
        const bool sink = walk.old() ? walk.runs.run == 0 : word_of(own.head, 1) != 0;
        const uint32_t set = sink ? command.n_sets - 1 : 0, part = walk.cell % kParts;
        dot = (chunk == 0 ? 0 : dot) + key_dot(key[chunk], a.query[set][q * command.chunks + chunk]);
        if (chunk + 1 < command.chunks) return;
        const Affine with = walk.affine(a.cells[2], word_of(own.head, 0));
        const float offset = times(with.minimum, static_cast<float>(a.code_sum[set][q]));
        const float value = times(a.scale[set][q], plus(times(with.scale, static_cast<float>(dot)), offset));
        a.scores[a.half][number] = value;
        a.best[q][part] = larger(walk.cell < kParts ? bits_float(kMinusInfinity) : a.best[q][part], value);
    }
};

// A score becomes a weight.
inline void weigh(Attention& a, const Walk& walk, uint32_t q, uint32_t number) {
#pragma HLS INLINE
    const Affine with = walk.affine(a.cells[1], a.own_words[walk.own()]);
    const uint32_t part = walk.cell % kParts;
    const bool first = walk.cell < kParts;
    float& score = a.scores[1 - a.half][number];
    // A difference of zeros may be the one below zero.
    const float below = bits_float(float_bits(plus(a.largest[q], -score)) & 0x7fffffffu);
    const float p = exp_of_minus(below), weight = times(p, with.scale);
    a.p[q][part] = plus(first ? 0.0f : a.p[q][part], p);
    a.minima[q][part] = plus(first ? 0.0f : a.minima[q][part], times(p, with.minimum));
    a.most[q][part] = larger(first ? 0.0f : a.most[q][part], weight);
    score = weight;
}

// Beats of sums and largest weights of five queries.
template <class Results>
void give_weights(const Attention& a, uint32_t n_queries, uint32_t count, Results& results) {
#pragma HLS INLINE
    Beat out{};
    for (uint32_t q = 0; q < n_queries && count != 0; ++q) {
        HETRUN_FABRIC_PIPELINE(1);
        float p[kParts], minima[kParts], most[kParts];
        for (uint32_t k = 0; k < kParts; ++k) {
#pragma HLS UNROLL
            p[k] = k < count ? a.p[q][k] : 0.0f;
            minima[k] = k < count ? a.minima[q][k] : 0.0f;
            most[k] = k < count ? a.most[q][k] : 0.0f;
        }
        const uint32_t at = 3 * (q % kTriplets);
        set_float(out, at, sum_of_parts(p));
        set_float(out, at + 1, sum_of_parts(minima));
        set_float(out, at + 2, largest_of_parts(most));
        if (q % kTriplets + 1 == kTriplets || q + 1 == n_queries) results.write(out);
    }
}
// A beat with the largest score of each query.
template <class Results>
void give_largest(const Attention& a, uint32_t n_queries, uint32_t count, Results& results) {
#pragma HLS INLINE
    if (count == 0) return;
    Beat out{};
    for (uint32_t q = 0; q < n_queries; ++q) {
        HETRUN_FABRIC_PIPELINE(1);
        float part[kParts];
        for (uint32_t k = 0; k < kParts; ++k) {
#pragma HLS UNROLL
            part[k] = k < count ? a.best[q][k] : bits_float(kMinusInfinity);
        }
        set_float(out, q, largest_of_parts(part));
    }
    results.write(out);
}

// Scores of all cells of a unit, and weights of all cells of the one before it, which are in the other half of the scores. An iteration is a
// beat of a key and a query; with a key's last beat goes a score that becomes a weight. Before a cell come the scales of those of the unit
// that is weighed, then of those whose keys come, where a block of either begins.
template <class Beats, class Results>
void attend_scores(Attention& a, const Command& command, Beats& beats, Results& results) {
#pragma HLS INLINE
    const uint32_t n_queries = command.n_queries, chunks = command.chunks;
    const uint32_t n_weights = (command.parts & kPartWeights) != 0 ? a.cells[1].count() : 0;
    const uint32_t n_keys = (command.parts & kPartKeys) != 0 ? a.cells[2].count() : 0;
    Walk weights(n_weights == 0 ? Cells{} : a.cells[1]), keys(n_keys == 0 ? Cells{} : a.cells[2]);
    Scoring scoring;
    uint32_t q = 0, chunk = 0, number = 0;
    while (weights.cell < n_weights || keys.cell < n_keys) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = a.best inter distance = 8 true
#pragma HLS DEPENDENCE variable = a.p inter distance = 8 true
#pragma HLS DEPENDENCE variable = a.minima inter distance = 8 true
#pragma HLS DEPENDENCE variable = a.most inter distance = 8 true
#pragma HLS DEPENDENCE variable = a.scores inter false
        if (q + chunk == 0 && (weights.take_scales(a.cells[1], beats) || keys.take_scales(a.cells[2], beats))) continue;
        const bool scores = keys.cell < n_keys, weighs = weights.cell < n_weights;
        if (scores) scoring.step(a, command, keys, q, chunk, number, beats);
        if (++chunk < chunks) continue;
        chunk = 0;
        if (weighs) weigh(a, weights, q, number);
        ++number;
        if (++q < n_queries) continue;
        q = 0;
        if (scores) keys.next(a.cells[2]);
        if (weighs) weights.next(a.cells[1]);
    }
    give_weights(a, n_queries, n_weights, results);
    give_largest(a, n_queries, n_keys, results);
}

// Of each query ceil(n_columns / 16) beats of 16 sums.   take_more(): takes the rest of the command.
//
// Cells are taken in tiles of eight, which meet in a cascade: while a tile's weights are made codes and its values come, the one before is
// multiplied, 16 sums an iteration. A value comes 128 codes at once, and eight times 16 of eight are wanted: part p of cell j goes to bank
// (p + j) % 8, so that part p of all cells is one word of each bank.
template <class Beats, class Results, class TakeMore>
void attend_values(Attention& a, const Command& command, Beats& beats, Results& results, TakeMore take_more) {
#pragma HLS INLINE
    const uint32_t n_queries = command.n_queries, chunks = command.chunks, n_old = a.cells[0].n_old(), count = a.cells[0].count();
    const float* const scores = a.scores[a.half];
    constexpr uint32_t kSteps = kChunk / kCascades;
    ValuePart values[kCascade][2][2][kCascade];  // by bank; tile, beat of a value and cell
    UInt<12> weights[2][kMaxQueries][kCascade];
#pragma HLS ARRAY_PARTITION variable = values complete dim = 1
#pragma HLS BIND_STORAGE variable = values type = ram_s2p impl = lutram
#pragma HLS ARRAY_PARTITION variable = weights complete dim = 3
    const uint32_t n_tiles = divided(count, kCascade), n_steps = n_queries * chunks * kSteps;
    uint32_t tile = 0, step = 0;           // of the tile whose values come
    uint32_t value_cell = 0, value_chunk = 0, number = 0, code_cell = 0, code_q = 0;
    uint32_t q = 0, chunk = 0, s = 0;      // of the one before
    while (tile < n_tiles + 1 && count != 0) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = a.sums inter distance = 8 true
#pragma HLS DEPENDENCE variable = values inter false
#pragma HLS DEPENDENCE variable = weights inter false
        if (tile != 0) {
            int32_t out[kCascades];
            ValuePart parts[kCascade];
            UInt<12> codes[kCascade];
            for (uint32_t bank = 0; bank < kCascade; ++bank) {
#pragma HLS UNROLL
                const uint32_t cell = (bank - s) % kCascade;
                parts[bank] = values[bank][(tile - 1) % 2][chunk][cell];
                codes[bank] = weights[(tile - 1) % 2][q][cell];
            }
            value_sums(parts, codes, out);
            for (uint32_t k = 0; k < kCascades; ++k) {
#pragma HLS UNROLL
                Int<30>& sum = a.sums[q * chunks + chunk][s][k];
                sum = (tile == 1 ? Int<30>(0) : sum) + out[k];
            }
        }
        if (value_cell < kCascade && tile < n_tiles) {
            const uint32_t cell = tile * kCascade + value_cell;
            const Beat beat = cell < n_old ? beats.read() : cell < count ? a.own_values[cell - n_old][value_chunk] : Beat{};
            for (uint32_t bank = 0; bank < kCascade; ++bank) {
#pragma HLS UNROLL
                values[bank][tile % 2][value_chunk][value_cell] = value_part(beat, (bank - value_cell) % kCascade);
            }
            value_cell += value_chunk + 1 == chunks ? 1 : 0;
            value_chunk = value_chunk + 1 == chunks ? 0 : value_chunk + 1;
        }
        if (code_cell < kCascade && tile < n_tiles) {
            const bool there = tile * kCascade + code_cell < count;
            const uint32_t code = nearest(times(scores[there ? number : 0], a.inverse[code_q]));
            weights[tile % 2][code_q][code_cell] = there ? code : 0u;
            number += there ? 1 : 0;
            code_cell += code_q + 1 == n_queries ? 1 : 0;
            code_q = code_q + 1 == n_queries ? 0 : code_q + 1;
        }
        s = s + 1 == kSteps ? 0 : s + 1;
        chunk = s != 0 ? chunk : chunk + 1 == chunks ? 0 : chunk + 1;
        q = s + chunk != 0 ? q : q + 1 == n_queries ? 0 : q + 1;
        if (++step < n_steps) continue;
        step = value_cell = value_chunk = code_cell = code_q = 0;
        ++tile;
    }
    take_more();
    const uint32_t n_beats = divided(command.n_columns, kCascades);
    uint32_t from = 0;
    q = 0;
    while (q < n_queries && count != 0) {
        HETRUN_FABRIC_PIPELINE(1);
        Beat out{};
        for (uint32_t k = 0; k < kCascades; ++k) {
#pragma HLS UNROLL
            set_word(out, k, static_cast<uint32_t>(static_cast<int32_t>(a.sums[q * chunks + from / kSteps][from % kSteps][k])));
        }
        results.write(out);
        if (++from < n_beats) continue;
        from = 0;
        ++q;
    }
}

// The parts of a command.
template <class Commands, class Beats, class Results>
void attend_units(Attention& a, const Command& command, Commands& commands, Beats& beats, Results& results) {
#pragma HLS INLINE
    const auto has = [&](uint32_t part) { return (command.parts & part) != 0; };
    // Keys are many words: they come while values are summed.
    const auto take_more = [&] {
        if (has(kPartKeys)) take_keys(a, command, commands);
    };
    if (has(kPartValues)) take_values(a, command.chunks, commands);
    if (has(kPartWeights)) take_weights(a, commands);
    if (!has(kPartValues)) take_more();
    if (command.parts == kPartKeys) a.half = 0;
    if (has(kPartValues)) attend_values(a, command, beats, results, take_more);
    if (has(kPartWeights | kPartKeys)) attend_scores(a, command, beats, results);
    a.cells[0] = a.cells[1];
    a.cells[1] = a.cells[2];
    a.half = 1 - a.half;
}

// One command of a channel. False at the end. All of its loops multiply with the one array.
template <class Commands, class Beats, class Results>
bool channel_step(Lanes& lanes, Commands& commands, Beats& beats, Results& results) {
#pragma HLS INLINE
#pragma HLS ALLOCATION function instances = array limit = 1
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
        case kCommandAttend: attend_units(lanes.attention, command, commands, beats, results); return true;
        default: return false;
    }
}

}  // namespace hetrun::u280
