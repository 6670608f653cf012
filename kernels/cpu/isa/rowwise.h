// Quantising, norms and elementwise functions of one row.
#pragma once

namespace hetrun::cpu {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even

// To the 11 significant bits of a half, with the range of a float.
inline float rounded_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0xfffu + (bits >> 13 & 1)) & ~0x1fffu;
    bits = (bits & 0x7fffffffu) > 0x7f800000u ? bits : rounded;  // a NaN stays one
    std::memcpy(&x, &bits, 4);
    return x;
}

#ifndef HETRUN_QUANTIZE
inline int32_t largest_bits(const float* x) {
    int32_t largest = 0;
    for (int i = 0; i < 32; ++i) {
        int32_t bits;
        std::memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}
inline int32_t quantize16(const float* x, float inverse, int8_t* codes) {
    int32_t q[16], sum = 0;
    for (int i = 0; i < 16; ++i) {
        const float rounded = x[i] * inverse + kRound;
        std::memcpy(q + i, &rounded, 4);
        q[i] -= 0x4b400000;
    }
    for (int i = 0; i < 16; ++i) {
        codes[i] = static_cast<int8_t>(q[i]);
        sum += q[i];
    }
    return sum;
}
#endif

void prepare_int8(const float* x, const PreparedLayout& layout, uint8_t* out) {
    int8_t* codes = reinterpret_cast<int8_t*>(out);
    float* scales = reinterpret_cast<float*>(out + layout.scale);
    float* sums32 = reinterpret_cast<float*>(out + layout.sum32);
    float* half_sums32 = reinterpret_cast<float*>(out + layout.half_sum32);
    float* sums16 = reinterpret_cast<float*>(out + layout.sum16);
    int32_t* neg32 = reinterpret_cast<int32_t*>(out + layout.neg32);
    int32_t* neg16 = reinterpret_cast<int32_t*>(out + layout.neg16);
    const size_t n_blocks = layout.n / 32;
    for (size_t b = 0; b < n_blocks; ++b) {
        // Magnitudes compare as integers, where NaN and infinity are the largest and none gets lost.
        const int32_t largest = largest_bits(x + 32 * b);
        float magnitude;
        std::memcpy(&magnitude, &largest, 4);
        float scale = magnitude / 127.0f;
        int32_t sum[2] = {0, 0};
        if (largest < 0x7f800000 && magnitude >= 1e-35f) {
            const float inverse = 127.0f / magnitude;
            for (size_t i = 0; i < 2; ++i) sum[i] = quantize16(x + 32 * b + 16 * i, inverse, codes + 32 * b + 16 * i);
        } else {
            std::memset(codes + 32 * b, 0, 32);
            scale = largest >= 0x7f800000 ? __builtin_nanf("") : 0.0f;  // of tiny numbers the inverse would overflow
        }
        neg16[2 * b] = -sum[0];
        neg16[2 * b + 1] = -sum[1];
        neg32[b] = -(sum[0] + sum[1]);
        half_sums32[b] = rounded_half(scale * static_cast<float>(sum[0] + sum[1]));
        scale = rounded_half(scale);
        scales[b] = scale;
        sums32[b] = scale * static_cast<float>(sum[0] + sum[1]);
        sums16[2 * b] = scale * static_cast<float>(sum[0]);
        sums16[2 * b + 1] = scale * static_cast<float>(sum[1]);
    }
    for (size_t b = n_blocks; b < round_up(n_blocks, 16); ++b) {
        scales[b] = sums32[b] = half_sums32[b] = sums16[2 * b] = sums16[2 * b + 1] = 0.0f;
    }
}

// One row into its place in the panel of 8 tokens.
void fill_panel(const uint8_t* row, const PreparedLayout& layout, size_t token, uint8_t* panel) {
    const float* scales = reinterpret_cast<const float*>(row + layout.scale);
    const float* sums32 = reinterpret_cast<const float*>(row + layout.sum32);
    const float* half_sums32 = reinterpret_cast<const float*>(row + layout.half_sum32);
    const float* sums16 = reinterpret_cast<const float*>(row + layout.sum16);
    const int32_t* neg32 = reinterpret_cast<const int32_t*>(row + layout.neg32);
    const int32_t* neg16 = reinterpret_cast<const int32_t*>(row + layout.neg16);
    PanelBlock* blocks = reinterpret_cast<PanelBlock*>(panel);
    for (size_t b = 0; b < layout.n / 32; ++b) {
        PanelBlock& to = blocks[b];
        for (size_t j = 0; j < 8; ++j) std::memcpy(to.codes[j][token], row + 32 * b + 4 * j, 4);
        to.scale[token] = scales[b];
        to.half_sum32[token] = half_sums32[b];
        to.sum32[token] = sums32[b];
        to.neg32[token] = neg32[b];
        for (size_t i = 0; i < 2; ++i) {
            to.neg16[i][token] = neg16[2 * b + i];
            to.sum16[i][token] = sums16[2 * b + i];
        }
    }
}

void rms_norm(const float* x, const float* weight, size_t n, float eps, float* out) {
    double lanes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t l = 0; l < 8; ++l) lanes[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
    for (; i < n; ++i) lanes[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    double sum = 0;
    for (size_t l = 0; l < 8; ++l) sum += lanes[l];
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(sum / static_cast<double>(n)) + eps);
    for (i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

// exp to about 2 ulp: 2^k * p(r), |r| <= ln 2 / 2. NaN stays NaN.
inline Vf exponential(Vf x) {
    const Vf low = splat(-87.0f), high = splat(88.5f);
    const Vf bounded = x < low ? low : x > high ? high : x;
    const Vf shifted = bounded * splat(1.44269504f) + splat(kRound);
    const Vf k = shifted - splat(kRound);
    const Vf r = (bounded - k * splat(0.693145752f)) - k * splat(1.42860677e-6f);
    Vf p = splat(1.0f / 5040.0f);
    p = p * r + splat(1.0f / 720.0f);
    p = p * r + splat(1.0f / 120.0f);
    p = p * r + splat(1.0f / 24.0f);
    p = p * r + splat(1.0f / 6.0f);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    const Vf power = as_floats((as_ints(shifted) - splat_int(0x4b400000 - 127)) << 23);
    const Vf result = p * power;
    return x < low ? Vf{} : x > splat(88.7f) ? splat(__builtin_inff()) : result;
}

// tanh: by exp, and by its series where exp would cancel.
inline Vf hyperbolic_tangent(Vf x) {
    const Vf by_exp = splat(1.0f) - splat(2.0f) / (exponential(x + x) + splat(1.0f));
    const Vf s = x * x;
    const Vf series = x * (splat(1.0f) + s * (splat(-1.0f / 3) + s * (splat(2.0f / 15) + s * splat(-17.0f / 315))));
    return (s < splat(0.0225f)) ? series : by_exp;
}

inline Vf silu(Vf x) { return x / (splat(1.0f) + exponential(-x)); }

inline Vf gelu(Vf x) {
    const Vf inner = splat(0.7978845608f) * x * (splat(1.0f) + splat(0.044715f) * x * x);
    return splat(0.5f) * x * (splat(1.0f) + hyperbolic_tangent(inner));
}

// Applies f to n elements; the last ones pass through a padded vector, so that each has the same arithmetic.
template <class F>
inline void each(const float* a, const float* b, size_t n, float* out, F f) {
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_floats(out + i, f(load_floats(a + i), load_floats(b + i)));
    if (i < n) {
        float x[kLanes] = {}, y[kLanes] = {};
        std::memcpy(x, a + i, (n - i) * sizeof(float));
        std::memcpy(y, b + i, (n - i) * sizeof(float));
        store_floats(x, f(load_floats(x), load_floats(y)));
        std::memcpy(out + i, x, (n - i) * sizeof(float));
    }
}

void gated(uint32_t function, const float* gate, const float* up, size_t n, float* out) {
    if (function == 0) {
        each(gate, up, n, out, [](Vf g, Vf u) { return silu(g) * u; });
    } else {
        each(gate, up, n, out, [](Vf g, Vf u) { return gelu(g) * u; });
    }
}

void add(const float* a, const float* b, size_t n, float* out) {
    each(a, b, n, out, [](Vf x, Vf y) { return x + y; });
}

void scale(const float* x, float factor, size_t n, float* out) {
    each(x, x, n, out, [factor](Vf v, Vf) { return v * splat(factor); });
}

void soft_cap(const float* x, float cap, size_t n, float* out) {
    each(x, x, n, out, [cap](Vf v, Vf) { return splat(cap) * hyperbolic_tangent(v / splat(cap)); });
}

}  // namespace
}  // namespace hetrun::cpu
