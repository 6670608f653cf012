// Attention as vector sees it: keys and values into the cache, queries to the lanes, and what comes back into rows.
//
//   out = (acc * (wmax / 4095) + sum p * minimum) * (1 / sum p), floats of all channels in ascending order; integers acc exact
//
// A query whose largest score or weight is not finite gives NaN.
#pragma once

#include "attend.h"
#include "cells.h"
#include "flow.h"
#include "heads.h"

namespace hetrun::u280 {

// Of the queries of a KV head.
struct OfQueries {
    float x[kMaxQueries];
};

// A row of the pass and a group of KV heads: what each channel has of it.
struct Unit {
    uint32_t row, group;
    Cells cells[kChannels];
    uint32_t own[kChannels];                      // rows whose cells come from the chip, as bits
    uint32_t head[kChannels], stripe[kChannels];  // n_heads_kv or more for none
};

struct Attending {
    OwnKv own;
    RoundedHead rounded[kSidesOfPass][kMaxHeads];
    HeadFloats heads;  // rotated
    Queries queries;
    Unit units[3];     // that are under way, by their number mod 3
    OfQueries largest[kMaxHeads], inverse[kMaxHeads], total[kMaxHeads], minima[kMaxHeads], most[kMaxHeads];  // by KV head
    OfQueries step[kMaxHeads], factor[kMaxHeads];                   // wmax / 4095; 1 / sum p, or NaN
    float partial[kChannels][kMaxQueries][3];                       // sum p, sum p * minimum, largest weight
    int32_t sums[kMaxHeads][kMaxHeadDim / kFloats][kFloats];        // by query
};

template <class Commands>
void send_all(Commands* commands, const Beat& beat) {
    for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
        commands[k].write(beat);
    }
}

// The scales that the pass's own cells stand among, from the lanes as they found them: of each channel those of all rows.
template <class Commands>
void ask_scales(const Order& order, const Cache& cache, Commands* commands) {
    Command command{};
    command.kind = kCommandForward;
    for (uint32_t k = 0; k < kLaneKernels; ++k) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
            HETRUN_FABRIC_PIPELINE(1);
            uint32_t n = 0;
            for (uint32_t row = 0; row < kTokens; ++row) {
#pragma HLS UNROLL
                for (uint32_t group = 0; group < cache.layout.groups && row < order.pass.n_rows; ++group) n += cache.owns(order.pass.row[row], k * kLaneChannels + c, group) ? 2 : 0;
            }
            command.n_forward[c] = n;
        }
        commands[k].write(beat_of(command));
    }
}
template <class Results>
void take_scales(const Order& order, const Cache& cache, OwnKv& own, Results* results) {
    uint32_t channel = 0, row = 0, group = 0, side = 0;
    while (channel < kChannels) {
        HETRUN_FABRIC_PIPELINE(1);
        const bool owns = cache.owns(order.pass.row[row], channel, group);
        if (owns) own.scales[side][row][cache.head(channel, group)] = results[channel / kLaneChannels].read();
        if (owns && ++side < 2) continue;
        side = 0;
        if (++group < cache.layout.groups) continue;
        group = 0;
        if (++row < order.pass.n_rows) continue;
        row = 0;
        ++channel;
    }
}

// Cells of the pass into the cache, an iteration a beat. A beat of scales is what the lanes found, or what an earlier row made of it.
template <class Writes>
void write_rows(const Order& order, const Cache& cache, OwnKv& own, Writes& writes) {
    const Instruction& i = order.instruction;
    const KvLayout& kv = cache.layout;
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) {
        const Row& at = order.pass.row[row];
        const uint32_t position = static_cast<uint32_t>(at.position), place = cache.place(position), stripe = cache.stripe(position);
        uint32_t from = row;  // the last row before it whose cell shares the beats
        for (uint32_t before = 0; before < row; ++before) {
            const uint32_t other = static_cast<uint32_t>(order.pass.row[before].position);
            if (order.pass.row[before].slot == at.slot && cache.stripe(other) == stripe && cache.place(other) / kFloats == place / kFloats) from = before;
        }
        uint32_t head = 0, w = 0;
        while (head < i.n_heads_kv) {
            HETRUN_FABRIC_PIPELINE(1);
            const uint32_t number = head * kv.stripes + stripe, side = w % 2, chunk = w / 2 - 1;
            const uint32_t region = i.hbm + kv.region(static_cast<uint32_t>(at.slot), number / kChannels), half = place % HETRUN_U280_KV_BLOCK / kFloats;
            Beat beat;
            if (w < 2) {
                beat = own.scales[side][from][head];
                set_word(beat, place % HETRUN_U280_KV_BLOCK % kFloats, own.word[side][row][head]);
                own.scales[side][row][head] = beat;
            } else {
                beat = own.codes[side][row][head][chunk];
            }
            const uint32_t to = w < 2 ? (side == 0 ? kv.key_scales(place) : kv.value_scales(place)) + half : (side == 0 ? kv.key(place) : kv.value(place)) + chunk;
            writes.write({number % kChannels, region + to, beat});
            if (++w < 2 + 2 * kv.chunks) continue;
            w = 0;
            ++head;
        }
    }
}

inline void see(const Order& order, const Cache& cache, uint32_t number, Unit& unit) {
    unit.row = number / cache.layout.groups;
    unit.group = number % cache.layout.groups;
    for (uint32_t channel = 0; channel < kChannels; ++channel) {
        HETRUN_FABRIC_PIPELINE(1);
        unit.cells[channel] = visible_cells(cache, order.pass, unit.row, channel, unit.group);
        unit.head[channel] = cache.head(channel, unit.group);
        unit.stripe[channel] = cache.stripe_of(channel, unit.group);
        uint32_t own = 0;
        for (uint32_t r = 0; r <= unit.row; ++r) {
            const bool seen = own_visible(cache, order.pass, unit.row, r) && cache.stripe(static_cast<uint32_t>(order.pass.row[r].position)) == unit.stripe[channel];
            own |= (seen && unit.head[channel] < cache.n_heads_kv ? 1u : 0u) << r;
        }
        unit.own[channel] = own;
    }
}

inline uint32_t lowest(uint32_t bits) {
    uint32_t i = 0;
    for (uint32_t k = kTokens; k-- > 0;) {
#pragma HLS UNROLL
        if ((bits >> k & 1) != 0) i = k;
    }
    return i;
}

// To each channel `n_always` beats, or n where it has cells, then `of_own` beats of each own cell: an iteration a beat.   head(channel, i),
// own(channel, row, i): beats.
template <class Commands, class Head, class Own>
void send_part(const Unit& unit, uint32_t n_always, uint32_t n, uint32_t of_own, Commands* commands, Head head, Own own) {
    uint32_t channel = 0, i = 0, part = 0, left = unit.own[0];
    while (channel < kChannels) {
        HETRUN_FABRIC_PIPELINE(1);
        auto& to = commands[channel / kLaneChannels];
        const uint32_t n_head = unit.cells[channel].count() != 0 ? n : n_always;
        if (i < n_head) {
            to.write(head(channel, i++));
        } else if (left != 0) {
            to.write(own(channel, lowest(left), part));
            part = part + 1 == of_own ? 0 : part + 1;
            left = part == 0 ? left & (left - 1) : left;
        }
        if (i < n_head || left != 0) continue;
        i = 0;
        ++channel;
        left = channel < kChannels ? unit.own[channel] : 0;
    }
}

inline Beat word_beat(uint32_t word) {
    Beat beat{};
    set_word(beat, 0, word);
    return beat;
}
inline Beat beat_of(const OfQueries& floats) {
    Beat beat{};
    for (uint32_t q = 0; q < kMaxQueries; ++q) {
#pragma HLS UNROLL
        set_float(beat, q, floats.x[q]);
    }
    return beat;
}

inline uint32_t query_sets(const Instruction& i) { return i.sink != 0 && i.d != i.a ? 2 : 1; }

// Queries of a row, as the lanes take them.
inline void prepare_queries(const Instruction& i, const MemoryRow& row, Attending& state) {
    const bool rotates = (i.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
    const uint32_t n_sets = query_sets(i), at_once = rotates ? 1 : n_sets;
    for (uint32_t set = 0; set < n_sets; set += at_once) {
        if (rotates) hadamard(row + (set == 0 ? i.a : i.d) / kWide, i.n_heads * i.head_dim, i.head_dim, state.heads);
        round_queries(i, set, at_once, state.queries, [&](uint32_t of, uint32_t first, uint32_t step) {
            return rotates ? load_step(state.heads, first, step) : load_step(row, (of == 0 ? i.a : i.d) + first, step);
        });
    }
}

inline void round_rows(const Order& order, const MemoryRow* memory, Attending& state) {
    const Instruction& i = order.instruction;
    const bool rotates = (i.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
    const uint32_t n_sides = 2 * order.pass.n_rows, at_once = rotates ? 1 : n_sides;
    for (uint32_t side = 0; side < n_sides; side += at_once) {
        if (rotates) hadamard(memory[side / 2] + (side % 2 == 0 ? i.b : i.c) / kWide, i.n_heads_kv * i.head_dim, i.head_dim, state.heads);
        round_sides(i, side, at_once, state.rounded, state.own, [&](uint32_t of, uint32_t first, uint32_t step) {
            return rotates ? load_step(state.heads, first, step) : load_step(memory[of / 2], (of % 2 == 0 ? i.b : i.c) + first, step);
        });
    }
}

// Sums of values of the unit's queries, from the lanes, 16 an iteration: none is added to twice within four.
template <class Results>
void take_sums(const Instruction& i, const Unit& unit, Attending& state, Results* results) {
    const uint32_t n_queries = i.n_heads / i.n_heads_kv, n_beats = divided(i.head_dim, kFloats);
    uint32_t channel = 0, q = 0, b = 0, n = 0;
    while (channel < kChannels) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = state.sums inter distance = 4 true
        const bool any = unit.cells[channel].count() != 0, first = unit.stripe[channel] == 0;
        const bool wanted = unit.head[channel] < i.n_heads_kv && (any || first);
        if (wanted && q < n_queries) {
            const Beat beat = any ? results[channel / kLaneChannels].read() : Beat{};
            for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
                int32_t& sum = state.sums[unit.head[channel] * n_queries + q][b][k];
                sum = (first ? 0 : sum) + static_cast<int32_t>(word_of(beat, k));
            }
            q += b + 1 == n_beats ? 1 : 0;
            b = b + 1 == n_beats ? 0 : b + 1;
        }
        ++n;
        if (wanted && (q < n_queries || n < 4)) continue;
        q = b = n = 0;
        ++channel;
    }
}

// Sums p and the largest weights of the unit's queries, and what follows of them. Channels of a head in ascending order, but those of all heads
// by turns, so that no sum waits for itself.
template <class Results>
void take_weights(const Instruction& i, const Cache& cache, const Unit& unit, Attending& state, Results* results) {
    const uint32_t n_queries = i.n_heads / i.n_heads_kv, stripes = cache.layout.stripes;
    const uint32_t first_head = unit.head[0], heads = kChannels / stripes, left = i.n_heads_kv - first_head, n_heads = left < heads ? left : heads;
    uint32_t channel = 0, q = 0;
    while (channel < kChannels) {
        HETRUN_FABRIC_PIPELINE(1);
        const bool any = unit.cells[channel].count() != 0;
        if (any) {
            const Beat beat = results[channel / kLaneChannels].read();
            for (uint32_t k = 0; k < kTriplets; ++k) {
#pragma HLS UNROLL
                for (uint32_t f = 0; f < 3 && q + k < kMaxQueries; ++f) state.partial[channel][q + k][f] = float_of(beat, 3 * k + f);
            }
        }
        q += kTriplets;
        if (any && q < n_queries) continue;
        q = 0;
        ++channel;
    }
    const uint32_t n = n_heads * n_queries, spaced = n < 8 ? 8 : n;
    uint32_t stripe = 0, head = 0, at = 0;
    q = 0;
    while (stripe < stripes) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = state.total inter distance = 8 true
#pragma HLS DEPENDENCE variable = state.minima inter distance = 8 true
#pragma HLS DEPENDENCE variable = state.most inter distance = 8 true
        if (at < n) {
            const uint32_t h = first_head + head, of = head * stripes + stripe;
            const float* const x = state.partial[of][q];
            float total = stripe == 0 ? 0.0f : state.total[h].x[q], minima = stripe == 0 ? 0.0f : state.minima[h].x[q];
            float most = stripe == 0 ? 0.0f : state.most[h].x[q];
            if (unit.cells[of].count() != 0) {
                total = plus(total, x[0]);
                minima = plus(minima, x[1]);
                most = larger(most, x[2]);
            }
            state.total[h].x[q] = total;
            state.minima[h].x[q] = minima;
            state.most[h].x[q] = most;
            if (stripe + 1 == stripes) {
                constexpr uint32_t kLeastWeight = 0x0d800000u;  // 2^-100: of smaller ones the inverse would overflow, and they add nothing
                constexpr float kCodesOfP = HETRUN_U280_P_CODES;
                const bool usable = float_bits(most) >= kLeastWeight && float_bits(most) < kInfinity;
                state.inverse[h].x[q] = usable ? over(kCodesOfP, most) : 0.0f;
                state.step[h].x[q] = over(most, kCodesOfP);
                state.factor[h].x[q] = finite(state.largest[h].x[q]) && finite(most) ? over(1.0f, total) : bits_float(kNotANumber);
            }
            head += q + 1 == n_queries ? 1 : 0;
            q = q + 1 == n_queries ? 0 : q + 1;
        }
        if (++at < spaced) continue;
        at = head = q = 0;
        ++stripe;
    }
}

template <class Results>
void take_largest(const Instruction& i, const Unit& unit, Attending& state, Results* results) {
    OfQueries best{};
    for (uint32_t channel = 0; channel < kChannels; ++channel) {
        HETRUN_FABRIC_PIPELINE(1);
        const bool any = unit.cells[channel].count() != 0;
        const Beat beat = any ? results[channel / kLaneChannels].read() : Beat{};
        for (uint32_t q = 0; q < kMaxQueries; ++q) {
#pragma HLS UNROLL
            const float before = unit.stripe[channel] == 0 ? bits_float(kMinusInfinity) : best.x[q];
            best.x[q] = any ? larger(before, float_of(beat, q)) : before;
        }
        if (unit.head[channel] < i.n_heads_kv) state.largest[unit.head[channel]] = best;
    }
}

// The unit's part of the row: 64 floats an iteration where heads are whole words.
inline void finish_unit(const Instruction& i, const Cache& cache, const Unit& unit, Attending& state, MemoryRow& row) {
    const bool rotates = (i.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
    const uint32_t n_queries = i.n_heads / i.n_heads_kv, step = step_of(i.head_dim);
    const uint32_t first_head = unit.head[0], heads = kChannels / cache.layout.stripes, end = first_head + heads < i.n_heads_kv ? first_head + heads : i.n_heads_kv;
    const uint32_t first = first_head * n_queries * i.head_dim;  // of the row's floats
    uint32_t head = first_head, q = 0, from = 0, at = first;
    while (head < end) {
        HETRUN_FABRIC_PIPELINE(1);
        Word x{};
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            const uint32_t in_beat = step == kWide ? k % kFloats : step == kFloats ? k % kFloats : from % kFloats + k % 2;
            const int32_t sum = state.sums[head * n_queries + q][step == kWide ? from / kFloats + k / kFloats : from / kFloats][in_beat];
            if (k < step) x.x[k] = times(plus(times(static_cast<float>(sum), state.step[head].x[q]), state.minima[head].x[q]), state.factor[head].x[q]);
        }
        if (rotates) {
            store_step(state.heads, at, step, x);
        } else {
            store_step(row, i.dst + at, step, x);
        }
        from += step;
        at += step;
        if (from < i.head_dim) continue;
        from = 0;
        head += q + 1 == n_queries ? 1 : 0;
        q = q + 1 == n_queries ? 0 : q + 1;
    }
    if (!rotates) return;
    const uint32_t n = at - first;
    hadamard(state.heads + first / kWide, n, i.head_dim, state.heads + first / kWide);
    for (uint32_t w = 0; w < divided(n, kWide); ++w) {
        HETRUN_FABRIC_PIPELINE(1);
        store_word(row, (i.dst + first) / kWide + w, load_word(state.heads, first / kWide + w));
    }
}

// All keys and values of the pass first, then its queries, row by row.
template <class Commands, class Results, class Writes>
void attend(const Order& order, MemoryRow* memory, Attending& state, Commands* commands, Results* results, Writes& writes) {
    const Instruction& i = order.instruction;
    const Cache cache(i);
    const uint32_t groups = cache.layout.groups, chunks = cache.layout.chunks, n_queries = i.n_heads / i.n_heads_kv, n_units = order.pass.n_rows * groups;
    const uint32_t n_set_beats = n_queries * query_beats(i.head_dim);
    OwnKv& own = state.own;
    ask_scales(order, cache, commands);
    round_rows(order, memory, state);
    prepare_queries(i, memory[0], state);
    see(order, cache, 0, state.units[0]);
    take_scales(order, cache, own, results);
    for (uint32_t number = 0; number < n_units + 2; ++number) {
        const bool keys = number < n_units, weights = number >= 1 && number <= n_units, values = number >= 2;
        const Unit &third = state.units[number % 3], &second = state.units[(number + 2) % 3], &first = state.units[(number + 1) % 3];
        Command command{};
        command.kind = kCommandAttend;
        command.n_columns = i.head_dim;
        command.n_queries = n_queries;
        command.chunks = chunks;
        command.n_sets = query_sets(i);
        command.parts = (values ? kPartValues : 0) | (weights ? kPartWeights : 0) | (keys ? kPartKeys : 0);
        send_all(commands, beat_of(command));
        if (values) {
            send_part(
                first, 0, 1, chunks, commands, [&](uint32_t channel, uint32_t) { return beat_of(state.inverse[first.head[channel]]); },
                [&](uint32_t channel, uint32_t row, uint32_t k) { return own.codes[1][row][first.head[channel]][k]; });
        }
        if (weights) {
            send_part(
                second, 0, 1, 1, commands, [&](uint32_t channel, uint32_t) { return beat_of(state.largest[second.head[channel]]); },
                [&](uint32_t channel, uint32_t row, uint32_t) { return word_beat(own.word[1][row][second.head[channel]]); });
        }
        if (keys) {
            send_part(
                third, 1, 1 + command.n_sets * n_set_beats, 1 + chunks, commands,
                [&](uint32_t channel, uint32_t k) {
                    if (k == 0) return beat_of(third.cells[channel]);
                    const uint32_t set = k - 1 < n_set_beats ? 0 : 1;
                    return state.queries.beats[(set * i.n_heads_kv + third.head[channel]) * n_set_beats + k - 1 - set * n_set_beats];
                },
                [&](uint32_t channel, uint32_t row, uint32_t k) {
                    const uint32_t head = third.head[channel];
                    if (k != 0) return own.codes[0][row][head][k - 1];
                    Beat beat = word_beat(own.word[0][row][head]);
                    set_word(beat, 1, static_cast<uint32_t>(order.pass.row[row].position) < i.sink ? 1 : 0);
                    return beat;
                });
        }
        // While the lanes work.
        if (number == 0) write_rows(order, cache, own, writes);
        if (values) {
            take_sums(i, first, state, results);
            finish_unit(i, cache, first, state, memory[first.row]);
        }
        if (number + 1 < n_units) {
            see(order, cache, number + 1, state.units[(number + 1) % 3]);
            if ((number + 1) % groups == 0) prepare_queries(i, memory[(number + 1) / groups], state);
        }
        if (weights) take_weights(i, cache, second, state, results);
        if (keys) take_largest(i, third, state, results);
    }
}

}  // namespace hetrun::u280
