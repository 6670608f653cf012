// Numbers into codes: activations with an exponent a block, queries, and the 4-bit codes of the KV cache.
#pragma once

#include "fabric/activation.h"
#include "flow.h"

namespace hetrun::u280 {

inline bool finite(float x) { return (float_bits(x) & 0x7fffffffu) < 0x7f800000u; }
// Magnitudes compare as their bits do, infinities and NaN above all others.
inline uint32_t magnitude_of(float x) { return float_bits(x) & 0x7fffffffu; }

constexpr uint32_t kInfinity = 0x7f800000u, kNotANumber = 0x7fc00000u;
constexpr uint32_t kLeastRow = 0x08800000u;  // 2^-110: below it a row is zeros, above it no inverse overflows
constexpr float kMostSteps = 16256.0f;       // 127 * 2^7

// Of a row: s = largest / (127 * 2^7). Code = x * (1 / s) * 2^-e, nearest even; e of a block the least with largest of the block <=
// 127 s * 2^e, or 7. Codes are never beyond +-127.
struct RowScale {
    float scale, inverse, step;  // step: 127 s

    explicit RowScale(uint32_t largest) {
        const bool usable = largest >= kLeastRow && largest < kInfinity;
        scale = usable ? over(bits_float(largest), kMostSteps) : largest < kInfinity ? 0.0f : bits_float(kNotANumber);
        inverse = usable ? over(1.0f, scale) : 0.0f;
        step = usable ? times(127.0f, scale) : bits_float(kInfinity);
    }
    uint32_t exponent(uint32_t largest) const {
        uint32_t e = 0;
        for (uint32_t k = 0; k < HETRUN_U280_MAX_EXPONENT; ++k) {
#pragma HLS UNROLL
            if (bits_float(largest) > step * static_cast<float>(1u << k)) e = k + 1;
        }
        return e;
    }
    uint8_t code(float x, uint32_t e) const {
        if (inverse == 0.0f) return 0;
        return code_of(times(x, inverse * bits_float((127 - e) << 23)));
    }
};

// Sylvester's order, then times 1 / sqrt(n).   n: a power of two.
inline void hadamard(float* x, uint32_t n) {
    for (uint32_t apart = 1; apart < n; apart *= 2) {
        for (uint32_t i = 0; i < n / 2; ++i) {
#pragma HLS PIPELINE II = 1
            const uint32_t first = i / apart * 2 * apart + i % apart;
            const float a = x[first], b = x[first + apart];
            x[first] = plus(a, b);
            x[first + apart] = plus(a, -b);
        }
    }
    uint32_t bits = 0;
    for (uint32_t k = n; k > 1; k /= 2) ++bits;
    // 2^(-bits / 2): of odd powers sqrt(1/2) as a float.
    const float root = bits_float((127 - bits / 2) << 23), factor = bits % 2 == 0 ? root : root * 0.70710678118654752440f;
    for (uint32_t i = 0; i < n; ++i) x[i] = times(x[i], factor);
}

// A query: int8 codes with one scale, largest / 127.
struct Query {
    float scale;
    int32_t code_sum;
    Int<8> code[kMaxHeadDim];
};
inline void quantize_query(const float* x, uint32_t n, Query& query) {
    uint32_t largest = 0;
    for (uint32_t i = 0; i < n; ++i) largest = magnitude_of(x[i]) > largest ? magnitude_of(x[i]) : largest;
    const bool usable = largest >= kLeastUsable && largest < kInfinity;
    const float value = usable ? bits_float(largest) : 1.0f, inverse = over(127.0f, value);
    query.scale = usable ? over(value, 127.0f) : largest < kInfinity ? 0.0f : bits_float(kNotANumber);
    query.code_sum = 0;
    for (uint32_t i = 0; i < kMaxHeadDim; ++i) {
        query.code[i] = usable && i < n ? static_cast<int8_t>(code_of(times(x[i], inverse))) : int8_t{0};
        query.code_sum += query.code[i];
    }
}

// A key or value as the cache has it: scale and minimum (binary16, the scale in the lower half), and beats of codes.
struct Cell {
    uint32_t word;
    Beat codes[2];
};
// scale = (greatest - least) / 15, minimum = least, rounded to binary16; code = floor(clip((x - minimum) / scale, 0, 15) + 0.5). What is
// not finite, or overflows binary16, gives NaN.
inline void round_cell(const float* x, uint32_t n, Cell& cell) {
    float least = x[0], greatest = x[0];
    bool all_finite = true;
    for (uint32_t i = 0; i < n; ++i) {
        all_finite = all_finite && finite(x[i]);
        least = x[i] < least ? x[i] : least;
        greatest = x[i] > greatest ? x[i] : greatest;
    }
    const uint16_t scale_half = float_to_half(over(plus(greatest, -least), 15.0f)), minimum_half = float_to_half(least);
    const float scale = half_to_float(scale_half), minimum = half_to_float(minimum_half);
    const bool usable = all_finite && finite(scale) && finite(minimum);
    const float inverse = scale > 0 ? over(1.0f, scale) : 0.0f;
    cell.word = usable ? static_cast<uint32_t>(scale_half) | static_cast<uint32_t>(minimum_half) << 16 : 0x7e007e00u;
    cell.codes[0] = cell.codes[1] = Beat{};
    for (uint32_t i = 0; i < n && usable; ++i) {
        const float steps = times(plus(x[i], -minimum), inverse), clipped = steps < 0 ? 0.0f : steps > 15 ? 15.0f : steps;
        const uint32_t code = static_cast<uint32_t>(plus(clipped, 0.5f));
        uint8_t& byte = cell.codes[i / 128].byte[i % 128 / 2];
        byte = static_cast<uint8_t>(byte | code << 4 * (i % 2));
    }
}

}  // namespace hetrun::u280
