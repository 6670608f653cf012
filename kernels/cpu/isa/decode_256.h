// Codes of super-blocks of 256 (decode.h).
#pragma once

namespace hetrun::cpu {
namespace {

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

}  // namespace
}  // namespace hetrun::cpu
