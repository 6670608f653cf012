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

// V vectors of rows by T tokens, n_steps blocks of 32. `first`: out holds nothing yet.
template <class C, int V, int T>
void gemm_tile(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, float* out) {
    using Fold = FoldOf<C::kFold, C>;
    constexpr bool kHalves = C::kScales16 && !C::kFold;
    if (first) {
        for (int t = 0; t < T; ++t)
            for (int v = 0; v < V; ++v) store_floats(out + t * kPanelRows + v * kLanes, Vf{});
    }
    constexpr size_t kSpan = C::kBlock / 32, kWidth = V * kLanes;
    alignas(64) float parts[kLateScale<C> ? T * kWidth : 1];
    for (size_t b = 0; b < n_steps; ++b, ++w, ++a) {
        if constexpr (kLateScale<C>) {
            if (b % kSpan == 0) {
                for (size_t i = 0; i < T * kWidth; i += kLanes) store_floats(parts + i, Vf{});
            }
        }
        // Sums stay in memory: in registers they would push out the integers, which are touched far more often.
        asm volatile("" ::"r"(parts) : "memory");
        Dots<Fold::kWide, C::kFold> c[V][T];
        Vi sum[V][T];
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            constexpr int I = decltype(t)::value;
            const Vi start = dot_start<Fold::kWide, Fold::kShift>(kHalves ? a->neg16[0] + I : a->neg32 + I);
            unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA { c[decltype(v)::value][I].begin(start); });
        });
        unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
            constexpr int J = decltype(j)::value;
            if constexpr (kHalves && J == 4) {
                unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                    constexpr int I = decltype(t)::value;
                    const Vi start = dot_start<Fold::kWide, Fold::kShift>(a->neg16[1] + I);
                    unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                        constexpr int K = decltype(v)::value;
                        sum[K][I] = c[K][I].total() * load_ints(w->scale16[0] + K * kLanes);
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
                float* own = kLateScale<C> ? parts + I * kWidth + K * kLanes : out + I * kPanelRows + K * kLanes;
                Vi integer = c[K][I].total();
                if constexpr (kHalves) integer = sum[K][I] + integer * load_ints(w->scale16[1] + K * kLanes);
                const Vf a_scale = splat_at(a->scale + I);
                Vf acc = fmadd(to_floats(integer), kLateScale<C> ? a_scale : scale * a_scale, load_floats(own));
                if constexpr (C::kMin == 32)
                    acc = fmadd(load_floats(w->minimum + K * kLanes), splat_at((C::kHalfSum ? a->half_sum32 : a->sum32) + I), acc);
                if constexpr (C::kMin == 16) {
                    acc = fmadd(load_floats(w->minimum16[0] + K * kLanes), splat_at(a->sum16[0] + I), acc);
                    acc = fmadd(load_floats(w->minimum16[1] + K * kLanes), splat_at(a->sum16[1] + I), acc);
                }
                store_floats(own, acc);
            });
        });
        if constexpr (kLateScale<C>) {
            if (b % kSpan != kSpan - 1) continue;
            for (int t = 0; t < T; ++t) {
                for (int v = 0; v < V; ++v) {
                    float* own = out + t * static_cast<int>(kPanelRows) + v * static_cast<int>(kLanes);
                    const Vf part = load_floats(parts + t * static_cast<int>(kWidth) + v * static_cast<int>(kLanes));
                    store_floats(own, fmadd(part, load_floats(w->scale + v * static_cast<int>(kLanes)), load_floats(own)));
                }
            }
        }
    }
}

// T tokens; n_vectors: of rows.
template <class C, int T>
HETRUN_INLINE void gemm_rows(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors, float* out) {
    // The 16-column scales need the registers of a second tile.
    constexpr size_t kVectors = C::kScales16 && !C::kFold ? 1 : kTileVectors;
    const auto shifted = [&](size_t v) {
        return reinterpret_cast<const Panel<C>*>(reinterpret_cast<const uint8_t*>(w) + v * sizeof(Vi));
    };
    size_t v = 0;
    for (; v + kVectors <= n_vectors; v += kVectors) gemm_tile<C, kVectors, T>(shifted(v), a, n_steps, first, out + v * kLanes);
    for (; v < n_vectors; ++v) gemm_tile<C, 1, T>(shifted(v), a, n_steps, first, out + v * kLanes);
}

// The tokens at `a`, n_tokens or kTilePanelTokens of them.
template <class C>
HETRUN_INLINE void gemm_tokens(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors,
                               size_t n_tokens, float* out) {
    unrolled<kTilePanelTokens>([&](auto i) HETRUN_INLINE_LAMBDA {
        constexpr int T = decltype(i)::value + 1;
        if (n_tokens == T || (T == kTilePanelTokens && n_tokens > T)) gemm_rows<C, T>(w, a, n_steps, first, n_vectors, out);
    });
}

}  // namespace
}  // namespace hetrun::cpu
