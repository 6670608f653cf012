// Blocked matmul of panels in vectors: a lane is a row.
#pragma once

namespace hetrun::cpu {
namespace {

constexpr size_t kPanelColumns = kGemmColumns, kPanelMostColumns = kGemmColumns;
constexpr size_t kPanelsTogether = 1;

// What a blocked matmul needs as long as it runs: nothing.
struct Tiles {
    Tiles() {}
};

// Sums of super-blocks stay in registers where these have room for a few tokens.
template <class C>
constexpr bool kKeepsSums = kLateScale<C> && kKeptTokens > 0;
template <class C>
constexpr int kTokensAtOnce = kKeepsSums<C> ? kKeptTokens : kTilePanelTokens;

// The float sums of a tile [T, stride], in memory: in registers they would push out the integers, which are touched far more often.
template <int V, int T, bool Kept>
struct TileSums {
    float* own;
    size_t stride;
    HETRUN_INLINE Vf load(int v, int t) const { return load_floats(own + static_cast<size_t>(t) * stride + static_cast<size_t>(v) * kLanes); }
    HETRUN_INLINE void store(int v, int t, Vf sum) { store_floats(own + static_cast<size_t>(t) * stride + static_cast<size_t>(v) * kLanes, sum); }
    HETRUN_INLINE void hold() const { asm volatile("" ::"r"(own) : "memory"); }
};
template <int V, int T>
struct TileSums<V, T, true> {
    Vf sums[V][T];
    HETRUN_INLINE Vf load(int v, int t) const { return sums[v][t]; }
    HETRUN_INLINE void store(int v, int t, Vf sum) { sums[v][t] = sum; }
    HETRUN_INLINE void hold() const {}
};

// V vectors of rows by T tokens, n_steps blocks of 32. `first`: out holds nothing yet.
template <class C, int V, int T>
void gemm_tile(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, float* out) {
    using Fold = FoldOf<kFolds<C>, C>;
    constexpr bool kHalves = C::kScales16 && !kFolds<C>;
    const auto each = [](auto f) HETRUN_INLINE_LAMBDA {
        unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA { unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA { f(v, t); }); });
    };
    TileSums<V, T, false> all = {out, kPanelRows};
    if (first) each([&](auto v, auto t) HETRUN_INLINE_LAMBDA { all.store(v, t, Vf{}); });
    // Of the super-block, where that has one scale.
    constexpr size_t kSpan = C::kBlock / 32, kWidth = V * kLanes;
    alignas(64) float parts[kLateScale<C> && !kKeepsSums<C> ? T * kWidth : 1];
    TileSums<V, T, kKeepsSums<C>> sums;
    if constexpr (!kKeepsSums<C>) sums = {kLateScale<C> ? parts : out, kLateScale<C> ? kWidth : kPanelRows};
    for (size_t b = 0; b < n_steps; ++b, ++w, ++a) {
        if constexpr (kLateScale<C>) {
            if (b % kSpan == 0) each([&](auto v, auto t) HETRUN_INLINE_LAMBDA { sums.store(v, t, Vf{}); });
        }
        sums.hold();
        Dots<Fold::kBits, kHalves ? 4 : 8> c[V][T];
        Vf half[V][T];
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            constexpr int I = decltype(t)::value;
            const Vi start = dot_start<Fold::kBits, Fold::kShift>(kHalves ? a->neg16[0] + I : a->neg32 + I);
            unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA { c[decltype(v)::value][I].begin(start); });
        });
        unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
            constexpr int J = decltype(j)::value;
            if constexpr (kHalves && J == 4) {
                // Products with scales are exact in floats, their sum too: below 2^24.
                unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                    constexpr int I = decltype(t)::value;
                    const Vi start = dot_start<Fold::kBits, Fold::kShift>(a->neg16[1] + I);
                    unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                        constexpr int K = decltype(v)::value;
                        half[K][I] = to_floats(c[K][I].total()) * load_floats(w->scale16[0] + K * kLanes);
                        c[K][I].begin(start);
                    });
                });
            }
            Vi codes[V];
            unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                codes[decltype(v)::value] = load_ints(w->codes[0][J] + decltype(v)::value * kLanes);
            });
            unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                constexpr int I = decltype(t)::value;
                const Vi activations = splat_word(a->codes[J][I]);
                unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                    constexpr int K = decltype(v)::value;
                    c[K][I].add(codes[K], activations);
                });
            });
        });
        unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
            constexpr int K = decltype(v)::value;
            const Vf scale = load_floats(w->scale + K * kLanes);
            unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                constexpr int I = decltype(t)::value;
                Vf dot = to_floats(c[K][I].total());
                if constexpr (kHalves) dot = fmadd(dot, load_floats(w->scale16[1] + K * kLanes), half[K][I]);
                const Vf a_scale = splat_at(a->scale + I);
                Vf acc = fmadd(dot, kLateScale<C> ? a_scale : scale * a_scale, sums.load(K, I));
                if constexpr (C::kMin == 32)
                    acc = fmadd(load_floats(w->minimum + K * kLanes), splat_at((C::kHalfSum ? a->half_sum32 : a->sum32) + I), acc);
                if constexpr (C::kMin == 16) {
                    acc = fmadd(load_floats(w->minimum16[0] + K * kLanes), splat_at(a->sum16[0] + I), acc);
                    acc = fmadd(load_floats(w->minimum16[1] + K * kLanes), splat_at(a->sum16[1] + I), acc);
                }
                sums.store(K, I, acc);
            });
        });
        if constexpr (kLateScale<C>) {
            if (b % kSpan != kSpan - 1) continue;
            each([&](auto v, auto t) HETRUN_INLINE_LAMBDA {
                all.store(v, t, fmadd(sums.load(v, t), load_floats(w->scale + v * kLanes), all.load(v, t)));
            });
        }
    }
}

// T tokens; n_vectors: of rows.
template <class C, int T>
HETRUN_INLINE void gemm_rows(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors, float* out) {
    // Sums of halves want the registers of a second tile.
    constexpr size_t kVectors = C::kScales16 && !kFolds<C> && !kKeepsSums<C> ? 1 : kTileVectors;
    const auto shifted = [&](size_t v) {
        return reinterpret_cast<const Panel<C>*>(reinterpret_cast<const uint8_t*>(w) + v * sizeof(Vi));
    };
    size_t v = 0;
    for (; v + kVectors <= n_vectors; v += kVectors) gemm_tile<C, kVectors, T>(shifted(v), a, n_steps, first, out + v * kLanes);
    for (; v < n_vectors; ++v) gemm_tile<C, 1, T>(shifted(v), a, n_steps, first, out + v * kLanes);
}

// The tokens at `a`, n_tokens or kTokensAtOnce of them.
template <class C>
HETRUN_INLINE void gemm_tokens(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors,
                               size_t n_tokens, float* out) {
    unrolled<kTokensAtOnce<C>>([&](auto i) HETRUN_INLINE_LAMBDA {
        constexpr int T = decltype(i)::value + 1;
        if (n_tokens == T || (T == kTokensAtOnce<C> && n_tokens > T)) gemm_rows<C, T>(w, a, n_steps, first, n_vectors, out);
    });
}

}  // namespace
}  // namespace hetrun::cpu
