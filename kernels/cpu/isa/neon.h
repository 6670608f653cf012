// NEON of armv7 and aarch64, with SDOT where the compiler may use it.
#pragma once

#include <arm_neon.h>

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
