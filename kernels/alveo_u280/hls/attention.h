// Attention as vector sees it: keys and values into the cache, queries to the lanes, and what comes back into rows.
//
//   out = (acc * (wmax / 4095) + sum p * minimum) * (1 / sum p), floats of all channels in ascending order; integers acc exact
//
// A query whose largest score or weight is not finite gives NaN.
#pragma once

#include "cells.h"
#include "exchange.h"
#include "flow.h"
#include "heads.h"

namespace hetrun::u280 {

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
                for (uint32_t group = 0; group < cache.layout.groups && row < order.pass.n_rows; ++group)
                    n += cache.owns(order.pass.row[row], k * kLaneChannels + c, group) ? 2 : 0;
            }
            command.n_forward[c] = n;
        }
        commands[k].write(beat_of(command));
    }
}
// The cells of a row into the cache, an iteration a beat. A beat of scales is what the lanes found, or what an earlier row made of it.
template <class Writes>
void write_row(const Order& order, const Cache& cache, uint32_t row, OwnKv& own, Writes& writes) {
    const Instruction& i = order.instruction;
    const KvLayout& kv = cache.layout;
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
        const uint32_t group = number / kChannels, channel = number % kChannels;
        const uint32_t region = i.hbm + kv.region(static_cast<uint32_t>(at.slot), group), half = place % HETRUN_U280_KV_BLOCK / kFloats;
        Beat beat;
        if (w < 2) {
            beat = own.scales[side][from][group][channel];
            set_word(beat, place % HETRUN_U280_KV_BLOCK % kFloats, own.word[side][row][group][channel]);
            own.scales[side][row][group][channel] = beat;
        } else {
            beat = own.codes[side][row][group][channel][chunk];
        }
        const uint32_t scales = side == 0 ? kv.key_scales(place) : kv.value_scales(place), codes = side == 0 ? kv.key(place) : kv.value(place);
        const uint32_t to = w < 2 ? scales + half : codes + chunk;
        writes.write({channel, region + to, beat});
        if (++w < 2 + 2 * kv.chunks) continue;
        w = 0;
        ++head;
    }
}

inline void see(const Order& order, const Cache& cache, uint32_t number, Unit& unit) {
    unit.row = number / cache.layout.groups;
    unit.group = number % cache.layout.groups;
    const uint32_t heads = kChannels / cache.layout.stripes, left = cache.n_heads_kv - unit.group * heads;
    unit.first_head = unit.group * heads;
    unit.n_heads = left < heads ? left : heads;
    for (uint32_t channel = 0; channel < kChannels; ++channel) {
        HETRUN_FABRIC_PIPELINE(1);
        unit.cells[channel] = visible_cells(cache, order.pass, unit.row, channel, unit.group);
        unit.head[channel] = cache.head(channel, unit.group);
        unit.stripe[channel] = cache.stripe_of(channel, unit.group);
        uint32_t own = 0;
        for (uint32_t r = 0; r <= unit.row; ++r) {
            const uint32_t stripe = cache.stripe(static_cast<uint32_t>(order.pass.row[r].position));
            const bool seen = own_visible(cache, order.pass, unit.row, r) && stripe == unit.stripe[channel];
            own |= (seen && unit.head[channel] < cache.n_heads_kv ? 1u : 0u) << r;
        }
        unit.own[channel] = own;
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
inline void prepare_queries(const Instruction& i, const Cache& cache, const MemoryRow& row, Attending& state) {
    const KernelHeads kernels{cache.layout.stripes, cache.layout.groups, i.n_heads_kv};
    const bool rotates = (i.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
    const uint32_t n_sets = query_sets(i), at_once = rotates ? 1 : n_sets;
    for (uint32_t set = 0; set < n_sets; set += at_once) {
        if (rotates) hadamard(row + (set == 0 ? i.a : i.d) / kWide, i.n_heads * i.head_dim, i.head_dim, state.heads);
        round_queries(i, kernels, set, at_once, state.queries, [&](uint32_t of, uint32_t first, uint32_t step) {
            return rotates ? load_step(state.heads, first, step) : load_step(row, (of == 0 ? i.a : i.d) + first, step);
        });
    }
}

inline void round_row(const Order& order, const Cache& cache, uint32_t row, const MemoryRow& memory, Attending& state) {
    const Instruction& i = order.instruction;
    state.own.stripe[row] = cache.stripe(static_cast<uint32_t>(order.pass.row[row].position));
    const bool rotates = (i.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
    const uint32_t at_once = rotates ? 1 : 2;
    for (uint32_t side = 0; side < 2; side += at_once) {
        if (rotates) hadamard(memory + (side == 0 ? i.b : i.c) / kWide, i.n_heads_kv * i.head_dim, i.head_dim, state.heads);
        round_sides(i, cache.layout.stripes, 2 * row + side, at_once, state.rounded, state.own, [&](uint32_t of, uint32_t first, uint32_t step) {
            return rotates ? load_step(state.heads, first, step) : load_step(memory, (of % 2 == 0 ? i.b : i.c) + first, step);
        });
    }
}

// The unit's part of the row: 64 floats an iteration where heads are whole words.
inline void finish_unit(const Instruction& i, const Unit& unit, Attending& state, MemoryRow& row) {
    const bool rotates = (i.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
    const uint32_t n_queries = i.n_heads / i.n_heads_kv, step = step_of(i.head_dim), n_beats = divided(i.head_dim, kFloats);
    const uint32_t first = unit.first_head * n_queries * i.head_dim;  // of the row's floats
    uint32_t head = 0, q = 0, from = 0, at = first;
    while (head < unit.n_heads) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = state.sums inter false
        const uint32_t beat = head * sum_beats(i) + q * n_beats + from / kFloats;  // of whole words the first of four
        Word x{};
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            if (k >= step) continue;
            int32_t& kept = state.sums[beat / kBanks][step == kWide ? k / kFloats : beat % kBanks][step == 2 ? from % kFloats + k % 2 : k % kFloats];
            const int32_t sum = kept;
            kept = 0;
            x.x[k] = times(plus(times(static_cast<float>(sum), state.step[head].x[q]), state.minima[head].x[q]), state.factor[head].x[q]);
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

// Row by row: keys and values, which later rows see, and queries. But for the first row's all of it is done while the lanes work.
template <class Commands, class Results, class Writes>
void attend(const Order& order, MemoryRow* memory, Attending& state, Commands* commands, Results* results, Writes& writes) {
    const Instruction& i = order.instruction;
    const Cache cache(i);
    const uint32_t groups = cache.layout.groups, chunks = cache.layout.chunks, n_queries = i.n_heads / i.n_heads_kv;
    const uint32_t n_units = order.pass.n_rows * groups;
    const uint32_t n_set_beats = n_queries * query_beats(i.head_dim);
    const KernelHeads kernels{cache.layout.stripes, groups, i.n_heads_kv};
    OwnKv& own = state.own;
    ask_scales(order, cache, commands);
    round_row(order, cache, 0, memory[0], state);
    prepare_queries(i, cache, memory[0], state);
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
                first, 0, 1, chunks, commands,
                [&](uint32_t k, uint32_t channel, uint32_t) { return beat_of(state.inverse[k][first.head[channel] - first.first_head]); },
                [&](uint32_t channel, uint32_t row, uint32_t k) { return own.codes[1][row][first.group][channel][k]; });
        }
        if (weights) {
            send_part(
                second, 0, 1, 1, commands,
                [&](uint32_t k, uint32_t channel, uint32_t) { return beat_of(state.largest[k][second.head[channel] - second.first_head]); },
                [&](uint32_t channel, uint32_t row, uint32_t) { return word_beat(own.word[1][row][second.group][channel]); });
        }
        if (keys) {
            send_part(
                third, 1, 1 + command.n_sets * n_set_beats, 1 + chunks, commands,
                [&](uint32_t k, uint32_t channel, uint32_t n) {
                    if (n == 0) return beat_of(third.cells[channel]);
                    const uint32_t set = n - 1 < n_set_beats ? 0 : 1, first_beat = set * kKernelQueries * query_beats(i.head_dim);
                    return state.queries.beats[k][first_beat + kernels.place(k, third.head[channel]) * n_set_beats + n - 1 - set * n_set_beats];
                },
                [&](uint32_t channel, uint32_t row, uint32_t k) {
                    if (k != 0) return own.codes[0][row][third.group][channel][k - 1];
                    Beat beat = word_beat(own.word[0][row][third.group][channel]);
                    set_word(beat, 1, static_cast<uint32_t>(order.pass.row[row].position) < i.sink ? 1 : 0);
                    return beat;
                });
        }
        // While the lanes work.
        if (number == 0) write_row(order, cache, 0, own, writes);
        if (values) {
            take_sums(i, cache, first, state, results);
            finish_unit(i, first, state, memory[first.row]);
        }
        if (number + 1 < n_units) {
            see(order, cache, number + 1, state.units[(number + 1) % 3]);
            const uint32_t row = (number + 1) / groups;
            if ((number + 1) % groups == 0) {
                round_row(order, cache, row, memory[row], state);
                prepare_queries(i, cache, memory[row], state);
                write_row(order, cache, row, own, writes);
            }
        }
        if (weights) take_weights(i, cache, second, state, results);
        if (keys) take_largest(i, third, state, results);
    }
}

}  // namespace hetrun::u280
