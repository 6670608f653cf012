// AVX-512 with VNNI: 64 codes a step, two blocks of 32 (or four of 16) side by side in the 16 lanes.
#pragma once

#include <immintrin.h>

#include "../kernels.h"

namespace hetrun::cpu {
namespace {

constexpr size_t kLanes = 16;
typedef float Vf __attribute__((vector_size(64)));
typedef int32_t Vi __attribute__((vector_size(64)));

inline Vf fmadd(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
inline float lane_sum(Vf a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_maskz_extractf32x8_ps(0xff, a, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline Vf load_half(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(uint8_t* p, Vf a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#define HETRUN_VECTOR_HALF 1
inline Vi load_u8(const uint8_t* p) {
    return (Vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vi load_i8(const uint8_t* p) {
    return (Vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline Vi load_u8_pairs(const uint8_t* p) {
    return (Vi)_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

#define HETRUN_QUANTIZE 1
// The largest of 32 magnitudes, as bits.
inline int32_t largest_bits(const float* x) {
    const __m512i sign = _mm512_set1_epi32(0x7fffffff);
    const __m512i both = _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), sign),
                                          _mm512_and_si512(_mm512_loadu_si512(x + 16), sign));
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_maskz_extracti32x8_epi32(0xff, both, 1));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}
// 16 codes of x * inverse, and their sum. Adding 1.5 * 2^23 rounds to the nearest integer, ties to even.
inline int32_t quantize16(const float* x, float inverse, int8_t* codes) {
    const __m512 rounded = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)), _mm512_set1_ps(12582912.0f));
    const __m128i q = _mm512_maskz_cvtepi32_epi8(0xffff, _mm512_castps_si512(rounded));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), q);
    const __m128i sums = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}

typedef int32_t V8i __attribute__((vector_size(32)));
// Of 32 floats: lanes whose largest is the largest magnitude, as bits.
inline V8i magnitudes32(const Vf (&x)[2]) {
    const __m512i sign = _mm512_set1_epi32(0x7fffffff);
    const __m512i both = _mm512_max_epi32(_mm512_and_si512((__m512i)x[0], sign), _mm512_and_si512((__m512i)x[1], sign));
    return (V8i)_mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_maskz_extracti32x8_epi32(0xff, both, 1));
}
// 32 codes of x * inverse, in order.
inline V8i codes32(const Vf (&x)[2], float inverse) {
    const __m512 factor = _mm512_set1_ps(inverse), round = _mm512_set1_ps(12582912.0f);
    const auto sixteen = [&](Vf v) {
        const __m512 rounded = _mm512_add_ps(_mm512_mul_ps(v, factor), round);
        return _mm512_maskz_cvtepi32_epi8(0xffff, _mm512_castps_si512(rounded));
    };
    return (V8i)_mm256_setr_m128i(sixteen(x[0]), sixteen(x[1]));
}
// acc + the four signed bytes of each lane.
inline V8i add_bytes(V8i acc, V8i codes) {
    return (V8i)_mm256_dpbusd_epi32((__m256i)acc, _mm256_set1_epi8(1), (__m256i)codes);
}

#define HETRUN_PACKED 1
// Of each byte of `indices`, from 0 to 15, the byte of the table.
inline Vi table_bytes(const void* table, Vi indices) {
    const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return (Vi)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(own), (__m512i)indices);
}
constexpr bool kWideDot = true, kWideFolds = true;  // codes of 8 bits are as good as any
constexpr int kTileVectors = 2;
#ifndef HETRUN_TILES
constexpr int kTilePanelTokens = 8, kKeptTokens = 4;
#endif
inline Vi dot_unsigned(Vi acc, Vi codes, Vi activations) {
    return (Vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, (__m512i)activations);
}
inline Vi dot_signed(Vi acc, Vi, Vi) { return acc; }
inline Vi dot_pairs(Vi a, Vi b) { return (Vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }  // of 16 bits

constexpr int kTileRows = 4, kTileTokens = 4;
// VPDPBUSD wants unsigned weights; the bias is taken back from the accumulator, in integers.
constexpr int stored_bias(int offset) { return offset; }

alignas(64) const int32_t kPair[8][16] = {
    {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},         {2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3},
    {4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5},         {6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7},
    {8, 8, 8, 8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9, 9, 9},         {10, 10, 10, 10, 10, 10, 10, 10, 11, 11, 11, 11, 11, 11, 11, 11},
    {12, 12, 12, 12, 12, 12, 12, 12, 13, 13, 13, 13, 13, 13, 13, 13},
    {14, 14, 14, 14, 14, 14, 14, 14, 15, 15, 15, 15, 15, 15, 15, 15},
};
alignas(64) const int32_t kQuad[4][16] = {
    {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3},
    {4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7},
    {8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11},
    {12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15},
};

template <int Offset, int Sub, bool Min, int R, int T>
inline void dot_tile(const Decoded& m, const uint8_t* prepared, const PreparedLayout& layout, size_t sums, float* out,
                     size_t out_stride) {
    constexpr size_t kGroup = Sub * 16;  // weights whose scales fill one vector
    __m512 acc[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_ps();
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(Offset));
    for (size_t base = 0; base < layout.n; base += kGroup) {
        const size_t left = (layout.n - base + 63) / 64;
        const size_t chunks = left < kGroup / 64 ? left : kGroup / 64;
        __m512 a_scale[T], w_scale[R];
        for (int t = 0; t < T; ++t) {
            const float* p = reinterpret_cast<const float*>(prepared + t * layout.stride + layout.scale) + base / 32;
            a_scale[t] = Sub == 32 ? _mm512_loadu_ps(p) : _mm512_zextps256_ps512(_mm256_loadu_ps(p));
        }
        for (int r = 0; r < R; ++r) w_scale[r] = _mm512_loadu_ps(m.scales + r * m.scale_stride + base / Sub);
        if (Min) {
            for (int t = 0; t < T; ++t) {
                const float* p = reinterpret_cast<const float*>(prepared + t * layout.stride + sums) + base / Sub;
                const __m512 sum = _mm512_loadu_ps(p);
                for (int r = 0; r < R; ++r)
                    acc[r][t] = _mm512_fmadd_ps(_mm512_loadu_ps(m.minima + r * m.scale_stride + base / Sub), sum, acc[r][t]);
            }
        }
        for (size_t c = 0; c < chunks; ++c) {
            const __m512i pair = _mm512_load_si512(kPair[c]);
            const __m512i own = Sub == 32 ? pair : _mm512_load_si512(kQuad[c]);
            __m512i w[R];
            __m512 ws[R];
            for (int r = 0; r < R; ++r) {
                w[r] = _mm512_loadu_si512(m.codes + r * m.code_stride + base + 64 * c);
                ws[r] = _mm512_permutexvar_ps(own, w_scale[r]);
            }
            for (int t = 0; t < T; ++t) {
                const __m512i a = _mm512_loadu_si512(prepared + t * layout.stride + base + 64 * c);
                const __m512 as = _mm512_permutexvar_ps(pair, a_scale[t]);
                __m512i start = _mm512_setzero_si512();
                if (Offset) start = _mm512_sub_epi32(start, _mm512_dpbusd_epi32(start, offset, a));
                for (int r = 0; r < R; ++r) {
                    const __m512i dot = _mm512_dpbusd_epi32(start, w[r], a);
                    acc[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(ws[r], as), acc[r][t]);
                }
            }
        }
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) out[t * out_stride + r] = lane_sum(acc[r][t]);
}

}  // namespace
}  // namespace hetrun::cpu
