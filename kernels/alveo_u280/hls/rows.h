// Ops of rows of the vector memory: NORM, ROPE, and those that go word by word. Orders of floats: vector.h.
#pragma once

#include <cmath>

#include "fabric/activation.h"
#include "flow.h"
#include "memory.h"

namespace hetrun::u280 {

// Adds x[k + apart] to x[k] for half of n, then the half of that.
template <uint32_t N>
float tree(float (&x)[N]) {
#pragma HLS INLINE
    for (uint32_t apart = N / 2; apart > 0; apart /= 2) {
#pragma HLS UNROLL
        for (uint32_t k = 0; k < apart; ++k) {
#pragma HLS UNROLL
            x[k] = plus(x[k], x[k + apart]);
        }
    }
    return x[0];
}

constexpr uint32_t kSums = 16, kNormGroups = 128;  // sums of a group of NORM; groups that are summed before any is scaled

// A walk over the groups of all rows, `step` floats an iteration.   number: of the group, among those of this walk.
struct GroupWalk {
    uint32_t row, first, number, from;  // first: float of the group in its row

    void next(const Instruction& i, uint32_t step) {
#pragma HLS INLINE
        from += step;
        if (from < i.group) return;
        from = 0;
        ++number;
        first += i.group;
        if (first < i.n) return;
        first = 0;
        ++row;
    }
};

// Three loops over up to 128 groups, none of which waits for a float of its own before the sixteenth iteration. Returns where the next begin.
inline GroupWalk norm_groups(const Instruction& i, uint32_t n_rows, const GroupWalk& begin, const Constants& weights, MemoryRow* memory) {
    const uint32_t step = i.n == i.group ? kWide : step_of(i.group);
    float sums[kSums][kNormGroups], factors[kNormGroups], squares[kWide];
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 1
#pragma HLS ARRAY_PARTITION variable = squares complete
#pragma HLS DEPENDENCE variable = sums inter distance = 16 true
    GroupWalk walk = begin;
    while (walk.row < n_rows && walk.number < kNormGroups) {
        HETRUN_FABRIC_PIPELINE(1);
        const uint32_t from = walk.from, at = from % kWide;
        const Word x = load_step(memory[walk.row], i.a + walk.first + from, step);
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            const float own = x.x[step == kWide ? k : step == kFloats ? k % kFloats : k % 2];
            if (k >= at && k < at + step) squares[k] = from + k - at < i.group ? times(own, own) : 0.0f;
            if (at == 0 && k >= step) squares[k] = 0.0f;
        }
        if (from + step >= i.group || at + step == kWide) {
            float of_word[kWide];
            for (uint32_t k = 0; k < kWide; ++k) of_word[k] = squares[k];
            float& sum = sums[from / kWide % kSums][walk.number];
            sum = from < kSums * kWide ? tree(of_word) : plus(sum, tree(of_word));
        }
        walk.next(i, step);
    }
    const GroupWalk end{walk.row, walk.first, 0, 0};
    for (uint32_t number = 0; number < walk.number; ++number) {
        HETRUN_FABRIC_PIPELINE(1);
        float part[kSums];
        for (uint32_t k = 0; k < kSums; ++k) {
#pragma HLS UNROLL
            part[k] = k * kWide < i.group ? sums[k][number] : 0.0f;
        }
        const float mean = over(tree(part), static_cast<float>(i.group));
        factors[number] = over(1.0f, flushed(std::sqrt(plus(mean, i.f0))));
    }
    const uint32_t n_groups = walk.number;
    walk = begin;
    while (walk.number < n_groups) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = memory inter false
        const uint32_t at = walk.first + walk.from;
        Word x = load_step(memory[walk.row], i.a + at, step);
        const Word weight = load_step(weights, walk.from, step);
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            x.x[k] = times(times(x.x[k], factors[walk.number]), weight.x[k]);
        }
        store_step(memory[walk.row], i.dst + at, step, x);
        walk.next(i, step);
    }
    return end;
}

inline void norm(const Instruction& i, uint32_t n_rows, const Constants& weights, MemoryRow* memory) {
    for (GroupWalk at{0, 0, 0, 0}; at.row < n_rows && i.n != 0;) at = norm_groups(i, n_rows, at, weights, memory);
}

// One pair of floats, and where it is rotated to.
inline void rotate(float& a, float& b, float cos, float sin) {
#pragma HLS INLINE
    const float first = plus(times(a, cos), -times(b, sin)), second = plus(times(a, sin), times(b, cos));
    a = first;
    b = second;
}

// Heads whose pairs lie in one word (neighbours, or halves of 32), or in words of their own (halves of 64 and more).   table: cos, sin of
// each pair.
inline void rope_words(const Instruction& i, const Constants& table, MemoryRow& memory) {
    const bool halves = (i.flags & HETRUN_U280_FLAG_HALF) != 0, apart = halves && i.n_pairs % kWide == 0;
    const uint32_t words = i.group / kWide, from_a = i.a / kWide, to = i.dst / kWide;
    uint32_t head = 0, w = 0;
    while (head < i.n / i.group && apart) {  // two words in, two out
        HETRUN_FABRIC_PIPELINE(2);
#pragma HLS DEPENDENCE variable = memory inter false
        const uint32_t own = head * words + w, other = own + i.n_pairs / kWide;
        const bool rotated = w < i.n_pairs / kWide;
        Word a = load_word(memory, from_a + own), b{};
        if (rotated) {
            b = load_word(memory, from_a + other);
            const Word low = load_word(table, 2 * w), high = load_word(table, 2 * w + 1);
            for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
                const Word& both = k < kWide / 2 ? low : high;
                rotate(a.x[k], b.x[k], both.x[2 * k % kWide], both.x[2 * k % kWide + 1]);
            }
            store_word(memory, to + other, b);
        }
        store_word(memory, to + own, a);
        const uint32_t next = rotated && w + 1 == i.n_pairs / kWide ? 2 * i.n_pairs / kWide : w + 1;  // those behind the pairs are copied
        head += next == words ? 1 : 0;
        w = next == words ? 0 : next;
    }
    while (head < i.n / i.group) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = memory inter false
        const uint32_t own = head * words + w;
        Word a = load_word(memory, from_a + own);
        const Word both = load_word(table, w);
        for (uint32_t k = 0; k < kWide / 2; ++k) {
#pragma HLS UNROLL
            const bool rotated = w * (kWide / 2) + k < i.n_pairs;
            float& second = halves ? a.x[k + kWide / 2] : a.x[2 * k + 1];
            if (rotated) rotate(halves ? a.x[k] : a.x[2 * k], second, both.x[2 * k], both.x[2 * k + 1]);
        }
        store_word(memory, to + own, a);
        head += w + 1 == words ? 1 : 0;
        w = w + 1 == words ? 0 : w + 1;
    }
}

// Of other heads a pair after the other, where the values are to be.
inline void rope_pairs(const Instruction& i, const Constants& table, MemoryRow& memory) {
    for (uint32_t w = 0; w < divided(i.n, kWide) && i.a != i.dst; ++w) {
        HETRUN_FABRIC_PIPELINE(1);
        store_word(memory, i.dst / kWide + w, load_word(memory, i.a / kWide + w));
    }
    const bool halves = (i.flags & HETRUN_U280_FLAG_HALF) != 0;
    const auto at = [](auto& row, uint32_t k) -> auto& { return row[k / kWide][k % kWide / 2].x[k % 2]; };
    for (uint32_t head = 0; head < i.n; head += i.group) {
        for (uint32_t p = 0; p < i.n_pairs; ++p) {
            HETRUN_FABRIC_PIPELINE(2);
#pragma HLS DEPENDENCE variable = memory inter false
            const uint32_t first = i.dst + head + (halves ? p : 2 * p), second = first + (halves ? i.n_pairs : 1);
            rotate(at(memory, first), at(memory, second), at(table, 2 * p), at(table, 2 * p + 1));
        }
    }
}

inline void rope(const Instruction& i, const Constants& table, MemoryRow& memory) {
    const bool halves = (i.flags & HETRUN_U280_FLAG_HALF) != 0, whole = i.group % kWide == 0;
    if (whole && (!halves || i.n_pairs == kWide / 2 || i.n_pairs % kWide == 0)) return rope_words(i, table, memory);
    rope_pairs(i, table, memory);
}

constexpr uint32_t kGates = 8;  // exponentials and divisions

// A slice of silu(gate) * up, in the place of up.
inline void gate_slice(uint32_t slice, const Word& gate, Word& up) {
#pragma HLS INLINE
    for (uint32_t k = 0; k < kGates; ++k) {
#pragma HLS UNROLL
        const uint32_t at = slice * kGates + k;
        up.x[at] = silu_times(gate.x[at], up.x[at]);
    }
}

// Words of a row, one after the other.   ADD takes two and gives one, of the memory's two accesses a cycle: two cycles.
inline void map_words(const Instruction& i, const Constants& constants, MemoryRow& memory) {
    const uint32_t n_words = divided(i.n, kWide), a = i.a / kWide, b = i.b / kWide, dst = i.dst / kWide;
    if (i.op == HETRUN_U280_OP_ADD) {
        for (uint32_t w = 0; w < n_words; ++w) {
            HETRUN_FABRIC_PIPELINE(2);
#pragma HLS DEPENDENCE variable = memory inter false
            Word x = load_word(memory, a + w);
            const Word y = load_word(memory, b + w);
            for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
                x.x[k] = plus(x.x[k], y.x[k]);
            }
            store_word(memory, dst + w, x);
        }
        return;
    }
    if (i.op == HETRUN_U280_OP_GATE) {
        uint32_t w = 0, slice = 0;
        Word gate{}, up{};
        while (w < n_words) {
            HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = memory inter false
            if (slice == 0) gate = load_word(memory, a + w);
            if (slice == 0) up = load_word(memory, b + w);
            gate_slice(slice, gate, up);
            if (++slice < kWide / kGates) continue;
            slice = 0;
            store_word(memory, dst + w++, up);
        }
        return;
    }
    for (uint32_t w = 0; w < n_words; ++w) {  // SCALE, BIAS
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = memory inter false
        Word x = load_word(memory, a + w);
        const Word y = load_word(constants, i.op == HETRUN_U280_OP_BIAS ? w : 0);
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            x.x[k] = i.op == HETRUN_U280_OP_SCALE ? times(x.x[k], i.f0) : plus(x.x[k], y.x[k]);
        }
        store_word(memory, dst + w, x);
    }
}

}  // namespace hetrun::u280
