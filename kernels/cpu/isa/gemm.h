// 32 packed rows with all tokens: weights are decoded into panels once for all of them.
#pragma once

namespace hetrun::cpu {
namespace {

// 32 columns of 32 rows, decoded.
struct PanelWeights {
    uint8_t codes[8][kPanelRows][4];
    float scale[kPanelRows];
    union {
        float minimum[kPanelRows];
        float minimum16[2][kPanelRows];
        int32_t scale16[2][kPanelRows];
    };
};
static_assert(sizeof(PanelWeights) * (kGemmColumns / 32) <= kGemmScratchBytes, "a chunk fits its scratch");

typedef int16_t Vs __attribute__((vector_size(sizeof(Vi))));

template <bool Wanted, class C>
struct FoldOf {
    static constexpr int kShift = C::kShift;
    static constexpr bool kWide = C::kWide;
};
template <class C>
struct FoldOf<true, C> {
    static constexpr int kShift = C::kPanelShift;
    static constexpr bool kWide = C::kPanelWide;
};

// codes times the scale of their row and 16 columns, with the offset of the panel's codes.
template <class C>
HETRUN_INLINE Vi folded(Vi codes, Vi scale) {
    const Vs factor = reinterpret_cast<Vs>((scale & splat_int(0xffff)) | scale << 16);
    const Vs bytes = reinterpret_cast<Vs>(codes);
    const Vs offset = factor * static_cast<int16_t>(C::kShift ? 1 << C::kShift : 0);
    const Vs even = (bytes & static_cast<int16_t>(0xff)) * factor - offset;
    const Vs odd = (bytes >> 8 & static_cast<int16_t>(0xff)) * factor - offset;
    const Vs bias = Vs{} + static_cast<int16_t>(C::kPanelShift ? 1 << C::kPanelShift : 0);
    const Vs e = C::kPanelNegative ? bias - even : bias + even, o = C::kPanelNegative ? bias - odd : bias + odd;
    return reinterpret_cast<Vi>((e & static_cast<int16_t>(0xff)) | o << 8);
}

template <class C, int S>
HETRUN_INLINE void decode_step(const Lanes& p, const Head& head, PanelWeights& to, size_t row) {
    unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        Vi codes = C::template code<S, J>(p);
        if constexpr (C::kFold) codes = folded<C>(codes, C::template scale16<S, J / 4>(p));
        store_ints(to.codes[J] + row, codes);
    });
    if constexpr (C::kScales16) {
        if constexpr (C::kFold) {
            store_floats(to.scale + row, C::kPanelNegative ? -head.d : head.d);
        } else {
            store_floats(to.scale + row, head.d);
            store_ints(to.scale16[0] + row, C::template scale16<S, 0>(p));
            store_ints(to.scale16[1] + row, C::template scale16<S, 1>(p));
        }
    } else {
        store_floats(to.scale + row, C::template scale<S>(p, head));
    }
    if constexpr (C::kMin == 32) store_floats(to.minimum + row, C::template minimum<S>(p, head));
    if constexpr (C::kMin == 16) {
        store_floats(to.minimum16[0] + row, C::template minimum16<S, 0>(p, head));
        store_floats(to.minimum16[1] + row, C::template minimum16<S, 1>(p, head));
    }
}

template <class C>
void decode_panel(const uint8_t* block, size_t n_blocks, size_t row, PanelWeights* to) {
    constexpr size_t kSteps = C::kBlock / 32;
    for (size_t lane = 0; lane < 16; lane += kLanes) {
        Lanes p = {block, lane};
        for (size_t b = 0; b < n_blocks; ++b, p.block += C::kBytes) {
            const Head head = C::head(p);
            unrolled<kSteps>([&](auto s) HETRUN_INLINE_LAMBDA {
                decode_step<C, decltype(s)::value>(p, head, to[kSteps * b + decltype(s)::value], row + lane);
            });
        }
    }
}

// V vectors of rows by T tokens, n_steps blocks of 32. `first`: out holds nothing yet.
template <class C, int V, int T>
void gemm_tile(const PanelWeights* w, const PanelBlock* a, size_t n_steps, bool first, float* out) {
    using Fold = FoldOf<C::kFold, C>;
    constexpr bool kHalves = C::kScales16 && !C::kFold;
    if (first) {
        for (int t = 0; t < T; ++t)
            for (int v = 0; v < V; ++v) store_floats(out + t * kPanelRows + v * kLanes, Vf{});
    }
    for (size_t b = 0; b < n_steps; ++b, ++w, ++a) {
        // Sums stay in memory: in registers they would push out the integers, which are touched far more often.
        asm volatile("" ::: "memory");
        Vi c[V][T], sum[V][T];
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            constexpr int I = decltype(t)::value;
            const Vi start = dot_start<Fold::kWide, Fold::kShift>(kHalves ? a->neg16[0] + I : a->neg32 + I);
            unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA { c[decltype(v)::value][I] = start; });
        });
        unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
            constexpr int J = decltype(j)::value;
            if constexpr (kHalves && J == 4) {
                unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                    constexpr int I = decltype(t)::value;
                    const Vi start = dot_start<Fold::kWide, Fold::kShift>(a->neg16[1] + I);
                    unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                        constexpr int K = decltype(v)::value;
                        sum[K][I] = c[K][I] * load_ints(w->scale16[0] + K * kLanes);
                        c[K][I] = start;
                    });
                });
            }
            Vi codes[V];
            unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                codes[decltype(v)::value] = load_ints(w->codes[J] + decltype(v)::value * kLanes);
            });
            unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                constexpr int I = decltype(t)::value;
                const Vi activations = splat_word(a->codes[J][I]);
                unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
                    constexpr int K = decltype(v)::value;
                    c[K][I] = dot<Fold::kWide>(c[K][I], codes[K], activations);
                });
            });
        });
        unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
            constexpr int K = decltype(v)::value;
            const Vf scale = load_floats(w->scale + K * kLanes);
            unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                constexpr int I = decltype(t)::value;
                float* own = out + I * kPanelRows + K * kLanes;
                Vi integer = c[K][I];
                if constexpr (kHalves) integer = sum[K][I] + integer * load_ints(w->scale16[1] + K * kLanes);
                Vf acc = fmadd(to_floats(integer), scale * splat_at(a->scale + I), load_floats(own));
                if constexpr (C::kMin == 32)
                    acc = fmadd(load_floats(w->minimum + K * kLanes), splat_at((C::kHalfSum ? a->half_sum32 : a->sum32) + I), acc);
                if constexpr (C::kMin == 16) {
                    acc = fmadd(load_floats(w->minimum16[0] + K * kLanes), splat_at(a->sum16[0] + I), acc);
                    acc = fmadd(load_floats(w->minimum16[1] + K * kLanes), splat_at(a->sum16[1] + I), acc);
                }
                store_floats(own, acc);
            });
        });
    }
}

// Activations of `count` tokens from the one at `a`; n_vectors: of rows.
template <class C, int T>
HETRUN_INLINE void gemm_tokens(const PanelWeights* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors,
                               float* out) {
    // The 16-column scales need the registers of a second tile.
    constexpr size_t kVectors = C::kScales16 && !C::kFold ? 1 : kTileVectors;
    const auto shifted = [&](size_t v) {
        return reinterpret_cast<const PanelWeights*>(reinterpret_cast<const uint8_t*>(w) + v * sizeof(Vi));
    };
    size_t v = 0;
    for (; v + kVectors <= n_vectors; v += kVectors) gemm_tile<C, kVectors, T>(shifted(v), a, n_steps, first, out + v * kLanes);
    for (; v < n_vectors; ++v) gemm_tile<C, 1, T>(shifted(v), a, n_steps, first, out + v * kLanes);
}

template <class C>
void gemm(const GemmArgs& g) {
    PanelWeights* panel = reinterpret_cast<PanelWeights*>(g.scratch);
    const size_t n_vectors = 16 / kLanes * g.n_groups, n = g.layout->n;
    for (size_t column = 0; column < n; column += kGemmColumns) {
        const size_t columns = n - column < kGemmColumns ? n - column : kGemmColumns;
        for (size_t i = 0; i < g.n_groups; ++i)
            decode_panel<C>(g.groups + i * g.group_bytes + column / C::kBlock * C::kBytes, columns / C::kBlock, 16 * i, panel);
        for (size_t t = 0; t < g.n_tokens; t += kTilePanelTokens) {
            const uint8_t* own = g.panels + t / kPanelTokens * g.layout->panel;
            // A later tile of a panel starts at its tokens' place in each of the arrays.
            const PanelBlock* a = reinterpret_cast<const PanelBlock*>(own + t % kPanelTokens * 4) + column / 32;
            const size_t left = g.n_tokens - t;
            float* out = g.out + t * kPanelRows;
            const bool first = column == 0;
            unrolled<kTilePanelTokens>([&](auto i) HETRUN_INLINE_LAMBDA {
                constexpr int T = decltype(i)::value + 1;
                if (left == T || (T == kTilePanelTokens && left > T)) gemm_tokens<C, T>(panel, a, columns / 32, first, n_vectors, out);
            });
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
