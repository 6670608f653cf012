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

typedef uint16_t Vw __attribute__((vector_size(sizeof(Vi))));

// Codes times the scale of their row and 16 columns, with the offset of the panel's codes. Results fit a byte, so that two
// codes side by side take one multiplication: 256 a + b times a scale is 256 times the one product plus the other.
template <class C>
HETRUN_INLINE Vi folded(Vi codes, Vi scale) {
    constexpr uint16_t kBoth = 257, kOffset = C::kShift ? 1 << C::kShift : 0, kBias = C::kPanelShift ? 1 << C::kPanelShift : 0;
    const Vw factor = reinterpret_cast<Vw>((scale & splat_int(0xffff)) | scale << 16);
    const Vw products = reinterpret_cast<Vw>(codes) * factor - factor * static_cast<uint16_t>(kBoth * kOffset);
    const Vw bias = Vw{} + static_cast<uint16_t>(kBoth * kBias);
    return reinterpret_cast<Vi>(C::kPanelNegative ? bias - products : bias + products);
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
void decode_panel(const uint8_t* block, size_t n_blocks, const uint8_t* row_scales, size_t row, PanelWeights* to) {
    constexpr size_t kSteps = C::kBlock / 32;
    for (size_t lane = 0; lane < 16; lane += kLanes) {
        Lanes p = {block, lane, row_scales};
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
                codes[decltype(v)::value] = load_ints(w->codes[J] + decltype(v)::value * kLanes);
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

// A share of the packed weights that come next, on their way from memory while tokens pass.
template <class C>
HETRUN_INLINE void fetch_share(const uint8_t* groups, const GemmArgs& g, size_t columns, size_t tile, size_t n_tiles) {
    const size_t nbytes = columns / C::kBlock * C::kBytes, begin = nbytes * tile / n_tiles, end = nbytes * (tile + 1) / n_tiles;
    for (size_t i = 0; i < g.n_groups; ++i)
        for (size_t at = begin; at < end; at += 64) __builtin_prefetch(groups + i * g.group_bytes + at, 0, 2);
}

template <class C>
void gemm(const GemmArgs& g) {
    PanelWeights* panel = reinterpret_cast<PanelWeights*>(g.scratch);
    const size_t n_vectors = 16 / kLanes * g.n_groups, n = g.layout->n;
    const size_t n_tiles = (g.n_tokens + kTilePanelTokens - 1) / kTilePanelTokens;
    const auto chunk = [n](size_t column) { return n - column < kGemmColumns ? n - column : kGemmColumns; };
    for (size_t column = 0; column < n; column += kGemmColumns) {
        const size_t columns = chunk(column), next = column + columns < n ? column + columns : 0;
        for (size_t i = 0; i < g.n_groups; ++i) {
            const uint8_t* group = g.groups + i * g.group_bytes;
            decode_panel<C>(group + column / C::kBlock * C::kBytes, columns / C::kBlock, group + n / C::kBlock * C::kBytes,
                            16 * i, panel);
        }
        // The next columns, or the first ones of the rows that follow.
        const uint8_t* groups = g.groups + (next == 0 ? g.n_groups * g.group_bytes : next / C::kBlock * C::kBytes);
        for (size_t tile = 0; tile < n_tiles; ++tile) {
            const size_t t = tile * kTilePanelTokens;
            const uint8_t* own = g.panels + t / kPanelTokens * g.layout->panel;
            // A later tile of a panel starts at its tokens' place in each of the arrays.
            const PanelBlock* a = reinterpret_cast<const PanelBlock*>(own + t % kPanelTokens * 4) + column / 32;
            const size_t left = g.n_tokens - t;
            float* out = g.out + t * kPanelRows;
            const bool first = column == 0;
            fetch_share<C>(groups, g, chunk(next), tile, n_tiles);
            unrolled<kTilePanelTokens>([&](auto i) HETRUN_INLINE_LAMBDA {
                constexpr int T = decltype(i)::value + 1;
                if (left == T || (T == kTilePanelTokens && left > T)) gemm_tokens<C, T>(panel, a, columns / 32, first, n_vectors, out);
            });
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
