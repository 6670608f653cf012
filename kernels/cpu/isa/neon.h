// NEON of armv7 and aarch64, with SDOT where the compiler may use it.
#pragma once

#include <arm_neon.h>

#include <cstring>
#include <type_traits>

#include "../kernels.h"

namespace hetrun::cpu {
namespace {

constexpr size_t kLanes = 4;
typedef float Vf __attribute__((vector_size(16)));
typedef int32_t Vi __attribute__((vector_size(16)));

inline float32x4_t multiply_add(float32x4_t acc, float32x4_t a, float32x4_t b) {
#ifdef __aarch64__
    return vfmaq_f32(acc, a, b);
#else
    return vmlaq_f32(acc, a, b);
#endif
}
inline Vf fmadd(Vf a, Vf b, Vf c) { return (Vf)multiply_add((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline float lane_sum(Vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }

#ifdef __aarch64__
#define HETRUN_VECTOR_HALF 1
inline Vf load_half(const uint8_t* p) {
    return (Vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
inline void store_half(uint8_t* p, Vf a) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)a)));
}
#endif
inline uint8x8_t load_four(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(word));
}
inline Vi load_u8(const uint8_t* p) { return (Vi)vmovl_u16(vget_low_u16(vmovl_u8(load_four(p)))); }
inline Vi load_i8(const uint8_t* p) { return (Vi)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(p))))); }
inline Vi load_u8_pairs(const uint8_t* p) { return (Vi)vmovl_u8(vld1_u8(p)); }

#define HETRUN_PACKED 1
// Of each byte of `indices`, from 0 to 15, the byte of the table.
inline Vi table_bytes(const void* table, Vi indices) {
    const uint8x16_t own = vld1q_u8(static_cast<const uint8_t*>(table));
#ifdef __aarch64__
    return (Vi)vqtbl1q_u8(own, (uint8x16_t)indices);
#else
    const uint8x8x2_t halves = {{vget_low_u8(own), vget_high_u8(own)}};
    return (Vi)vcombine_u8(vtbl2_u8(halves, vget_low_u8((uint8x16_t)indices)), vtbl2_u8(halves, vget_high_u8((uint8x16_t)indices)));
#endif
}
#define HETRUN_NARROW_GEMV 1
#define HETRUN_PANEL_ROWS 1
template <class>
constexpr size_t kAheadBytes = 4096;  // for which memory is asked before it is used
constexpr bool kWideFolds = true;
#ifdef __aarch64__
constexpr int kGemvVectors = 4;  // of 16 rows, read together: whole cache lines
constexpr int kTileVectors = 4, kTilePanelTokens = 4, kKeptTokens = 0;
#else
constexpr int kGemvVectors = 2;
constexpr int kTileVectors = 2, kTilePanelTokens = 2, kKeptTokens = 0;
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kWideDot = true;
inline Vi dot_unsigned(Vi acc, Vi codes, Vi activations) {
    return (Vi)vusdotq_s32((int32x4_t)acc, (uint8x16_t)codes, (int8x16_t)activations);
}
inline Vi dot_signed(Vi acc, Vi, Vi) { return acc; }
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool kWideDot = false;
inline Vi dot_signed(Vi acc, Vi codes, Vi activations) {
    return (Vi)vdotq_s32((int32x4_t)acc, (int8x16_t)codes, (int8x16_t)activations);
}
// Of fewer than 8 bits.
inline Vi dot_unsigned(Vi acc, Vi codes, Vi activations) { return dot_signed(acc, codes, activations); }
#else
#define HETRUN_NARROW_DOTS 1
constexpr bool kWideDot = false;
inline Vi row_totals(int32x4_t low, int32x4_t high) {
#ifdef __aarch64__
    return (Vi)vpaddq_s32(low, high);
#else
    return (Vi)vcombine_s32(vpadd_s32(vget_low_s32(low), vget_high_s32(low)), vpadd_s32(vget_low_s32(high), vget_high_s32(high)));
#endif
}
inline Vi dot_signed(Vi acc, Vi codes, Vi activations) {
    const int8x16_t w = (int8x16_t)codes, a = (int8x16_t)activations;
    return acc + row_totals(vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a))), vpaddlq_s16(vmull_s8(vget_high_s8(w), vget_high_s8(a))));
}
inline Vi dot_unsigned(Vi acc, Vi codes, Vi activations) { return dot_signed(acc, codes, activations); }
// The lower two rows of a vector, then the upper two: N products in 16 bits.
struct ShortDots {
    int16x8_t low, high;
    Vi start;
    void begin(Vi from) {
        low = high = vdupq_n_s16(0);
        start = from;
    }
    void add(Vi codes, Vi activations) {
        const int8x16_t w = (int8x16_t)codes, a = (int8x16_t)activations;
        low = vmlal_s8(low, vget_low_s8(w), vget_low_s8(a));
        high = vmlal_s8(high, vget_high_s8(w), vget_high_s8(a));
    }
    Vi total() const { return start + row_totals(vpaddlq_s16(low), vpaddlq_s16(high)); }
};
// In 32 bits. Codes of 8 bits are taken as signed, where they are `Flipped`: two products fit 16 bits.
template <bool Flipped>
struct LongDots {
    int32x4_t low, high;
    Vi start;
    void begin(Vi from) {
        low = high = vdupq_n_s32(0);
        start = from;
    }
    void add(Vi codes, Vi activations) {
        const int8x16_t w = (int8x16_t)(Flipped ? codes ^ (Vi{} + static_cast<int32_t>(0x80808080)) : codes), a = (int8x16_t)activations;
        low = vpadalq_s16(low, vmull_s8(vget_low_s8(w), vget_low_s8(a)));
        high = vpadalq_s16(high, vmull_s8(vget_high_s8(w), vget_high_s8(a)));
    }
    Vi total() const { return start + row_totals(low, high); }
};
template <int Bits, int N>
struct Dots : std::conditional_t<N * ((1 << Bits) - 1) * 127 < 1 << 15, ShortDots, LongDots<Bits == 8>> {};
#endif

constexpr int kTileRows = 4, kTileTokens = 2;
constexpr int stored_bias(int) { return 0; }

// Dot product of 16 codes in four lanes. The sum of two products fits 16 bits: 2 * 128 * 127.
inline int32x4_t dot16(int32x4_t acc, int8x16_t w, int8x16_t a) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(acc, w, a);
#else
    const int16x8_t pairs = vmlal_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vget_high_s8(w), vget_high_s8(a));
    return vpadalq_s16(acc, pairs);
#endif
}

template <int, int Sub, bool Min, int R, int T>
inline void dot_tile(const Decoded& m, const uint8_t* prepared, const PreparedLayout& layout, size_t sums, float* out,
                     size_t out_stride) {
    float32x4_t acc[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) acc[r][t] = vdupq_n_f32(0.0f);
    const int32x4_t zero = vdupq_n_s32(0);
    for (size_t block = 0; block < layout.n / 32; ++block) {
        for (int t = 0; t < T; ++t) {
            const uint8_t* row = prepared + t * layout.stride;
            const int8_t* a = reinterpret_cast<const int8_t*>(row) + 32 * block;
            const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
            const float as = reinterpret_cast<const float*>(row + layout.scale)[block];
            for (int r = 0; r < R; ++r) {
                const int8_t* w = m.codes + r * m.code_stride + 32 * block;
                const float* own = m.scales + r * m.scale_stride + block * 32 / Sub;
                const int32x4_t first = dot16(zero, vld1q_s8(w), a0);
                if (Sub == 32) {
                    const int32x4_t both = dot16(first, vld1q_s8(w + 16), a1);
                    acc[r][t] = multiply_add(acc[r][t], vcvtq_f32_s32(both), vdupq_n_f32(own[0] * as));
                } else {
                    const int32x4_t second = dot16(zero, vld1q_s8(w + 16), a1);
                    acc[r][t] = multiply_add(acc[r][t], vcvtq_f32_s32(first), vdupq_n_f32(own[0] * as));
                    acc[r][t] = multiply_add(acc[r][t], vcvtq_f32_s32(second), vdupq_n_f32(own[1] * as));
                }
            }
        }
    }
    if (Min) {
        for (size_t i = 0; i < layout.n / Sub; i += 4) {  // rows are padded with zeros to 16 scales
            for (int t = 0; t < T; ++t) {
                const float32x4_t sum = vld1q_f32(reinterpret_cast<const float*>(prepared + t * layout.stride + sums) + i);
                for (int r = 0; r < R; ++r)
                    acc[r][t] = multiply_add(acc[r][t], vld1q_f32(m.minima + r * m.scale_stride + i), sum);
            }
        }
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) out[t * out_stride + r] = lane_sum((Vf)acc[r][t]);
}

}  // namespace
}  // namespace hetrun::cpu
