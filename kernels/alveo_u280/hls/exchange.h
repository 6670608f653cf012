// What vector and the lanes tell each other of attention: the beats of a command to all channels, and what each of its parts gives. Kernels
// are served side by side.
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
    uint32_t row, group, first_head, n_heads;
    Cells cells[kChannels];
    uint32_t own[kChannels];                      // rows whose cells come from the chip, as bits
    uint32_t head[kChannels], stripe[kChannels];  // n_heads_kv or more for none
};

constexpr uint32_t kGroupHeads = kChannels;  // KV heads of a group, at most
constexpr uint32_t kBanks = 4;               // of sums of values: 16 each

struct Attending {
    OwnKv own;
    RoundedHead rounded[kSidesOfPass][kMaxHeads];
    HeadFloats heads;  // rotated
    Queries queries;
    Unit units[3];     // that are under way, by their number mod 3
    // By KV head of the group; for each kernel, what it is told.
    OfQueries largest[kLaneKernels][kGroupHeads], inverse[kLaneKernels][kGroupHeads];
    OfQueries total[kGroupHeads], minima[kGroupHeads], most[kGroupHeads], step[kGroupHeads], factor[kGroupHeads];  // wmax / 4095; 1 / sum p, or NaN
    float partial[kChannels][kMaxQueries + kTriplets][3];  // sum p, sum p * minimum, largest weight
    int32_t sums[kMaxHeads * kMaxHeadDim / kWide + kGroupHeads][kBanks][kFloats];  // of values: a head's from a whole word on, query by query
};

// Beats of a head's sums of values, in whole words.
inline uint32_t sum_beats(const Instruction& i) { return divided(i.n_heads / i.n_heads_kv * divided(i.head_dim, kFloats), kBanks) * kBanks; }

template <class Commands>
void send_all(Commands* commands, const Beat& beat) {
    for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
        commands[k].write(beat);
    }
}

template <class Results>
void take_scales(const Order& order, const Cache& cache, OwnKv& own, Results* results) {
    uint32_t c[kLaneKernels] = {}, row[kLaneKernels] = {}, group[kLaneKernels] = {}, side[kLaneKernels] = {}, n_left = kLaneKernels;
    while (n_left != 0) {
        HETRUN_FABRIC_PIPELINE(1);
        for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
            if (c[k] == kLaneChannels) continue;
            const uint32_t channel = k * kLaneChannels + c[k];
            const bool owns = cache.owns(order.pass.row[row[k]], channel, group[k]);
            if (owns) own.scales[side[k]][row[k]][group[k]][channel] = results[k].read();
            if (owns && ++side[k] < 2) continue;
            side[k] = 0;
            if (++group[k] < cache.layout.groups) continue;
            group[k] = 0;
            if (++row[k] < order.pass.n_rows) continue;
            row[k] = 0;
            if (++c[k] == kLaneChannels) --n_left;
        }
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

// To each channel `n_always` beats, or n where it has cells, then `of_own` beats of each own cell. Kernels side by side, an iteration a beat of
// each.   head(kernel, channel, i), own(channel, row, i): beats.
template <class Commands, class Head, class Own>
void send_part(const Unit& unit, uint32_t n_always, uint32_t n, uint32_t of_own, Commands* commands, Head head, Own own) {
    uint32_t c[kLaneKernels] = {}, i[kLaneKernels] = {}, part[kLaneKernels] = {}, left[kLaneKernels], n_left = kLaneKernels;
#pragma HLS ARRAY_PARTITION variable = c complete
#pragma HLS ARRAY_PARTITION variable = i complete
#pragma HLS ARRAY_PARTITION variable = part complete
#pragma HLS ARRAY_PARTITION variable = left complete
    for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
        left[k] = unit.own[k * kLaneChannels];
    }
    while (n_left != 0) {
        HETRUN_FABRIC_PIPELINE(1);
        for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
            if (c[k] == kLaneChannels) continue;
            const uint32_t channel = k * kLaneChannels + c[k], n_head = unit.cells[channel].count() != 0 ? n : n_always;
            if (i[k] < n_head) {
                commands[k].write(head(k, channel, i[k]++));
            } else if (left[k] != 0) {
                commands[k].write(own(channel, lowest(left[k]), part[k]));
                part[k] = part[k] + 1 == of_own ? 0 : part[k] + 1;
                left[k] = part[k] == 0 ? left[k] & (left[k] - 1) : left[k];
            }
            if (i[k] < n_head || left[k] != 0) continue;
            i[k] = 0;
            if (++c[k] == kLaneChannels) --n_left;
            left[k] = c[k] == kLaneChannels ? 0 : unit.own[channel + 1];
        }
    }
}

// Sums of values of the unit's queries, from the lanes: four kernels side by side, each of which is behind the one before it, so that their
// beats go to banks of their own. No sum is added to twice within four iterations: of heads that share kernels they are further apart. Sums
// begin as zeros: finish_unit leaves them so.
template <class Results>
void take_sums(const Instruction& i, const Cache& cache, const Unit& unit, Attending& state, Results* results) {
    const uint32_t stripes = cache.layout.stripes, n_beats = i.n_heads / i.n_heads_kv * divided(i.head_dim, kFloats), of_head = sum_beats(i);
    const bool within = stripes == 1 || stripes == 2 || stripes == 4;  // a kernel
    const uint32_t behind = within ? 1 : 5, least = within ? 8 : 20, n = of_head < least ? least : of_head;  // of each channel
    for (uint32_t first = 0; first < kLaneKernels; first += kBanks) {
        uint32_t c[kBanks] = {}, at[kBanks] = {};
#pragma HLS ARRAY_PARTITION variable = c complete
#pragma HLS ARRAY_PARTITION variable = at complete
        for (uint32_t time = 0; time < kLaneChannels * n + (kBanks - 1) * behind; ++time) {
            HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = state.sums inter distance = 4 true
            Beat beats[kBanks];
            uint32_t to[kBanks];
            bool given[kBanks];
            for (uint32_t k = 0; k < kBanks; ++k) {
#pragma HLS UNROLL
                const bool begun = time >= k * behind && c[k] < kLaneChannels;
                const uint32_t channel = (first + k) * kLaneChannels + (begun ? c[k] : 0);
                given[k] = begun && at[k] < n_beats && unit.cells[channel].count() != 0;
                beats[k] = given[k] ? results[first + k].read() : Beat{};
                to[k] = (unit.head[channel] - unit.first_head) * of_head + at[k];
                at[k] += begun ? 1 : 0;
                if (at[k] < n) continue;
                at[k] = 0;
                ++c[k];
            }
            for (uint32_t bank = 0; bank < kBanks; ++bank) {
#pragma HLS UNROLL
                const uint32_t k = (time - bank) % kBanks;
                for (uint32_t f = 0; f < kFloats && given[k]; ++f) {
#pragma HLS UNROLL
                    state.sums[to[k] / kBanks][bank][f] += static_cast<int32_t>(word_of(beats[k], f));
                }
            }
        }
    }
}

// Sums p and the largest weights of the unit's queries, and what follows of them. Channels of a head in ascending order, but those of all heads
// by turns, so that no sum waits for itself.
template <class Results>
void take_weights(const Instruction& i, const Cache& cache, const Unit& unit, Attending& state, Results* results) {
    const uint32_t n_queries = i.n_heads / i.n_heads_kv, stripes = cache.layout.stripes;
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        for (uint32_t first = 0; first < n_queries; first += kTriplets) {
            HETRUN_FABRIC_PIPELINE(1);
            for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
                const uint32_t channel = k * kLaneChannels + c;
                if (unit.cells[channel].count() == 0) continue;
                const Beat beat = results[k].read();
                for (uint32_t q = 0; q < kTriplets; ++q) {
#pragma HLS UNROLL
                    for (uint32_t f = 0; f < 3; ++f) state.partial[channel][first + q][f] = float_of(beat, 3 * q + f);
                }
            }
        }
    }
    const uint32_t n = unit.n_heads * n_queries, spaced = n < 8 ? 8 : n;
    uint32_t stripe = 0, head = 0, at = 0, q = 0;
    while (stripe < stripes) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = state.total inter distance = 8 true
#pragma HLS DEPENDENCE variable = state.minima inter distance = 8 true
#pragma HLS DEPENDENCE variable = state.most inter distance = 8 true
        if (at < n) {
            const uint32_t of = head * stripes + stripe;
            const float* const x = state.partial[of][q];
            float total = stripe == 0 ? 0.0f : state.total[head].x[q], minima = stripe == 0 ? 0.0f : state.minima[head].x[q];
            float most = stripe == 0 ? 0.0f : state.most[head].x[q];
            if (unit.cells[of].count() != 0) {
                total = plus(total, x[0]);
                minima = plus(minima, x[1]);
                most = larger(most, x[2]);
            }
            state.total[head].x[q] = total;
            state.minima[head].x[q] = minima;
            state.most[head].x[q] = most;
            if (stripe + 1 == stripes) {
                constexpr uint32_t kLeastWeight = 0x0d800000u;  // 2^-100: of smaller ones the inverse would overflow, and they add nothing
                constexpr float kCodesOfP = HETRUN_U280_P_CODES;
                const bool usable = float_bits(most) >= kLeastWeight && float_bits(most) < kInfinity;
                const float inverse = usable ? over(kCodesOfP, most) : 0.0f;
                for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
                    state.inverse[k][head].x[q] = inverse;
                }
                state.step[head].x[q] = over(most, kCodesOfP);
                state.factor[head].x[q] = finite(state.largest[0][head].x[q]) && finite(most) ? over(1.0f, total) : bits_float(kNotANumber);
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
        for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
            if (unit.head[channel] < i.n_heads_kv) state.largest[k][unit.head[channel] - unit.first_head] = best;
        }
    }
}

}  // namespace hetrun::u280
