// Weights of one GGUF block -> int8 codes with float scales (and minima) per sub-block: x = scale * code + minimum.
// Blocks of 32 name the halves that hold their scale and minimum, super-blocks of 256 unpack them.
// `Bias` is what the instruction set wants added to the signed codes of symmetric types (see stored_bias).
// Included by one translation unit per instruction set: everything lives in an unnamed namespace.
#pragma once

#include <cstring>

#include "gguf_blocks.h"

namespace hetrun::cpu {
namespace {

typedef uint8_t U8x16 __attribute__((vector_size(16)));
typedef int8_t I8x16 __attribute__((vector_size(16)));

inline U8x16 load16(const uint8_t* p) {
    U8x16 v;
    std::memcpy(&v, p, 16);
    return v;
}
inline void store16(int8_t* p, U8x16 v) { std::memcpy(p, &v, 16); }
inline U8x16 splat16(int x) { return U8x16{} + static_cast<uint8_t>(x); }

inline float half_bits_to_float(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 f;
    std::memcpy(&f, &h, 2);
    return f;
#else
    // Exponents are moved by a multiplication, which also turns subnormals into normals; infinities and NaNs are set apart.
    const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
    uint32_t bits = magnitude;
    float f;
    std::memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    std::memcpy(&bits, &f, 4);
    if (magnitude >= 0x0f800000u) bits = magnitude | 0x7f800000u;
    bits |= static_cast<uint32_t>(h & 0x8000) << 16;
    std::memcpy(&f, &bits, 4);
    return f;
#endif
}

inline uint16_t load_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
inline uint32_t load_u32(const uint8_t* p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}
inline float half(const uint8_t* p) { return half_bits_to_float(load_u16(p)); }

inline float bfloat(const uint8_t* p) {
    const uint32_t bits = static_cast<uint32_t>(load_u16(p)) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// table[q] + bias for 16 codes of 4 bits.
inline U8x16 looked_up(I8x16 table, U8x16 q, int bias) {
    return __builtin_shuffle(reinterpret_cast<U8x16>(table), q) + splat16(bias);
}

constexpr I8x16 kNonlinear = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The factor of all scales of a row, which stands behind its blocks: 1 but for our own encodings.
template <class Codec>
constexpr bool kRowScale = Codec::kBlock == 64;
template <class Codec>
inline float row_scale(const uint8_t* row, size_t n) {
    float scale = 1.0f;
    if constexpr (kRowScale<Codec>) std::memcpy(&scale, row + n / Codec::kBlock * sizeof(typename Codec::Block), 4);
    return scale;
}

// Types whose block leaves its scale, and its minimum, as halves; the others compute floats.
template <class Codec>
constexpr bool kHalfScales = Codec::kBlock == 32;

}  // namespace
}  // namespace hetrun::cpu
