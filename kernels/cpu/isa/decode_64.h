// Codes of groups of 64 (decode.h): our own encodings of 2 bits.
#pragma once

namespace hetrun::cpu {
namespace {

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

}  // namespace
}  // namespace hetrun::cpu
