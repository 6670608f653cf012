// AVX2 with FMA and F16C: one block of 32 codes a step.
#pragma once

#include <immintrin.h>

#include "../kernels.h"

namespace hetrun::cpu {
namespace {

constexpr size_t kLanes = 8;
typedef float Vf __attribute__((vector_size(32)));
typedef int32_t Vi __attribute__((vector_size(32)));

inline Vf fmadd(Vf a, Vf b, Vf c) { return _mm256_fmadd_ps(a, b, c); }
inline float lane_sum(Vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline Vf load_half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store_half(uint8_t* p, Vf a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#define HETRUN_VECTOR_HALF 1
inline Vi load_u8(const uint8_t* p) {
    return (Vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Vi load_i8(const uint8_t* p) {
    return (Vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

inline Vi load_u8_pairs(const uint8_t* p) {
    return (Vi)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

#define HETRUN_QUANTIZE 1
// The largest of 32 magnitudes, as bits.
inline int32_t largest_bits(const float* x) {
    const __m256i sign = _mm256_set1_epi32(0x7fffffff);
    const auto magnitudes = [&](int i) {
        return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i)), sign);
    };
    const __m256i all = _mm256_max_epi32(_mm256_max_epi32(magnitudes(0), magnitudes(1)), _mm256_max_epi32(magnitudes(2), magnitudes(3)));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}
// 16 codes of x * inverse, and their sum. Adding 1.5 * 2^23 rounds to the nearest integer, ties to even.
inline int32_t quantize16(const float* x, float inverse, int8_t* codes) {
    const __m256 factor = _mm256_set1_ps(inverse), round = _mm256_set1_ps(12582912.0f);
    const __m256i bias = _mm256_set1_epi32(0x4b400000);
    const auto eight = [&](const float* from) {
        const __m256 rounded = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(from), factor), round);
        return _mm256_sub_epi32(_mm256_castps_si256(rounded), bias);
    };
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(eight(x), eight(x + 8)), 0xd8);
    const __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), q);
    const __m128i sums = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}

typedef int32_t V8i __attribute__((vector_size(32)));
// Of 32 floats: lanes whose largest is the largest magnitude, as bits.
inline V8i magnitudes32(const Vf (&x)[4]) {
    const __m256i sign = _mm256_set1_epi32(0x7fffffff);
    const auto magnitude = [&](int i) { return _mm256_and_si256((__m256i)x[i], sign); };
    return (V8i)_mm256_max_epi32(_mm256_max_epi32(magnitude(0), magnitude(1)), _mm256_max_epi32(magnitude(2), magnitude(3)));
}
// 32 codes of x * inverse, in order.
inline V8i codes32(const Vf (&x)[4], float inverse) {
    const __m256 factor = _mm256_set1_ps(inverse), round = _mm256_set1_ps(12582912.0f);
    const __m256i bias = _mm256_set1_epi32(0x4b400000);
    const auto eight = [&](int i) {
        return _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps((__m256)x[i], factor), round)), bias);
    };
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(eight(0), eight(1)), _mm256_packs_epi32(eight(2), eight(3)));
    return (V8i)_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// acc + the four signed bytes of each lane.
inline V8i add_bytes(V8i acc, V8i codes) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), (__m256i)codes);
    return acc + (V8i)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#define HETRUN_PACKED 1
// Of each byte of `indices`, from 0 to 15, the byte of the table.
inline Vi table_bytes(const void* table, Vi indices) {
    const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return (Vi)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(own), (__m256i)indices);
}
#define HETRUN_NARROW_GEMV 1
constexpr int kGemvVectors = 2;
template <class C>
constexpr size_t kAheadBytes = C::kBlock == 256 ? 1024 : 2048;  // for which memory is asked before it is used
constexpr int kTileVectors = 2, kTilePanelTokens = 4, kKeptTokens = 0;
#ifdef HETRUN_VNNI
constexpr bool kWideDot = true, kWideFolds = true;
inline Vi dot_unsigned(Vi acc, Vi codes, Vi activations) {
    return (Vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)codes, (__m256i)activations);
}
inline Vi dot_signed(Vi acc, Vi, Vi) { return acc; }
#else
constexpr bool kWideDot = false, kWideFolds = false;  // VPMADDUBSW saturates at 16 bits: codes of 8 bits are taken as signed
inline Vi dot_unsigned(Vi acc, Vi codes, Vi activations) {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, (__m256i)activations);
    return acc + (Vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
inline Vi dot_signed(Vi acc, Vi codes, Vi activations) {
    return dot_unsigned(acc, (Vi)_mm256_abs_epi8((__m256i)codes), (Vi)_mm256_sign_epi8((__m256i)activations, (__m256i)codes));
}

#define HETRUN_NARROW_DOTS 1
// In 16 bits as long as products fit: two are added at once. Codes of 8 bits are taken as signed.
template <int Bits, int N>
struct Dots {
    static constexpr int kFit = ((1 << 15) - 1) / (2 * ((1 << Bits) - 1) * 127);
    Vi sum;
    __m256i pairs;
    int n;
    __attribute__((always_inline)) void begin(Vi start) {
        sum = start;
        pairs = _mm256_setzero_si256();
        n = 0;
    }
    // Each sum is kept from the compiler: integers may be added in any order, and it would make all products first, and spill them.
    __attribute__((always_inline)) void add(Vi codes, Vi activations) {
        if constexpr (kFit == 0) {
            sum = dot_signed(sum, codes ^ (Vi{} + static_cast<int32_t>(0x80808080)), activations);
            asm("" : "+x"(sum));
        } else {
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16((__m256i)codes, (__m256i)activations));
            asm("" : "+x"(pairs));
            if (++n % kFit != 0 || n == N) return;
            sum = widened();
            pairs = _mm256_setzero_si256();
        }
    }
    __attribute__((always_inline)) Vi total() const { return kFit == 0 ? sum : widened(); }

private:
    __attribute__((always_inline)) Vi widened() const { return sum + (Vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};
#endif

#define HETRUN_DOT_PAIRS 1
inline Vi dot_pairs(Vi a, Vi b) { return (Vi)_mm256_madd_epi16((__m256i)a, (__m256i)b); }  // of 16 bits

constexpr int kTileRows = 4, kTileTokens = 2;
// VPMADDUBSW wants unsigned weights and saturates at 16 bits: codes of up to 6 bits stay biased, Q8_0 stays signed.
constexpr int stored_bias(int offset) { return offset == 128 ? 0 : offset; }

template <int Offset, int Sub, bool Min, int R, int T>
inline void dot_tile(const Decoded& m, const uint8_t* prepared, const PreparedLayout& layout, size_t sums, float* out,
                     size_t out_stride) {
    __m256 acc[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) acc[r][t] = _mm256_setzero_ps();
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i offset = _mm256_set1_epi8(static_cast<char>(Offset));
    for (size_t block = 0; block < layout.n / 32; ++block) {
        for (int t = 0; t < T; ++t) {
            const uint8_t* row = prepared + t * layout.stride;
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32 * block));
            const __m256 as = _mm256_broadcast_ss(reinterpret_cast<const float*>(row + layout.scale) + block);
            const __m256i biased = Offset ? _mm256_maddubs_epi16(offset, a) : a;
            for (int r = 0; r < R; ++r) {
                const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(m.codes + r * m.code_stride + 32 * block));
                __m256i pairs;
                if (Offset == 128) {
                    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
                } else {
                    pairs = _mm256_maddubs_epi16(w, a);
                    if (Offset) pairs = _mm256_sub_epi16(pairs, biased);
                }
                const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                const float* own = m.scales + r * m.scale_stride + block * 32 / Sub;
                const __m256 ws = Sub == 32 ? _mm256_broadcast_ss(own)
                                            : _mm256_setr_m128(_mm_broadcast_ss(own), _mm_broadcast_ss(own + 1));
                acc[r][t] = _mm256_fmadd_ps(dot, _mm256_mul_ps(ws, as), acc[r][t]);
            }
        }
    }
    if (Min) {
        for (size_t i = 0; i < layout.n / Sub; i += 8) {  // rows are padded with zeros to 16 scales
            for (int t = 0; t < T; ++t) {
                const __m256 sum = _mm256_loadu_ps(reinterpret_cast<const float*>(prepared + t * layout.stride + sums) + i);
                for (int r = 0; r < R; ++r)
                    acc[r][t] = _mm256_fmadd_ps(_mm256_loadu_ps(m.minima + r * m.scale_stride + i), sum, acc[r][t]);
            }
        }
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) out[t * out_stride + r] = lane_sum(acc[r][t]);
}

}  // namespace
}  // namespace hetrun::cpu
