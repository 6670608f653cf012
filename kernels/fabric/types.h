// Integers of a width, floats as the fabric has them, and bits of words: for Vitis HLS, and for any C++17 compiler.
//
// HETRUN_FABRIC_AP (set by Vitis, and by the test of widths) takes ap_int.h, whose types wrap at their width; otherwise plain
// integers at least as wide, a hundred times as fast. Both must give the same results: then no width is too small.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__SYNTHESIS__) && !defined(HETRUN_FABRIC_AP)
#define HETRUN_FABRIC_AP
#endif

#ifdef HETRUN_FABRIC_AP
#include <ap_int.h>
#endif

namespace hetrun::fabric {

#ifdef HETRUN_FABRIC_AP
template <int W>
using Int = ap_int<W>;
template <int W>
using UInt = ap_uint<W>;
#else
template <int W>
using Int = std::conditional_t<(W <= 8), int8_t, std::conditional_t<(W <= 16), int16_t, std::conditional_t<(W <= 32), int32_t, int64_t>>>;
template <int W>
using UInt =
    std::conditional_t<(W <= 8), uint8_t, std::conditional_t<(W <= 16), uint16_t, std::conditional_t<(W <= 32), uint32_t, uint64_t>>>;
#endif

// A union, since Vitis HLS makes wires of it; GCC and Clang define what it means.
union FloatBits {
    float value;
    uint32_t bits;
};
inline uint32_t float_bits(float x) {
    FloatBits both;
    both.value = x;
    return both.bits;
}
inline float bits_float(uint32_t bits) {
    FloatBits both;
    both.bits = bits;
    return both.value;
}

// The fabric's float operators take and give zero for subnormal numbers (PG060).
inline float flushed(float x) {
#ifdef __SYNTHESIS__
    return x;
#else
    const uint32_t bits = float_bits(x);
    return bits & 0x7f800000u ? x : bits_float(bits & 0x80000000u);
#endif
}
inline float times(float a, float b) { return flushed(a * b); }
inline float plus(float a, float b) { return flushed(a + b); }
inline float over(float a, float b) { return flushed(a / b); }

// Every binary16 is exact as a normal float.
inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent != 0) return bits_float(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
    if (fraction == 0) return bits_float(sign);
    // A subnormal half: its highest bit becomes the one before the point.
    uint32_t shifted = fraction, own = 113;
    for (int i = 0; i < 10; ++i) {
#pragma HLS UNROLL
        if ((shifted & 1024) == 0) {
            shifted <<= 1;
            --own;
        }
    }
    return bits_float(sign | own << 23 | (shifted & 1023) << 13);
}

// To nearest even; from 65520 on infinite.
inline uint16_t float_to_half(float x) {
    const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // 2^-25
    const uint32_t exponent = magnitude >> 23, fraction = (magnitude & 0x7fffffu) | 0x800000u;
    const bool normal = exponent >= 113;
    const uint32_t shift = normal ? 13 : 126 - exponent;  // of a subnormal half the last place is 2^-24
    const uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1), tie = 1u << (shift - 1);
    const uint32_t rounded = kept + (rest > tie || (rest == tie && (kept & 1) != 0) ? 1 : 0);
    return static_cast<uint16_t>(sign | (normal ? ((exponent - 113) << 10) + rounded : rounded));
}

inline uint32_t nibble(uint64_t word, int i) { return static_cast<uint32_t>(word >> 4 * i & 15); }
inline uint16_t half_of(uint64_t word, int i) { return static_cast<uint16_t>(word >> 16 * i); }

}  // namespace hetrun::fabric
