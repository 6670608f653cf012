// Rows of 8 tokens straight into a panel: norm, quantising and transposing in one pass, the tokens side by side in the lanes.
#pragma once

namespace hetrun::cpu {
namespace {

typedef uint32_t V8u __attribute__((vector_size(32)));
typedef float V8f __attribute__((vector_size(32)));
static_assert(kPanelTokens == 8, "a token a lane");

// r[i][k] becomes r[k][i].
inline void transpose8(V8i (&r)[8]) {
    V8i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int k = 0; k < 2; ++k) {
            b[i + 2 * k] = __builtin_shufflevector(a[i + k], a[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * k + 1] = __builtin_shufflevector(a[i + k], a[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// As rounded_half does, lane by lane.
inline V8f rounded_halves8(V8f x) {
    const V8u bits = reinterpret_cast<V8u>(x);
    const V8u rounded = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
    return reinterpret_cast<V8f>(reinterpret_cast<V8i>(bits & 0x7fffffffu) > 0x7f800000 ? bits : rounded);
}

// 32 columns of 8 tokens: the same numbers as prepare_int8 has.
inline void panel_block(const Vf (&x)[8][32 / kLanes], uint8_t* out) {
    V8i largest[8], codes[8];
    for (int t = 0; t < 8; ++t) largest[t] = magnitudes32(x[t]);
    transpose8(largest);
    V8i bits = largest[0];
    for (int t = 1; t < 8; ++t) bits = largest[t] > bits ? largest[t] : bits;
    const V8f magnitude = reinterpret_cast<V8f>(bits);
    const V8i finite = bits < 0x7f800000;
    const V8i good = finite & (magnitude >= 1e-35f);
    V8f scale = magnitude / 127.0f;
    scale = good ? scale : finite ? V8f{} : V8f{} + __builtin_nanf("");
    float inverse[8];
    const V8f quotient = 127.0f / magnitude;
    std::memcpy(inverse, &quotient, sizeof inverse);

    for (int t = 0; t < 8; ++t) codes[t] = codes32(x[t], inverse[t]);
    const auto store = [](void* to, auto v) { std::memcpy(to, &v, sizeof v); };
#ifdef HETRUN_TILES
    TilePanel& tile = *reinterpret_cast<TilePanel*>(out);
    for (int t = 0; t < 8; ++t) store(tile.rows[t].codes, codes[t] & (V8i{} + good[t]));
#endif
    transpose8(codes);
    V8i sum[2] = {};
    for (int j = 0; j < 8; ++j) {
        codes[j] &= good;
        sum[j / 4] = add_bytes(sum[j / 4], codes[j]);
    }
    const V8f both = __builtin_convertvector(sum[0] + sum[1], V8f);
    const V8f half_sum32 = rounded_halves8(scale * both);
    scale = rounded_halves8(scale);
    const V8f sum16[2] = {scale * __builtin_convertvector(sum[0], V8f), scale * __builtin_convertvector(sum[1], V8f)};
#ifdef HETRUN_TILES
    store(tile.rows[TilePanel::kScale].of_tokens, scale);
    store(tile.rows[TilePanel::kHalfSum32].of_tokens, half_sum32);
    store(tile.rows[TilePanel::kSum32].of_tokens, scale * both);
    for (int i = 0; i < 2; ++i) store(tile.rows[TilePanel::kSum16 + i].of_tokens, sum16[i]);
#else
    PanelBlock& to = *reinterpret_cast<PanelBlock*>(out);
    for (int j = 0; j < 8; ++j) store(to.codes[j], codes[j]);
    store(to.half_sum32, half_sum32);
    store(to.scale, scale);
    store(to.sum32, scale * both);
    store(to.neg32, -(sum[0] + sum[1]));
    for (int i = 0; i < 2; ++i) {
        store(to.neg16[i], -sum[i]);
        store(to.sum16[i], sum16[i]);
    }
#endif
}

void prepare_panel(const float* const* rows, const float* norm, float eps, size_t n, uint8_t* panel, size_t stride) {
    float factor[8];
    for (int t = 0; norm && t < 8; ++t) factor[t] = rms_factor(rows[t], n, eps);
    for (size_t b = 0; b < n / 32; ++b) {
        Vf x[8][32 / kLanes];
        for (size_t i = 0; i < 32 / kLanes; ++i) {
            const size_t at = 32 * b + kLanes * i;
            for (int t = 0; t < 8; ++t) x[t][i] = load_floats(rows[t] + at);
            if (norm == nullptr) continue;
            const Vf weight = load_floats(norm + at);
            for (int t = 0; t < 8; ++t) x[t][i] = x[t][i] * splat(factor[t]) * weight;
        }
        panel_block(x, panel + b * stride);
    }
}

}  // namespace
}  // namespace hetrun::cpu
