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

// Dots of the beat's rows and parts with each token.   codes: of token 0, others kMaxColumns apart; dots: eight a token.
template <uint32_t Format>
void fast_dots_of(const Beat& beat, const int16_t* codes, uint32_t column, uint32_t n_tokens, int32_t* dots) {
    constexpr int kRows = static_cast<int>(kFormats[Format].rows), kColumns = static_cast<int>(kFormats[Format].columns);
    constexpr int kParts = Format == HETRUN_U280_FORMAT_W2S24 || Format == HETRUN_U280_FORMAT_W2 || Format == HETRUN_U280_FORMAT_S8H ? 2 : 1;
    int16_t weights[256];
    unpack<Format>(beat, weights);
    for (uint32_t t = 0; t < n_tokens; ++t) {
        const int16_t* x = codes + t * HETRUN_U280_MAX_COLUMNS + column;
        for (int r = 0; r < kRows; ++r) {
            for (int part = 0; part < kParts; ++part) {
                constexpr int n = kColumns / kParts;
                const int16_t *w = weights + r * kColumns + part * n, *own = x + part * n;
                int32_t dot = 0;
                for (int k = 0; k < n; ++k) dot += w[k] * own[k];
                dots[8 * t + static_cast<uint32_t>(r * kParts + part)] = dot;
            }
        }
    }
}

inline void fast_dots(uint32_t format, const Beat& beat, const int16_t* codes, uint32_t column, uint32_t n_tokens, int32_t* dots) {
    switch (format) {
        case HETRUN_U280_FORMAT_W2S24: return fast_dots_of<HETRUN_U280_FORMAT_W2S24>(beat, codes, column, n_tokens, dots);
        case HETRUN_U280_FORMAT_W2: return fast_dots_of<HETRUN_U280_FORMAT_W2>(beat, codes, column, n_tokens, dots);
        case HETRUN_U280_FORMAT_S4: return fast_dots_of<HETRUN_U280_FORMAT_S4>(beat, codes, column, n_tokens, dots);
        case HETRUN_U280_FORMAT_U4: return fast_dots_of<HETRUN_U280_FORMAT_U4>(beat, codes, column, n_tokens, dots);
        case HETRUN_U280_FORMAT_S8: return fast_dots_of<HETRUN_U280_FORMAT_S8>(beat, codes, column, n_tokens, dots);
        case HETRUN_U280_FORMAT_S8H: return fast_dots_of<HETRUN_U280_FORMAT_S8H>(beat, codes, column, n_tokens, dots);
        default: return;
    }
}

template <uint32_t Format, class Run>
[[gnu::flatten, gnu::noinline]] void run_in_format(const Run& run) {
    run(std::integral_constant<uint32_t, Format>{});
}

// Calls run with the format as a constant.
template <class Run>
void multiply_in_format(uint32_t format, const Run& run) {
    switch (format) {
        case HETRUN_U280_FORMAT_W2S24: return run_in_format<HETRUN_U280_FORMAT_W2S24>(run);
        case HETRUN_U280_FORMAT_W2: return run_in_format<HETRUN_U280_FORMAT_W2>(run);
        case HETRUN_U280_FORMAT_S4: return run_in_format<HETRUN_U280_FORMAT_S4>(run);
        case HETRUN_U280_FORMAT_U4: return run_in_format<HETRUN_U280_FORMAT_U4>(run);
        case HETRUN_U280_FORMAT_S8: return run_in_format<HETRUN_U280_FORMAT_S8>(run);
        case HETRUN_U280_FORMAT_S8H: return run_in_format<HETRUN_U280_FORMAT_S8H>(run);
        default: return;
    }
}

}  // namespace hetrun::u280
