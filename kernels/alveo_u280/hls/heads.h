// Heads of rows: rotated by Hadamard's matrix, and as codes of the cache, of queries, and back.
//
// Whatever needs a quotient of each head is three loops over all heads, so that none waits for its own: what the quotient is made of; the
// quotients; codes.
#pragma once

#include "flow.h"
#include "memory.h"
#include "quantize.h"

namespace hetrun::u280 {

using HeadFloats = PairsOf<kMaxHeads * kMaxHeadDim>;

// Sylvester's order, then times 1 / sqrt(head_dim), of n floats.   head_dim: a power of two.
inline void hadamard(const Pair (*from)[kWide / 2], uint32_t n, uint32_t head_dim, Pair (*to)[kWide / 2]) {
    uint32_t bits = 0;
    for (uint32_t k = head_dim; k > 1; k /= 2) ++bits;
    // 2^(-bits / 2): of odd powers sqrt(1/2) as a float.
    const float root = bits_float((127 - bits / 2) << 23), factor = bits % 2 == 0 ? root : root * 0.70710678118654752440f;
    const uint32_t n_words = divided(n, kWide);
    for (uint32_t apart = 1; apart < head_dim; apart *= 2) {
        const bool last = 2 * apart == head_dim;
        for (uint32_t w = 0; w < n_words && apart < kWide; ++w) {
            HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = to inter false
            const Word x = apart == 1 ? load_word(from, w) : load_word(to, w);
            Word y;
            for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
                const float own = x.x[k], other = x.x[k ^ apart], sum = plus(other, (k & apart) != 0 ? -own : own);
                y.x[k] = last ? times(sum, factor) : sum;
            }
            store_word(to, w, y);
        }
        const uint32_t words = apart / kWide;
        for (uint32_t pair = 0; pair < n_words / 2 && words != 0; ++pair) {
            HETRUN_FABRIC_PIPELINE(2);  // two words in, two out
#pragma HLS DEPENDENCE variable = to inter false
            const uint32_t first = pair / words * 2 * words + pair % words;
            const Word a = load_word(to, first), b = load_word(to, first + words);
            Word sum, difference;
            for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
                const float s = plus(a.x[k], b.x[k]), d = plus(a.x[k], -b.x[k]);
                sum.x[k] = last ? times(s, factor) : s;
                difference.x[k] = last ? times(d, factor) : d;
            }
            store_word(to, first, sum);
            store_word(to, first + words, difference);
        }
    }
}

constexpr uint32_t kMaxGroups = kMaxHeads / kChannels;

// Keys and values of a pass, of one layer: the word of scale and minimum (binary16, the scale in the lower half), beats of codes, and the beat
// of the cache's scales that the word stands in. By side, row, group and the channel that gets the cell, so that kernels are told side by side.
struct OwnKv {
    uint32_t word[2][kTokens][kMaxGroups][kChannels];
    Beat codes[2][kTokens][kMaxGroups][kChannels][2], scales[2][kTokens][kMaxGroups][kChannels];
    uint32_t stripe[kTokens];  // of each row's cells
};

constexpr uint32_t kSidesOfPass = 2 * kTokens;  // keys and values of each row

// What rounding knows of a head.
struct RoundedHead {
    float least, greatest, inverse;
    bool usable;
};

// Counters of a walk over heads, `step` floats an iteration.
struct HeadWalk {
    uint32_t side, head, from;

    // True at the last step of a head.
    bool next(uint32_t n_heads, uint32_t head_dim, uint32_t step) {
#pragma HLS INLINE
        from += step;
        if (from < head_dim) return false;
        from = 0;
        if (++head < n_heads) return true;
        head = 0;
        ++side;
        return true;
    }
};

// Sides first to first + n - 1 (2 row + side), in codes: scale = (greatest - least) / 15, minimum = least, rounded to binary16; code =
// floor(clip((x - minimum) / scale, 0, 15) + 0.5). What is not finite, or overflows binary16, gives NaN.   load(side, i, step): floats.
template <class Load>
void round_sides(const Instruction& i, uint32_t stripes, uint32_t first, uint32_t n, RoundedHead rounded[kSidesOfPass][kMaxHeads], OwnKv& own,
                 Load load) {
    const uint32_t n_heads = i.n_heads_kv, step = step_of(i.head_dim);
    const auto number = [&](const HeadWalk& at) { return at.head * stripes + own.stripe[at.side / 2]; };  // group * kChannels + channel
    float least = 0, greatest = 0;
    bool usable = true;
    for (HeadWalk at{first, 0, 0}; at.side < first + n;) {
        HETRUN_FABRIC_PIPELINE(1);
        const Word x = load(at.side, at.head * i.head_dim + at.from, step);
        if (at.from == 0) {
            least = greatest = x.x[0];
            usable = true;
        }
        for (uint32_t k = 0; k < kWide; ++k) {  // in any order: which of two zeros is the least is not told
#pragma HLS UNROLL
            if (k >= step) continue;
            usable = usable && finite(x.x[k]);
            least = x.x[k] < least ? x.x[k] : least;
            greatest = x.x[k] > greatest ? x.x[k] : greatest;
        }
        rounded[at.side][at.head] = {least, greatest, 0, usable};
        at.next(n_heads, i.head_dim, step);
    }
    for (HeadWalk at{first, 0, 0}; at.side < first + n; at.next(n_heads, 1, 1)) {
        HETRUN_FABRIC_PIPELINE(1);
        RoundedHead& head = rounded[at.side][at.head];
        const uint16_t scale_half = float_to_half(over(plus(head.greatest, -head.least), 15.0f));
        const uint16_t minimum_half = float_to_half(plus(head.least, 0.0f));  // never the zero below zero
        const float scale = half_to_float(scale_half), minimum = half_to_float(minimum_half);
        const bool good = head.usable && finite(scale) && finite(minimum);
        head = {minimum, 0, scale > 0 ? over(1.0f, scale) : 0.0f, good};
        own.word[at.side % 2][at.side / 2][number(at) / kChannels][number(at) % kChannels] =
            good ? static_cast<uint32_t>(scale_half) | static_cast<uint32_t>(minimum_half) << 16 : 0x7e007e00u;
    }
    Beat codes{};
    for (HeadWalk at{first, 0, 0}; at.side < first + n;) {
        HETRUN_FABRIC_PIPELINE(1);
        const Word x = load(at.side, at.head * i.head_dim + at.from, step);
        const RoundedHead& head = rounded[at.side][at.head];
        Beat* const to = own.codes[at.side % 2][at.side / 2][number(at) / kChannels][number(at) % kChannels];
        const uint32_t in_chunk = at.from % 128, chunk = at.from / 128;
        if (in_chunk == 0) codes = Beat{};
        for (uint32_t k = 0; k < kWide; k += 2) {
#pragma HLS UNROLL
            if (k >= step) continue;
            uint32_t both = 0;
            for (uint32_t half = 0; half < 2; ++half) {
#pragma HLS UNROLL
                const float steps = times(plus(x.x[k + half], -head.least), head.inverse), clipped = steps < 0 ? 0.0f : steps > 15 ? 15.0f : steps;
                both |= static_cast<uint32_t>(plus(clipped, 0.5f)) << 4 * half;
            }
            codes.byte[(in_chunk + k) / 2] = head.usable ? static_cast<uint8_t>(both) : uint8_t{0};
        }
        to[chunk] = codes;
        at.next(n_heads, i.head_dim, step);
    }
}

// Queries as the lanes take them, ready to be sent: of each a beat with the factor of its scores (float) and the sum of its codes, then
// beats of 64 codes. int8 with one scale, largest / 127. Each kernel's are apart: those of the heads of its channels, set by set, group by
// group.
constexpr uint32_t kKernelQueries = 48;  // of a set: 16 heads of one query, or three of 16 that share a kernel
struct Queries {
    uint32_t largest[2][kMaxHeads];
    float scale[2][kMaxHeads], inverse[2][kMaxHeads];
    Beat beats[kLaneKernels][2 * kKernelQueries * query_beats(kMaxHeadDim)];
};

// Where a kernel's beats of a KV head begin, of those with n beats each; of heads that it has none of, anywhere.
struct KernelHeads {
    uint32_t stripes, groups, n_heads_kv;

    uint32_t first(uint32_t kernel, uint32_t group) const { return (group * kChannels + kernel * kLaneChannels) / stripes; }
    bool has(uint32_t kernel, uint32_t head) const {
        const uint32_t from = head * stripes, channel = kernel * kLaneChannels, group = from / kChannels;
        return channel + kLaneChannels > from - group * kChannels && channel < from - group * kChannels + stripes;
    }
    // Of groups there are several only where a channel has one head of each.
    uint32_t place(uint32_t kernel, uint32_t head) const {
        const uint32_t group = head * stripes / kChannels;
        return group * kLaneChannels + head - first(kernel, group);
    }
};

// Sets first to first + n - 1: those that sinks meet are the second.   load(set, i, step): floats.
template <class Load>
void round_queries(const Instruction& i, const KernelHeads& kernels, uint32_t first, uint32_t n, Queries& queries, Load load) {
    const uint32_t step = step_of(i.head_dim), n_beats = query_beats(i.head_dim), n_queries = i.n_heads / i.n_heads_kv;
    uint32_t largest = 0;
    for (HeadWalk at{first, 0, 0}; at.side < first + n;) {
        HETRUN_FABRIC_PIPELINE(1);
        const Word x = load(at.side, at.head * i.head_dim + at.from, step);
        if (at.from == 0) largest = 0;
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            const uint32_t magnitude = k < step ? magnitude_of(x.x[k]) : 0;
            largest = magnitude > largest ? magnitude : largest;
        }
        queries.largest[at.side][at.head] = largest;
        at.next(i.n_heads, i.head_dim, step);
    }
    for (HeadWalk at{first, 0, 0}; at.side < first + n; at.next(i.n_heads, 1, 1)) {
        HETRUN_FABRIC_PIPELINE(1);
        const uint32_t most = queries.largest[at.side][at.head];
        const bool usable = most >= kLeastUsable && most < kInfinity;
        queries.inverse[at.side][at.head] = usable ? over(127.0f, bits_float(most)) : 0.0f;
        queries.scale[at.side][at.head] = usable ? over(bits_float(most), 127.0f) : most < kInfinity ? 0.0f : bits_float(kNotANumber);
    }
    int32_t code_sum = 0;
    Beat codes{};
    uint32_t head = 0, q = 0;
    for (HeadWalk at{first, 0, 0}; at.side < first + n;) {
        HETRUN_FABRIC_PIPELINE(1);
        const Word x = load(at.side, at.head * i.head_dim + at.from, step);
        const float inverse = queries.inverse[at.side][at.head];
        if (at.from == 0) code_sum = 0;
        if (at.from % kCodes == 0) codes = Beat{};
        for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
            if (k >= step) continue;
            const int8_t code = inverse != 0.0f ? static_cast<int8_t>(code_of(times(x.x[k], inverse))) : int8_t{0};
            codes.byte[at.from % kCodes + k] = static_cast<uint8_t>(code);
            code_sum += code;
        }
        Beat begin{};
        set_float(begin, 0, times(i.f0, queries.scale[at.side][at.head]));
        set_word(begin, 1, static_cast<uint32_t>(code_sum));
        for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
            if (!kernels.has(k, head)) continue;
            const uint32_t to = (at.side * kKernelQueries + kernels.place(k, head) * n_queries + q) * n_beats;
            queries.beats[k][to + 1 + at.from / kCodes] = codes;
            queries.beats[k][to] = begin;
        }
        if (!at.next(i.n_heads, i.head_dim, step)) continue;
        head = q + 1 < n_queries ? head : head + 1 == i.n_heads_kv ? 0 : head + 1;
        q = q + 1 == n_queries ? 0 : q + 1;
    }
}

}  // namespace hetrun::u280
