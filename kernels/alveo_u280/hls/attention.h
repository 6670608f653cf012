// Attention as vector sees it: keys and values into the cache, queries to the lanes, and what comes back into rows.
//
//   out = (acc * (wmax / 4095) + sum p * minimum) / sum p, of all channels in ascending order; integers acc exact
//
// A query whose largest score or weight is not finite gives NaN.
#pragma once

#include "attend.h"
#include "cells.h"
#include "flow.h"
#include "quantize.h"

namespace hetrun::u280 {

// Keys and values of a pass, of one layer, and the scales of the cache that they stand among.
struct OwnKv {
    Cell key[kTokens][kMaxHeads], value[kTokens][kMaxHeads];
    Beat key_scales[kTokens][kMaxHeads], value_scales[kTokens][kMaxHeads];
};

struct Attending {
    OwnKv own;
    Query query[2][kMaxHeads];  // those of sinks behind the others
    float largest[kMaxHeads], total[kMaxHeads], minima[kMaxHeads], most[kMaxHeads];  // scores, sum p, sum p * minimum, weights
    int32_t sums[kMaxHeads][kMaxHeadDim];
};

template <class Commands>
void send_all(Commands* commands, const Beat& beat) {
    for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
        commands[k].write(beat);
    }
}

inline void round_rows(const Order& order, const float memory[kTokens][HETRUN_U280_VECTOR_FLOATS], OwnKv& own) {
    const Instruction& i = order.instruction;
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) {
        for (uint32_t head = 0; head < i.n_heads_kv; ++head) {
            for (uint32_t side = 0; side < 2; ++side) {
                float x[kMaxHeadDim] = {};
                for (uint32_t k = 0; k < i.head_dim; ++k) x[k] = memory[row][(side == 0 ? i.b : i.c) + head * i.head_dim + k];
                if ((i.flags & HETRUN_U280_FLAG_HADAMARD) != 0) hadamard(x, i.head_dim);
                round_cell(x, i.head_dim, side == 0 ? own.key[row][head] : own.value[row][head]);
            }
        }
    }
}

// The row's cells into the cache. A beat of scales is what the lanes found there, or what an earlier row of the pass made of it.
template <class Commands, class Results, class Writes>
void write_row(const Order& order, const Cache& cache, uint32_t row, OwnKv& own, Commands* commands, Results* results, Writes& writes) {
    const Instruction& i = order.instruction;
    const KvLayout& kv = cache.layout;
    const uint32_t position = static_cast<uint32_t>(order.pass.row[row].position), place = cache.place(position), stripe = cache.stripe(position);
    const auto owns = [&](uint32_t channel, uint32_t group) {
        return cache.head(channel, group) < i.n_heads_kv && cache.stripe_of(channel, group) == stripe;
    };
    for (uint32_t k = 0; k < kLaneKernels; ++k) {
        Command command{};
        command.kind = kCommandForward;
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
            for (uint32_t group = 0; group < kv.groups; ++group) command.n_forward[c] += owns(k * kLaneChannels + c, group) ? 2 : 0;
        }
        commands[k].write(beat_of(command));
    }
    const uint32_t at = place % HETRUN_U280_KV_BLOCK % kFloats, half = place % HETRUN_U280_KV_BLOCK / kFloats;
    for (uint32_t channel = 0; channel < kChannels; ++channel) {
        for (uint32_t group = 0; group < kv.groups; ++group) {
            if (!owns(channel, group)) continue;
            const uint32_t head = cache.head(channel, group), from = i.hbm + kv.region(static_cast<uint32_t>(order.pass.row[row].slot), group);
            Beat keys = results[channel / kLaneChannels].read(), values = results[channel / kLaneChannels].read();
            for (uint32_t before = 0; before < row; ++before) {
                const Row& other = order.pass.row[before];
                const uint32_t other_position = static_cast<uint32_t>(other.position);
                if (other.slot == order.pass.row[row].slot && cache.stripe(other_position) == stripe &&
                    cache.place(other_position) / kFloats == place / kFloats) {
                    keys = own.key_scales[before][head];
                    values = own.value_scales[before][head];
                }
            }
            set_word(keys, at, own.key[row][head].word);
            set_word(values, at, own.value[row][head].word);
            own.key_scales[row][head] = keys;
            own.value_scales[row][head] = values;
            writes.write({channel, from + kv.key_scales(place) + half, keys});
            writes.write({channel, from + kv.value_scales(place) + half, values});
            for (uint32_t chunk = 0; chunk < kv.chunks; ++chunk) {
                writes.write({channel, from + kv.key(place) + chunk, own.key[row][head].codes[chunk]});
                writes.write({channel, from + kv.value(place) + chunk, own.value[row][head].codes[chunk]});
            }
        }
    }
}

// What the row's query of a channel and group needs: cells, and calls each(other) for its own cells there.
template <class Each>
void each_own(const Order& order, const Cache& cache, uint32_t row, uint32_t channel, uint32_t group, Each each) {
    const uint32_t stripe = cache.stripe_of(channel, group);
    for (uint32_t r = 0; r <= row; ++r) {
        if (own_visible(cache, order.pass, row, r) && cache.stripe(static_cast<uint32_t>(order.pass.row[r].position)) == stripe) each(r);
    }
}

inline Beat word_beat(uint32_t word) {
    Beat beat{};
    set_word(beat, 0, word);
    return beat;
}

template <class Commands>
void send_query(Commands& commands, const Query& query, float factor, uint32_t chunks) {
    Beat head{};
    set_float(head, 0, times(factor, query.scale));
    set_word(head, 1, static_cast<uint32_t>(query.code_sum));
    commands.write(head);
    for (uint32_t b = 0; b < 2 * chunks; ++b) {
        Beat codes;
        for (uint32_t k = 0; k < kCodes; ++k) codes.byte[k] = static_cast<uint8_t>(static_cast<int>(query.code[b * kCodes + k]));
        commands.write(codes);
    }
}

// Floats of n queries, 16 a beat.
template <class Commands>
void send_floats(Commands& commands, const float* x, uint32_t n) {
    for (uint32_t from = 0; from < n; from += kFloats) {
        Beat beat{};
        for (uint32_t k = from; k < n && k < from + kFloats; ++k) set_float(beat, k - from, x[k]);
        commands.write(beat);
    }
}

inline uint32_t query_sets(const Instruction& i) { return i.sink != 0 && i.d != i.a ? 2 : 1; }

// The queries of a row, as their codes, and what their sums begin with.
inline void prepare_queries(const Instruction& i, const float* memory, Attending& state) {
    for (uint32_t head = 0; head < i.n_heads; ++head) {
        for (uint32_t set = 0; set < query_sets(i); ++set) {
            float x[kMaxHeadDim] = {};
            for (uint32_t k = 0; k < i.head_dim; ++k) x[k] = memory[(set == 0 ? i.a : i.d) + head * i.head_dim + k];
            if ((i.flags & HETRUN_U280_FLAG_HADAMARD) != 0) hadamard(x, i.head_dim);
            quantize_query(x, i.head_dim, state.query[set][head]);
        }
        state.largest[head] = bits_float(kMinusInfinity);
        state.total[head] = state.minima[head] = state.most[head] = 0;
        for (uint32_t k = 0; k < kMaxHeadDim; ++k) state.sums[head][k] = 0;
    }
}

inline void finish_queries(const Instruction& i, const Attending& state, float* memory) {
    for (uint32_t head = 0; head < i.n_heads; ++head) {
        const bool usable = finite(state.largest[head]) && finite(state.most[head]);
        const float step = over(state.most[head], static_cast<float>(HETRUN_U280_P_CODES));
        float x[kMaxHeadDim] = {};
        for (uint32_t k = 0; k < i.head_dim; ++k) {
            const float sum = plus(times(static_cast<float>(state.sums[head][k]), step), state.minima[head]);
            x[k] = usable ? over(sum, state.total[head]) : bits_float(kNotANumber);
        }
        if ((i.flags & HETRUN_U280_FLAG_HADAMARD) != 0) hadamard(x, i.head_dim);
        for (uint32_t k = 0; k < i.head_dim; ++k) memory[i.dst + head * i.head_dim + k] = x[k];
    }
}

constexpr uint32_t kLeastWeight = 0x0d800000u;  // 2^-100: of smaller ones the inverse would overflow, and they add nothing

// The three commands of a row and group.
template <class Commands, class Results>
void attend_group(const Order& order, const Cache& cache, uint32_t row, uint32_t group, Attending& state, Commands* commands, Results* results) {
    const Instruction& i = order.instruction;
    const uint32_t n_queries = i.n_heads / i.n_heads_kv, chunks = cache.layout.chunks;
    Cells cells[kChannels];
    for (uint32_t channel = 0; channel < kChannels; ++channel) cells[channel] = visible_cells(cache, order.pass, row, channel, group);
    // tell(kernel's commands, channel, first query), get(kernel's results, first query) of each channel with cells, in order.
    const auto exchange = [&](uint32_t kind, auto tell, auto get) {
        Command command{};
        command.kind = kind;
        command.n_queries = n_queries;
        command.chunks = chunks;
        command.n_sets = query_sets(i);
        send_all(commands, beat_of(command));
        for (uint32_t channel = 0; channel < kChannels; ++channel) {
            auto& to = commands[channel / kLaneChannels];
            if (kind == kCommandKeys) to.write(beat_of(cells[channel]));
            if (cells[channel].count() != 0) tell(to, channel, cache.head(channel, group) * n_queries);
        }
        for (uint32_t channel = 0; channel < kChannels; ++channel) {
            if (cells[channel].count() != 0) get(results[channel / kLaneChannels], cache.head(channel, group) * n_queries);
        }
    };
    exchange(
        kCommandKeys,
        [&](auto& to, uint32_t channel, uint32_t first) {
            for (uint32_t set = 0; set < query_sets(i); ++set) {
                for (uint32_t q = first; q < first + n_queries; ++q) send_query(to, state.query[set][q], i.f0, chunks);
            }
            each_own(order, cache, row, channel, group, [&](uint32_t r) {
                const Cell& key = state.own.key[r][cache.head(channel, group)];
                Beat head = word_beat(key.word);
                set_word(head, 1, static_cast<uint32_t>(order.pass.row[r].position) < i.sink ? 1 : 0);
                to.write(head);
                for (uint32_t k = 0; k < chunks; ++k) to.write(key.codes[k]);
            });
        },
        [&](auto& from, uint32_t first) {
            for (uint32_t q = 0; q < n_queries; q += kFloats) {
                const Beat beat = from.read();
                for (uint32_t k = q; k < n_queries && k < q + kFloats; ++k) state.largest[first + k] = larger(state.largest[first + k], float_of(beat, k - q));
            }
        });
    exchange(
        kCommandWeights,
        [&](auto& to, uint32_t channel, uint32_t first) {
            send_floats(to, state.largest + first, n_queries);
            each_own(order, cache, row, channel, group, [&](uint32_t r) { to.write(word_beat(state.own.value[r][cache.head(channel, group)].word)); });
        },
        [&](auto& from, uint32_t first) {
            for (uint32_t q = first; q < first + n_queries; ++q) {
                const Beat beat = from.read();
                state.total[q] = plus(state.total[q], float_of(beat, 0));
                state.minima[q] = plus(state.minima[q], float_of(beat, 1));
                state.most[q] = larger(state.most[q], float_of(beat, 2));
            }
        });
    float inverse[kMaxHeads];
    for (uint32_t q = 0; q < i.n_heads; ++q) {
        const uint32_t most = float_bits(state.most[q]);
        const bool usable = most >= kLeastWeight && most < kInfinity;
        inverse[q] = usable ? over(static_cast<float>(HETRUN_U280_P_CODES), state.most[q]) : 0.0f;
    }
    exchange(
        kCommandValues,
        [&](auto& to, uint32_t channel, uint32_t first) {
            send_floats(to, inverse + first, n_queries);
            each_own(order, cache, row, channel, group, [&](uint32_t r) {
                for (uint32_t k = 0; k < chunks; ++k) to.write(state.own.value[r][cache.head(channel, group)].codes[k]);
            });
        },
        [&](auto& from, uint32_t first) {
            for (uint32_t q = first; q < first + n_queries; ++q) {
                for (uint32_t k = 0; k < chunks * 128; k += kFloats) {
                    const Beat beat = from.read();
                    for (uint32_t n = 0; n < kFloats; ++n) state.sums[q][k + n] += static_cast<int32_t>(word_of(beat, n));
                }
            }
        });
}

// All keys and values of the pass first, then its queries, row by row.
template <class Commands, class Results, class Writes>
void attend(const Order& order, float memory[kTokens][HETRUN_U280_VECTOR_FLOATS], Attending& state, Commands* commands, Results* results, Writes& writes) {
    const Cache cache(order.instruction);
    round_rows(order, memory, state.own);
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) write_row(order, cache, row, state.own, commands, results, writes);
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) {
        prepare_queries(order.instruction, memory[row], state);
        for (uint32_t group = 0; group < cache.layout.groups; ++group) attend_group(order, cache, row, group, state, commands, results);
        finish_queries(order.instruction, state, memory[row]);
    }
}

}  // namespace hetrun::u280
