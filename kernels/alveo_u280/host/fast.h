// What makes the lanes fast on a host, with the same bits: each format has a copy of the loops in which it is a constant, a beat is
// unpacked once for all tokens, and products are 16-bit pairs, as vector units take them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../hls/engine.h"
#include "../hls/formats.h"

namespace hetrun::u280 {

// Four weights of a W2S24 group: value less zero point where the pattern keeps them, else zero.
struct Fours {
    int16_t weight[4][8][16][4];  // by zero point, pattern and the two values

    constexpr Fours() : weight{} {
        constexpr int kept[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
        for (int zero = 0; zero < 4; ++zero) {
            for (int pattern = 0; pattern < 6; ++pattern) {
                for (int values = 0; values < 16; ++values) {
                    weight[zero][pattern][values][kept[pattern][0]] = static_cast<int16_t>((values & 3) - zero);
                    weight[zero][pattern][values][kept[pattern][1]] = static_cast<int16_t>((values >> 2) - zero);
                }
            }
        }
    }
};
inline constexpr Fours kFours;

// The weights of a beat, row by row.
template <uint32_t Format>
void unpack(const Beat& beat, int16_t* weights) {
    if constexpr (Format == HETRUN_U280_FORMAT_W2S24) {
        for (int r = 0; r < 4; ++r) {
            uint64_t low, high;
            std::memcpy(&low, beat.byte + 16 * r, 8);
            std::memcpy(&high, beat.byte + 16 * r + 8, 8);
            const uint64_t patterns = low & 0xffffffffffffu, values = low >> 48 | high << 16;
            const unsigned zero = static_cast<unsigned>(high >> 62);
            for (int j = 0; j < 16; ++j)
                std::memcpy(weights + 64 * r + 4 * j, kFours.weight[zero][patterns >> 3 * j & 7][values >> 4 * j & 15], 8);
        }
    } else if constexpr (Format == HETRUN_U280_FORMAT_W2) {
        for (int i = 0; i < 64; ++i) {
            for (int k = 0; k < 4; ++k) weights[4 * i + k] = static_cast<int16_t>(beat.byte[i] >> 2 * k & 3);
        }
    } else if constexpr (Format == HETRUN_U280_FORMAT_S4 || Format == HETRUN_U280_FORMAT_U4) {
        constexpr int zero = Format == HETRUN_U280_FORMAT_S4 ? 8 : 0;
        for (int i = 0; i < 64; ++i) {
            weights[2 * i] = static_cast<int16_t>((beat.byte[i] & 15) - zero);
            weights[2 * i + 1] = static_cast<int16_t>((beat.byte[i] >> 4) - zero);
        }
    } else {
        for (int i = 0; i < 64; ++i) weights[i] = static_cast<int8_t>(beat.byte[i]);
    }
}

// Dots of the beat's rows and parts with a token.   x: its codes from the beat's first column on.
template <uint32_t Format>
void fast_dots(const int16_t* weights, const int16_t* x, int32_t* dots) {
    constexpr int kRows = static_cast<int>(kFormats[Format].rows), kColumns = static_cast<int>(kFormats[Format].columns);
    constexpr int kParts = Format == HETRUN_U280_FORMAT_W2S24 || Format == HETRUN_U280_FORMAT_W2 || Format == HETRUN_U280_FORMAT_S8H ? 2 : 1;
    constexpr int n = kColumns / kParts;
    for (int i = 0; i < kRows * kParts; ++i) {
        const int16_t *w = weights + i * n, *own = x + i % kParts * n;
        int32_t dot = 0;
        for (int k = 0; k < n; ++k) dot += w[k] * own[k];
        dots[i] = dot;
    }
}

// Calls run with the format as a constant.
template <class Run>
inline __attribute__((always_inline)) void in_format(uint32_t format, const Run& run) {
    switch (format) {
        case HETRUN_U280_FORMAT_W2S24: return run(std::integral_constant<uint32_t, HETRUN_U280_FORMAT_W2S24>{});
        case HETRUN_U280_FORMAT_W2: return run(std::integral_constant<uint32_t, HETRUN_U280_FORMAT_W2>{});
        case HETRUN_U280_FORMAT_S4: return run(std::integral_constant<uint32_t, HETRUN_U280_FORMAT_S4>{});
        case HETRUN_U280_FORMAT_U4: return run(std::integral_constant<uint32_t, HETRUN_U280_FORMAT_U4>{});
        case HETRUN_U280_FORMAT_S8: return run(std::integral_constant<uint32_t, HETRUN_U280_FORMAT_S8>{});
        case HETRUN_U280_FORMAT_S8H: return run(std::integral_constant<uint32_t, HETRUN_U280_FORMAT_S8H>{});
        default: return;
    }
}

inline void unpack(uint32_t format, const Beat& beat, int16_t* weights) {
    in_format(format, [&](auto constant) { unpack<constant()>(beat, weights); });
}
inline void fast_dots(uint32_t format, const int16_t* weights, const int16_t* x, int32_t* dots) {
    in_format(format, [&](auto constant) { fast_dots<constant()>(weights, x, dots); });
}

template <class Constant, class Run>
[[gnu::flatten, gnu::noinline]] void flattened(Constant format, const Run& run) {
    run(format);
}

// Calls run with the format as a constant, all that it calls a part of it.
template <class Run>
void multiply_in_format(uint32_t format, const Run& run) {
    in_format(format, [&](auto constant) { flattened(constant, run); });
}

}  // namespace hetrun::u280
