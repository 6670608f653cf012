// Codes of blocks of 32 (decode.h).
#pragma once

namespace hetrun::cpu {
namespace {

// 16 bytes of 0 or 16: the fifth bits of 16 codes.
inline U8x16 fifth_bits(uint32_t bits) {
    const U8x16 mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    U8x16 v;
    std::memset(&v, static_cast<int>(bits & 0xff), 8);
    std::memset(reinterpret_cast<char*>(&v) + 8, static_cast<int>(bits >> 8 & 0xff), 8);
    return reinterpret_cast<U8x16>((v & mask) == mask) & splat16(16);
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

constexpr I8x16 kE2m1Doubled = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

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

template <>
constexpr bool kHalfScales<CodecMXFP4> = false;

}  // namespace
}  // namespace hetrun::cpu
