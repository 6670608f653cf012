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

// 16 bytes of 0 or 16: the fifth bits of 16 codes.
inline U8x16 fifth_bits(uint32_t bits) {
    const U8x16 mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    U8x16 v;
    std::memset(&v, static_cast<int>(bits & 0xff), 8);
    std::memset(reinterpret_cast<char*>(&v) + 8, static_cast<int>(bits >> 8 & 0xff), 8);
    return reinterpret_cast<U8x16>((v & mask) == mask) & splat16(16);
}

// Scale and minimum of sub-block j, 6 bits each: Q4_K and Q5_K.
inline void scale_min_k4(size_t j, const uint8_t* q, uint8_t& scale, uint8_t& minimum) {
    if (j < 4) {
        scale = q[j] & 63;
        minimum = q[j + 4] & 63;
    } else {
        scale = static_cast<uint8_t>((q[j + 4] & 15) | (q[j - 4] >> 6) << 4);
        minimum = static_cast<uint8_t>((q[j + 4] >> 4) | (q[j] >> 6) << 4);
    }
}

struct CodecQ4_0 {
    using Block = BlockQ4_0;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 8;
    static constexpr bool kMin = false;
    static const uint8_t* scale(const Block& b) { return b.d; }
    template <int Bias>
    static void decode(const Block& b, int8_t* codes) {
        const U8x16 q = load16(b.qs);
        store16(codes, (q & splat16(15)) + splat16(Bias - 8));
        store16(codes + 16, (q >> 4) + splat16(Bias - 8));
    }
};

struct CodecQ4_1 {
    using Block = BlockQ4_1;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 0;
    static constexpr bool kMin = true;
    static const uint8_t* scale(const Block& b) { return b.d; }
    static const uint8_t* minimum(const Block& b) { return b.m; }
    template <int>
    static void decode(const Block& b, int8_t* codes) {
        const U8x16 q = load16(b.qs);
        store16(codes, q & splat16(15));
        store16(codes + 16, q >> 4);
    }
};

struct CodecQ5_0 {
    using Block = BlockQ5_0;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 16;
    static constexpr bool kMin = false;
    static const uint8_t* scale(const Block& b) { return b.d; }
    template <int Bias>
    static void decode(const Block& b, int8_t* codes) {
        const U8x16 q = load16(b.qs);
        const uint32_t high = load_u32(b.qh);
        store16(codes, ((q & splat16(15)) | fifth_bits(high)) + splat16(Bias - 16));
        store16(codes + 16, ((q >> 4) | fifth_bits(high >> 16)) + splat16(Bias - 16));
    }
};

struct CodecQ5_1 {
    using Block = BlockQ5_1;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 0;
    static constexpr bool kMin = true;
    static const uint8_t* scale(const Block& b) { return b.d; }
    static const uint8_t* minimum(const Block& b) { return b.m; }
    template <int>
    static void decode(const Block& b, int8_t* codes) {
        const U8x16 q = load16(b.qs);
        const uint32_t high = load_u32(b.qh);
        store16(codes, (q & splat16(15)) | fifth_bits(high));
        store16(codes + 16, (q >> 4) | fifth_bits(high >> 16));
    }
};

struct CodecQ8_0 {
    using Block = BlockQ8_0;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 128;
    static constexpr bool kMin = false;
    static const uint8_t* scale(const Block& b) { return b.d; }
    template <int Bias>
    static void decode(const Block& b, int8_t* codes) {
        const uint8_t* qs = reinterpret_cast<const uint8_t*>(b.qs);
        store16(codes, load16(qs) + splat16(Bias));
        store16(codes + 16, load16(qs + 16) + splat16(Bias));
    }
};

struct CodecQ2_K {
    using Block = BlockQ2_K;
    static constexpr size_t kBlock = 256, kSub = 16;
    static constexpr int kOffset = 0;
    static constexpr bool kMin = true;
    template <int>
    static void decode(const Block& b, int8_t* codes, float* scale, float* minimum) {
        for (int part = 0; part < 2; ++part) {
            U8x16 low = load16(b.qs + 32 * part), high = load16(b.qs + 32 * part + 16);
            for (int j = 0; j < 4; ++j) {
                store16(codes, low & splat16(3));
                store16(codes + 16, high & splat16(3));
                low >>= 2;
                high >>= 2;
                codes += 32;
            }
        }
        const float d = half(b.d), dmin = half(b.dmin);
        for (int i = 0; i < 16; ++i) {
            scale[i] = d * static_cast<float>(b.scales[i] & 15);
            minimum[i] = -(dmin * static_cast<float>(b.scales[i] >> 4));
        }
    }
};

struct CodecQ3_K {
    using Block = BlockQ3_K;
    static constexpr size_t kBlock = 256, kSub = 16;
    static constexpr int kOffset = 4;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        U8x16 top_low = load16(b.hmask), top_high = load16(b.hmask + 16);
        for (int part = 0; part < 2; ++part) {
            U8x16 low = load16(b.qs + 32 * part), high = load16(b.qs + 32 * part + 16);
            for (int j = 0; j < 4; ++j) {
                store16(codes, ((low & splat16(3)) | (top_low & splat16(1)) << 2) + splat16(Bias - 4));
                store16(codes + 16, ((high & splat16(3)) | (top_high & splat16(1)) << 2) + splat16(Bias - 4));
                low >>= 2;
                high >>= 2;
                top_low >>= 1;
                top_high >>= 1;
                codes += 32;
            }
        }
        const float d = half(b.d);
        for (int i = 0; i < 16; ++i) {
            const int nibble = i < 8 ? b.scales[i] & 15 : b.scales[i - 8] >> 4;
            const int top = b.scales[8 + i % 4] >> (2 * (i / 4)) & 3;
            scale[i] = d * static_cast<float>((nibble | top << 4) - 32);
        }
    }
};

// Scales and minima of a super-block of Q4_K or Q5_K.
template <class Block>
inline void decode_scales_k4(const Block& b, float* scale, float* minimum) {
    const float d = half(b.d), dmin = half(b.dmin);
    for (size_t j = 0; j < 8; ++j) {
        uint8_t s, m;
        scale_min_k4(j, b.scales, s, m);
        scale[j] = d * static_cast<float>(s);
        minimum[j] = -(dmin * static_cast<float>(m));
    }
}

struct CodecQ4_K {
    using Block = BlockQ4_K;
    static constexpr size_t kBlock = 256, kSub = 32;
    static constexpr int kOffset = 0;
    static constexpr bool kMin = true;
    template <int>
    static void decode(const Block& b, int8_t* codes, float* scale, float* minimum) {
        for (int j = 0; j < 4; ++j) {
            const U8x16 low = load16(b.qs + 32 * j), high = load16(b.qs + 32 * j + 16);
            store16(codes + 64 * j, low & splat16(15));
            store16(codes + 64 * j + 16, high & splat16(15));
            store16(codes + 64 * j + 32, low >> 4);
            store16(codes + 64 * j + 48, high >> 4);
        }
        decode_scales_k4(b, scale, minimum);
    }
};

struct CodecQ5_K {
    using Block = BlockQ5_K;
    static constexpr size_t kBlock = 256, kSub = 32;
    static constexpr int kOffset = 0;
    static constexpr bool kMin = true;
    template <int>
    static void decode(const Block& b, int8_t* codes, float* scale, float* minimum) {
        U8x16 top_low = load16(b.qh), top_high = load16(b.qh + 16);
        const U8x16 nibble = splat16(15), bit = splat16(1);
        for (int j = 0; j < 4; ++j) {
            const U8x16 low = load16(b.qs + 32 * j), high = load16(b.qs + 32 * j + 16);
            store16(codes + 64 * j, (low & nibble) | (top_low & bit) << 4);
            store16(codes + 64 * j + 16, (high & nibble) | (top_high & bit) << 4);
            store16(codes + 64 * j + 32, (low >> 4) | (top_low >> 1 & bit) << 4);
            store16(codes + 64 * j + 48, (high >> 4) | (top_high >> 1 & bit) << 4);
            top_low >>= 2;
            top_high >>= 2;
        }
        decode_scales_k4(b, scale, minimum);
    }
};

struct CodecQ6_K {
    using Block = BlockQ6_K;
    static constexpr size_t kBlock = 256, kSub = 16;
    static constexpr int kOffset = 32;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        const U8x16 nibble = splat16(15), top = splat16(0x30), bias = splat16(Bias - 32);
        for (int part = 0; part < 4; ++part) {  // halves of 128, each in two columns of 16
            const uint8_t* ql = b.ql + 64 * (part / 2) + 16 * (part % 2);
            const U8x16 a = load16(ql), c = load16(ql + 32), h = load16(b.qh + 32 * (part / 2) + 16 * (part % 2));
            int8_t* to = codes + 128 * (part / 2) + 16 * (part % 2);
            store16(to, ((a & nibble) | (h << 4 & top)) + bias);
            store16(to + 32, ((c & nibble) | (h << 2 & top)) + bias);
            store16(to + 64, ((a >> 4) | (h & top)) + bias);
            store16(to + 96, ((c >> 4) | (h >> 2 & top)) + bias);
        }
        const float d = half(b.d);
        for (int i = 0; i < 16; ++i) scale[i] = d * static_cast<float>(b.scales[i]);
    }
};

// table[q] + bias for 16 codes of 4 bits.
inline U8x16 looked_up(I8x16 table, U8x16 q, int bias) {
    return __builtin_shuffle(reinterpret_cast<U8x16>(table), q) + splat16(bias);
}

constexpr I8x16 kNonlinear = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr I8x16 kE2m1Doubled = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct CodecIQ4_NL {
    using Block = BlockIQ4_NL;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 128;
    static constexpr bool kMin = false;
    static const uint8_t* scale(const Block& b) { return b.d; }
    template <int Bias>
    static void decode(const Block& b, int8_t* codes) {
        const U8x16 q = load16(b.qs);
        store16(codes, looked_up(kNonlinear, q & splat16(15), Bias));
        store16(codes + 16, looked_up(kNonlinear, q >> 4, Bias));
    }
};

struct CodecIQ4_XS {
    using Block = BlockIQ4_XS;
    static constexpr size_t kBlock = 256, kSub = 32;
    static constexpr int kOffset = 128;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        const float d = half(b.d);
        const int top = load_u16(b.scales_h);
        for (int j = 0; j < 8; ++j) {
            const U8x16 q = load16(b.qs + 16 * j);
            store16(codes + 32 * j, looked_up(kNonlinear, q & splat16(15), Bias));
            store16(codes + 32 * j + 16, looked_up(kNonlinear, q >> 4, Bias));
            const int low = b.scales_l[j / 2] >> (4 * (j % 2)) & 15;
            scale[j] = d * static_cast<float>((low | (top >> (2 * j) & 3) << 4) - 32);
        }
    }
};

struct CodecTQ1_0 {
    using Block = BlockTQ1_0;
    static constexpr size_t kBlock = 256, kSub = 32;
    static constexpr int kOffset = 1;
    static constexpr bool kMin = false;
    // A byte is a fraction of 256 in base 3: the n-th digit is 3 * (byte * 3^n mod 256) / 256, rounded down.
    static U8x16 digits(U8x16 bytes, int power, int bias) {
        const U8x16 x = bytes * splat16(power);
        return splat16(bias - 1) - reinterpret_cast<U8x16>(x >= splat16(86)) - reinterpret_cast<U8x16>(x >= splat16(171));
    }
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        uint8_t last[16] = {};
        std::memcpy(last, b.qh, 4);
        for (int n = 0, power = 1; n < 5; ++n, power *= 3) {
            store16(codes + 32 * n, digits(load16(b.qs), power, Bias));
            store16(codes + 32 * n + 16, digits(load16(b.qs + 16), power, Bias));
            store16(codes + 160 + 16 * n, digits(load16(b.qs + 32), power, Bias));
            int8_t four[16];
            store16(four, digits(load16(last), power, Bias));
            if (n < 4) std::memcpy(codes + 240 + 4 * n, four, 4);
        }
        const float d = half(b.d);
        for (int i = 0; i < 8; ++i) scale[i] = d;
    }
};

struct CodecTQ2_0 {
    using Block = BlockTQ2_0;
    static constexpr size_t kBlock = 256, kSub = 32;
    static constexpr int kOffset = 1;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        for (int part = 0; part < 4; ++part) {
            U8x16 q = load16(b.qs + 16 * part);
            for (int j = 0; j < 4; ++j, q >>= 2)
                store16(codes + 128 * (part / 2) + 32 * j + 16 * (part % 2), (q & splat16(3)) + splat16(Bias - 1));
        }
        const float d = half(b.d);
        for (int i = 0; i < 8; ++i) scale[i] = d;
    }
};

struct CodecMXFP4 {
    using Block = BlockMXFP4;
    static constexpr size_t kBlock = 32, kSub = 32;
    static constexpr int kOffset = 16;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        const U8x16 q = load16(b.qs);
        store16(codes, looked_up(kE2m1Doubled, q & splat16(15), Bias));
        store16(codes + 16, looked_up(kE2m1Doubled, q >> 4, Bias));
        // 2^(e - 128): the codes are doubled.
        const uint32_t bits = b.e < 2 ? 0x00200000u << b.e : static_cast<uint32_t>(b.e - 1) << 23;
        std::memcpy(scale, &bits, 4);
    }
};

// A group of 64 of our own encodings: the scale of both sub-blocks, without the row's.
inline void decode_scale_w2(const uint8_t* field, float* scale) {
    scale[0] = scale[1] = static_cast<float>(load_u16(field) & 0x3fff);
}

struct CodecW2S24 {
    using Block = BlockW2S24;
    static constexpr size_t kBlock = 64, kSub = 32;
    static constexpr int kOffset = 4;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        const int zero = b.scale_zero[1] >> 6;
        std::memset(codes, Bias, kBlock);
        for (unsigned i = 0; i < 16; ++i) {
            const uint8_t* pair = kKeptPairs[pattern_of(b, i)];
            if (pair[0] == pair[1]) continue;
            for (unsigned k = 0; k < 2; ++k)
                codes[4 * i + pair[k]] = static_cast<int8_t>((b.qs[i / 2] >> (4 * (i % 2) + 2 * k) & 3) - zero + Bias);
        }
        decode_scale_w2(b.scale_zero, scale);
    }
};

struct CodecW2 {
    using Block = BlockW2;
    static constexpr size_t kBlock = 64, kSub = 32;
    static constexpr int kOffset = 4;
    static constexpr bool kMin = false;
    template <int Bias>
    static void decode(const Block& b, int8_t* codes, float* scale, float*) {
        const int zero = b.scale_zero[1] >> 6;
        for (size_t i = 0; i < kBlock; ++i)
            codes[i] = static_cast<int8_t>((b.qs[i / 4] >> (2 * (i % 4)) & 3) - zero + Bias);
        decode_scale_w2(b.scale_zero, scale);
    }
};

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
template <>
constexpr bool kHalfScales<CodecMXFP4> = false;

}  // namespace
}  // namespace hetrun::cpu
