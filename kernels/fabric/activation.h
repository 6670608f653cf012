// silu(gate) * up, defined by this sequence of operations: the fabric, the host and tests/hls/engine_order.py do the same.
//
//   z = |gate| * log2(e) as a float, then n + f with 23 bits of fraction, cut off
//   2^-f = T[i] * (1 - w + w^2 / 2): i the upper 8 bits of f, w the rest times ln 2; integers, 24 bits below the point
//   t = exp(-|gate|) = 2^-f * 2^-n, exactly a float; zero from z = 125 on
//   silu = gate / (1 + t), of negative gates (gate * t) / (1 + t)
//
// Every float operator rounds to nearest even and gives zero for subnormals. What silu is off by is below 1.2e-7 of |gate|, and
// below 5e-7 of silu itself down to gates of -5.
#pragma once

#include "types.h"

namespace hetrun::fabric {

// 2^(-i / 256), 24 bits below the point.
struct PowerTable {
    uint32_t value[256];

    constexpr PowerTable() : value{} {
        double power = 16777216.0;
        for (int i = 0; i < 256; ++i, power *= 0.99729605608547012625) value[i] = static_cast<uint32_t>(power + 0.5);
    }
};
constexpr PowerTable kPowers;

// exp(-x) for x >= 0; zero for NaN.
inline float exp_of_minus(float x) {
#pragma HLS INLINE
    const uint32_t z = float_bits(times(x, 1.44269502162933349609f));  // log2(e) as a float
    if (z >= 0x42fa0000u) return 0.0f;                                 // 125
    const int exponent = static_cast<int>(z >> 23) - 127;
    const uint32_t fraction = (z & 0x7fffffu) | 0x800000u;
    const uint32_t fixed = exponent >= 0 ? fraction << exponent : exponent > -24 ? fraction >> -exponent : 0;
    const uint32_t whole = fixed >> 23, power = kPowers.value[fixed >> 15 & 255];
    const uint32_t w = (fixed & 0x7fff) * 45426 >> 14;    // times ln 2: 25 bits below the point, 17 bits in all
    const uint32_t less = w - ((w >> 2) * (w >> 2) >> 22);  // w - w^2 / 2
    const uint32_t cut = static_cast<uint32_t>(static_cast<uint64_t>(power) * less >> 25);
    return bits_float(((125 - whole) << 23) + power - cut);
}

inline float silu_times(float gate, float up) {
#pragma HLS INLINE
    const uint32_t bits = float_bits(gate);
    const float t = exp_of_minus(bits_float(bits & 0x7fffffffu));
    const float dividend = bits >> 31 ? times(gate, t) : gate;
    return times(over(dividend, plus(1.0f, t)), up);
}

// Largest magnitudes of a block for which 127 / largest does not overflow: 1e-35.
constexpr uint32_t kLeastUsable = 0x0554ad2eu;

// Of a float between -127.5 and 127.5, to nearest even.
inline uint8_t code_of(float x) {
#pragma HLS INLINE
    return static_cast<uint8_t>(float_bits(plus(x, 12582912.0f)));  // 1.5 * 2^23: its last place is one
}

}  // namespace hetrun::fabric
