// Numbers into codes: of activations, with an exponent a block. Keys, values and queries: heads.h.
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

    RowScale() = default;
    explicit RowScale(uint32_t largest) {
        const bool usable = largest >= kLeastRow && largest < kInfinity;
        scale = usable ? over(bits_float(largest), kMostSteps) : largest < kInfinity ? 0.0f : bits_float(kNotANumber);
        inverse = usable ? over(1.0f, scale) : 0.0f;
        step = usable ? times(127.0f, scale) : bits_float(kInfinity);
    }
    // Magnitudes of floats as bits: a step more is 2^23 more.
    uint32_t exponent(uint32_t largest) const {
        const uint32_t least = float_bits(step), above = largest > least ? largest - least : 0, e = (above + 0x7fffffu) >> 23;
        return e < HETRUN_U280_MAX_EXPONENT ? e : HETRUN_U280_MAX_EXPONENT;
    }
    // (1 / s) * 2^-e
    float factor(uint32_t e) const { return inverse * bits_float((127 - e) << 23); }
    uint8_t code(float x, float factor) const { return inverse == 0.0f ? uint8_t{0} : code_of(times(x, factor)); }
};

}  // namespace hetrun::u280
