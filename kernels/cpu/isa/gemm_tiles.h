// Blocked matmul of panels in AMX tiles: 8 tokens by 16 rows and 32 columns an instruction, whose integers go through memory
// into vectors, where a lane is a row.
#pragma once

namespace hetrun::cpu {
namespace {

// Few enough that the panel and the tokens' activations share the first-level cache; some more where no other chunk would follow.
constexpr size_t kPanelColumns = 512, kPanelMostColumns = 640;

// Tiles 0 to 3 are sums (of vector v and plane p: 2 p + v), 4 is activations, 5 and 6 are weights.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 32, 64, 64};
    uint8_t rows[16] = {8, 8, 8, 8, 8, 8, 8};
};

// The thread's tiles, for as long as this lives. What threads have in tiles is saved whenever the system takes their core.
class Tiles {
public:
    Tiles() {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

template <int V, int P>
struct alignas(64) TileSums {
    int32_t of[P][kPanelTokens][V * kLanes];
};

// One block of 32 columns: exact integers.
template <int V, int P>
HETRUN_INLINE void multiply_block(const PanelWeights<P>& w, const PanelBlock& a, TileSums<V, P>& to) {
    constexpr int kStride = sizeof w.codes[0][0], kOut = sizeof to.of[0][0];
    _tile_loadd(4, a.codes, 32);
    _tile_loadd(5, w.codes[0], kStride);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 5);
    if constexpr (V == 2) {
        _tile_loadd(6, w.codes[0][0][kLanes], kStride);
        _tile_zero(1);
        _tile_dpbssd(1, 4, 6);
    }
    if constexpr (P == 2) {
        _tile_loadd(5, w.codes[P - 1], kStride);
        _tile_zero(2);
        _tile_dpbssd(2, 4, 5);
        if constexpr (V == 2) {
            _tile_loadd(6, w.codes[P - 1][0][kLanes], kStride);
            _tile_zero(3);
            _tile_dpbssd(3, 4, 6);
        }
    }
    _tile_stored(0, to.of[0], kOut);
    if constexpr (V == 2) _tile_stored(1, to.of[0][0] + kLanes, kOut);
    if constexpr (P == 2) {
        _tile_stored(2, to.of[P - 1], kOut);
        if constexpr (V == 2) _tile_stored(3, to.of[P - 1][0] + kLanes, kOut);
    }
}

// V vectors of rows by a panel of tokens, n_steps blocks of 32, into the first n_tokens rows of out. `first`: it holds nothing yet.
template <class C, int V>
void gemm_tile(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, int n_tokens, float* out) {
    constexpr int T = kPanelTokens, P = kPlanes<C>;
    constexpr size_t kSpan = C::kBlock / 32;
    TileSums<V, P> sums[2];
    alignas(64) float totals[kLateScale<C> ? T : 1][V * kLanes];
    Vf acc[T][V];  // of the super-block where that has one scale, else of all
    const auto each = [&](auto f) HETRUN_INLINE_LAMBDA {
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA { unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA { f(t, v); }); });
    };
    each([&](auto t, auto v) HETRUN_INLINE_LAMBDA {
        const Vf before = first || t >= n_tokens ? Vf{} : load_floats(out + t * kPanelRows + v * kLanes);
        acc[t][v] = kLateScale<C> ? Vf{} : before;
        if constexpr (kLateScale<C>) store_floats(totals[t] + v * kLanes, before);
    });
    multiply_block<V, P>(w[0], a[0], sums[0]);
    for (size_t b = 0; b < n_steps; ++b, ++w, ++a) {
        const TileSums<V, P>& own = sums[b % 2];
        if (b + 1 < n_steps) multiply_block<V, P>(w[1], a[1], sums[(b + 1) % 2]);
        unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
            const Vf scale = load_floats(w->scale + v * kLanes);
            unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                Vi integer = load_ints(own.of[0][t] + v * kLanes);
                if constexpr (P == 2) integer = (integer << 7) + load_ints(own.of[P - 1][t] + v * kLanes);
                const Vf a_scale = splat_at(a->scale + t);
                acc[t][v] = fmadd(to_floats(integer), kLateScale<C> ? a_scale : scale * a_scale, acc[t][v]);
            });
            if constexpr (C::kMin == 32) {
                const Vf minimum = load_floats(w->minimum + v * kLanes);
                const float* of_tokens = C::kHalfSum ? a->half_sum32 : a->sum32;
                unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA { acc[t][v] = fmadd(minimum, splat_at(of_tokens + t), acc[t][v]); });
            }
            if constexpr (C::kMin == 16) {
                unrolled<2>([&](auto half) HETRUN_INLINE_LAMBDA {
                    const Vf minimum = load_floats(w->minimum16[half] + v * kLanes);
                    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                        acc[t][v] = fmadd(minimum, splat_at(a->sum16[half] + t), acc[t][v]);
                    });
                });
            }
        });
        if constexpr (kLateScale<C>) {
            if (b % kSpan != kSpan - 1) continue;
            each([&](auto t, auto v) HETRUN_INLINE_LAMBDA {
                float* total = totals[t] + v * kLanes;
                store_floats(total, fmadd(acc[t][v], load_floats(w->scale + v * kLanes), load_floats(total)));
                acc[t][v] = Vf{};
            });
        }
    }
    each([&](auto t, auto v) HETRUN_INLINE_LAMBDA {
        if (t >= n_tokens) return;
        const Vf total = kLateScale<C> ? load_floats(totals[kLateScale<C> ? t : 0] + v * kLanes) : acc[t][v];
        store_floats(out + t * kPanelRows + v * kLanes, total);
    });
}

// The tokens of the panel at `a`, n_tokens or all 8 of them.
template <class C>
HETRUN_INLINE void gemm_tokens(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors,
                               size_t n_tokens, float* out) {
    const int own = n_tokens < kPanelTokens ? static_cast<int>(n_tokens) : static_cast<int>(kPanelTokens);
    if (n_vectors == 2) return gemm_tile<C, 2>(w, a, n_steps, first, own, out);
    gemm_tile<C, 1>(w, a, n_steps, first, own, out);
}

}  // namespace
}  // namespace hetrun::cpu
