// Plain C++ for any little-endian machine; the vectors are what the compiler makes of them.
#pragma once

#include "../kernels.h"

namespace hetrun::cpu {
namespace {

constexpr size_t kLanes = 4;
typedef float Vf __attribute__((vector_size(16)));
typedef int32_t Vi __attribute__((vector_size(16)));

inline Vf fmadd(Vf a, Vf b, Vf c) { return a * b + c; }
inline float lane_sum(Vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }

constexpr int kTileRows = 4, kTileTokens = 2;
constexpr int stored_bias(int) { return 0; }

template <int, int Sub, bool Min, int R, int T>
inline void dot_tile(const Decoded& m, const uint8_t* prepared, const PreparedLayout& layout, size_t sums, float* out,
                     size_t out_stride) {
    for (int t = 0; t < T; ++t) {
        const uint8_t* row = prepared + t * layout.stride;
        const int8_t* a = reinterpret_cast<const int8_t*>(row);
        const float* a_scale = reinterpret_cast<const float*>(row + layout.scale);
        const float* a_sums = reinterpret_cast<const float*>(row + sums);
        for (int r = 0; r < R; ++r) {
            const int8_t* w = m.codes + r * m.code_stride;
            float acc = 0.0f;
            for (size_t s = 0; s < layout.n / Sub; ++s) {
                int32_t dot = 0;
                for (size_t i = 0; i < Sub; ++i) dot += w[s * Sub + i] * a[s * Sub + i];
                acc += static_cast<float>(dot) * (m.scales[r * m.scale_stride + s] * a_scale[s * Sub / 32]);
                if (Min) acc += m.minima[r * m.scale_stride + s] * a_sums[s];
            }
            out[t * out_stride + r] = acc;
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
