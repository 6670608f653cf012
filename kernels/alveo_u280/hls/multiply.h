// The array of a channel: 128 multipliers, 27 by 18 bits with sums of 48 (UG579), in cascades of eight.
//
//   one token          x * w, and attention: codes of queries times those of keys; weights of eight cells times their values
//   two tokens         (x0 + x1 * 2^18) * w: a lower sum below zero has borrowed one from the upper
//   the cross form     (x0 + x1 * 2^15) * (w1 + w0 * 2^15), whose middle is x0 * w0 + x1 * w1: two columns of one token, for weights
//                      of 2 bits. W2S24 takes it with one token (with more, tokens share the two that are kept of each four), W2 always
//
// A cascade keeps its fields apart: eight products of 8 bits (nine would not), 128 of 4 bits, the cross form of 21.
#pragma once

#include "flow.h"
#ifdef HETRUN_U280_FAST
#include HETRUN_U280_FAST  // host/fast.h
#endif

namespace hetrun::u280 {

constexpr uint32_t kCascade = 8, kCascades = HETRUN_U280_LANES / kCascade, kRowCascades = 4;
constexpr uint32_t kMaxDots = 8;  // of a beat and token: rows times parts

// Dots of a row of a beat: parts of columns that have a scale or an exponent of their own.
constexpr uint32_t parts_of(uint32_t format) {
    return format == HETRUN_U280_FORMAT_W2S24 || format == HETRUN_U280_FORMAT_W2 || format == HETRUN_U280_FORMAT_S8H ? 2 : 1;
}

#ifdef HETRUN_U280_FAST
using Code = int16_t;  // whose products a processor sums in pairs
#else
using Code = Int<8>;
#endif

constexpr uint32_t kKept[8][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}, {0, 0}, {0, 0}};  // of four, by pattern; 6, 7: none

// Four j of row r of a beat of W2S24: value less zero point of the two that are kept, and their columns.
struct KeptPair {
    Int<3> w0, w1;
    uint32_t column0, column1;
};
inline KeptPair kept_pair(const Beat& beat, uint32_t r, uint32_t j) {
#pragma HLS INLINE
    const uint8_t* group = beat.byte + 16 * r;
    const uint32_t bit = 3 * j, low = group[bit / 8], next = group[bit / 8 + 1];  // of the last, a byte of values: masked
    const uint32_t pattern = (low | next << 8) >> bit % 8 & 7, values = group[6 + j / 2] >> 4 * (j % 2) & 15, zero = group[15] >> 6;
    const bool kept = pattern < 6;
    KeptPair pair;
    pair.w0 = kept ? static_cast<int>(values & 3) - static_cast<int>(zero) : 0;
    pair.w1 = kept ? static_cast<int>(values >> 2) - static_cast<int>(zero) : 0;
    pair.column0 = 4 * j + kKept[pattern][0];
    pair.column1 = 4 * j + kKept[pattern][1];
    return pair;
}

// Weight of a row and column of a beat of the other formats; of U4 and W2 without their minima and zero points.
inline Int<8> weight_at(uint32_t format, const Beat& beat, uint32_t r, uint32_t column) {
#pragma HLS INLINE
    switch (format) {
        case HETRUN_U280_FORMAT_W2: return static_cast<int8_t>(beat.byte[16 * r + column / 4] >> 2 * (column % 4) & 3);
        case HETRUN_U280_FORMAT_S4: return static_cast<int8_t>((beat.byte[16 * r + column / 2] >> 4 * (column % 2) & 15) - 8);
        case HETRUN_U280_FORMAT_U4: return static_cast<int8_t>(beat.byte[16 * r + column / 2] >> 4 * (column % 2) & 15);
        default: return static_cast<int8_t>(beat.byte[32 * r + column]);
    }
}

using Sum = Int<48>;  // of a cascade

inline Int<45> product(Int<27> a, Int<18> b) {
#pragma HLS INLINE
#ifdef HETRUN_FABRIC_AP
    return a * b;
#else
    return static_cast<int64_t>(a) * b;
#endif
}

// Bits At to At + Width - 1 of a sum, with what the field below has borrowed.
template <int At, int Width>
int32_t field(Sum sum) {
#pragma HLS INLINE
    const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(sum));
    const int64_t own = static_cast<int64_t>(bits << (64 - At - Width)) >> (64 - Width);
    return static_cast<int32_t>(own + (At == 0 ? 0 : static_cast<int64_t>(bits >> (At == 0 ? 0 : At - 1) & 1)));
}

inline Int<27> two_tokens(Int<8> x0, Int<8> x1) { return static_cast<int>(x0) + static_cast<int>(x1) * (1 << 18); }
inline Int<27> cross_codes(Int<8> x0, Int<8> x1) { return static_cast<int>(x0) + static_cast<int>(x1) * (1 << 15); }
inline Int<18> cross_weights(Int<3> w0, Int<3> w1) { return static_cast<int>(w1) + static_cast<int>(w0) * (1 << 15); }

// A cycle of the multipliers, and the sums of their cascades. Whatever the engine multiplies codes with: a channel has one of them.
inline void array(const Int<27> a[HETRUN_U280_LANES], const Int<18> b[HETRUN_U280_LANES], Sum sums[kCascades]) {
#pragma HLS INLINE off
#pragma HLS PIPELINE II = 1
#pragma HLS ARRAY_PARTITION variable = a complete
#pragma HLS ARRAY_PARTITION variable = b complete
#pragma HLS ARRAY_PARTITION variable = sums complete
    for (uint32_t q = 0; q < kCascades; ++q) {
#pragma HLS UNROLL
        Sum sum = 0;
        for (uint32_t d = q * kCascade; d < (q + 1) * kCascade; ++d) {
#pragma HLS UNROLL
            sum += product(a[d], b[d]);
#pragma HLS BIND_OP variable = sum op = add impl = dsp
        }
        sums[q] = sum;
    }
}

// A beat with one or two tokens (W2: the first alone).   x0, x1: their codes from the beat's first column on.
inline void cycle(uint32_t format, const Beat& beat, const Code* x0, const Code* x1, bool two, Int<22> dots0[kMaxDots], Int<22> dots1[kMaxDots]) {
#pragma HLS INLINE
    const uint32_t parts = parts_of(format), rows = kFormats[format].rows;
    const bool pruned = format == HETRUN_U280_FORMAT_W2S24, crossed = format == HETRUN_U280_FORMAT_W2 || (pruned && !two);
    const auto at_work = [&](uint32_t q) { return q / kRowCascades < rows && !(pruned && crossed && q % kRowCascades >= 2); };  // else half the array
    for (uint32_t i = 0; i < kMaxDots; ++i) {
#pragma HLS UNROLL
        dots0[i] = 0;
        dots1[i] = 0;
    }
    Int<27> a[HETRUN_U280_LANES];
    Int<18> b[HETRUN_U280_LANES];
    for (uint32_t q = 0; q < kCascades; ++q) {
#pragma HLS UNROLL
        const uint32_t row = q / kRowCascades, quarter = q % kRowCascades;
        for (uint32_t d = 0; d < kCascade; ++d) {
#pragma HLS UNROLL
            const uint32_t j = quarter * kCascade + d, at = q * kCascade + d;
            a[at] = 0;
            b[at] = 0;
            if (!at_work(q)) continue;
            if (pruned) {
                const KeptPair pair = kept_pair(beat, row, crossed ? j : j / 2);
                const uint32_t column = j % 2 == 0 ? pair.column0 : pair.column1;
                a[at] = crossed ? cross_codes(x0[pair.column0], x0[pair.column1]) : two_tokens(x0[column], x1[column]);
                b[at] = crossed ? cross_weights(pair.w0, pair.w1) : Int<18>(j % 2 == 0 ? pair.w0 : pair.w1);
            } else if (crossed) {
                a[at] = cross_codes(x0[2 * j], x0[2 * j + 1]);
                b[at] = cross_weights(weight_at(format, beat, row, 2 * j), weight_at(format, beat, row, 2 * j + 1));
            } else {
                a[at] = two ? two_tokens(x0[j], x1[j]) : Int<27>(x0[j]);
                b[at] = weight_at(format, beat, row, j);
            }
        }
    }
    Sum sums[kCascades];
    array(a, b, sums);
    for (uint32_t q = 0; q < kCascades; ++q) {
#pragma HLS UNROLL
        const uint32_t row = q / kRowCascades, quarter = q % kRowCascades;
        if (!at_work(q)) continue;
        const uint32_t part = parts == 1 ? 0 : pruned && crossed ? quarter : quarter / 2;
        dots0[row * parts + part] += crossed ? field<15, 15>(sums[q]) : two ? field<0, 18>(sums[q]) : field<0, 30>(sums[q]);
        if (two && !crossed) dots1[row * parts + part] += field<18, 30>(sums[q]);
    }
}

constexpr uint32_t kChunk = HETRUN_U280_LANES;  // 4-bit codes of a beat of a key or value

// Dot of a key's beat with as many codes of a query.
inline int32_t key_dot(const Beat& key, const Int<8>* query) {
#pragma HLS INLINE
    int32_t dot = 0;
#ifdef HETRUN_U280_FAST
    for (uint32_t i = 0; i < kChunk; ++i) dot += (key.byte[i / 2] >> 4 * (i % 2) & 15) * static_cast<int>(query[i]);
#else
    Int<27> a[kChunk];
    Int<18> b[kChunk];
    for (uint32_t i = 0; i < kChunk; ++i) {
#pragma HLS UNROLL
        a[i] = static_cast<int>(query[i]);
        b[i] = static_cast<int>(key.byte[i / 2] >> 4 * (i % 2) & 15);
    }
    Sum sums[kCascades];
    array(a, b, sums);
    for (uint32_t q = 0; q < kCascades; ++q) {
#pragma HLS UNROLL
        dot += field<0, 30>(sums[q]);
    }
#endif
    return dot;
}

// 16 codes of a value, of the eight such parts of its beat.
struct ValuePart {
    uint8_t byte[kCascades / 2];
};
inline ValuePart value_part(const Beat& beat, uint32_t part) {
#pragma HLS INLINE
    ValuePart out;
    for (uint32_t i = 0; i < kCascades / 2; ++i) {
#pragma HLS UNROLL
        out.byte[i] = beat.byte[part * (kCascades / 2) + i];
    }
    return out;
}

// Sums over eight cells of weights times values, for the same part of each: a cascade each.
inline void value_sums(const ValuePart values[kCascade], const UInt<12> weights[kCascade], int32_t out[kCascades]) {
#pragma HLS INLINE
#ifdef HETRUN_U280_FAST
    for (uint32_t k = 0; k < kCascades; ++k) out[k] = 0;
    for (uint32_t d = 0; d < kCascade; ++d) {
        const uint8_t* codes = values[d].byte;
        const int weight = weights[d];
        for (uint32_t k = 0; k < kCascades; ++k) out[k] += weight * (codes[k / 2] >> 4 * (k % 2) & 15);
    }
#else
    Int<27> a[kChunk];
    Int<18> b[kChunk];
    for (uint32_t k = 0; k < kCascades; ++k) {
#pragma HLS UNROLL
        for (uint32_t d = 0; d < kCascade; ++d) {
#pragma HLS UNROLL
            a[k * kCascade + d] = static_cast<int>(weights[d]);
            b[k * kCascade + d] = static_cast<int>(values[d].byte[k / 2] >> 4 * (k % 2) & 15);
        }
    }
    Sum sums[kCascades];
    array(a, b, sums);
    for (uint32_t k = 0; k < kCascades; ++k) {
#pragma HLS UNROLL
        out[k] = field<0, 30>(sums[k]);
    }
#endif
}

// Tokens that a cycle takes.
constexpr uint32_t cycle_tokens(uint32_t format) { return format == HETRUN_U280_FORMAT_W2 ? 1 : 2; }

// A beat of values on its way through the array.
struct Values {
    Beat beat;
#ifdef HETRUN_U280_FAST
    Code weights[HETRUN_U280_LANES * 2];
#endif
};
inline void take_values(uint32_t format, const Beat& beat, Values& values) {
#pragma HLS INLINE
    (void)format;
    values.beat = beat;
#ifdef HETRUN_U280_FAST
    unpack(format, beat, values.weights);
#endif
}

// Dots with tokens t and t + 1, of W2 with t.   column: the beat's first.
inline void dots_of(uint32_t format, const Values& values, const Code codes[kTokens / 2][2][kMaxColumns], uint32_t column, uint32_t t, bool two,
                    Int<22> dots[2][kMaxDots]) {
#pragma HLS INLINE
#ifdef HETRUN_U280_FAST
    fast_dots(format, values.weights, &codes[t / 2][t % 2][column], dots[0]);
    if (two) fast_dots(format, values.weights, &codes[t / 2][1][column], dots[1]);
#else
    cycle(format, values.beat, &codes[t / 2][t % 2][column], &codes[t / 2][1][column], two, dots[0], dots[1]);
#endif
}

}  // namespace hetrun::u280
