// Blocked matmul of panels in AMX tiles: 16 tokens by 16 rows and 32 columns an instruction, whose integers go through memory
// into vectors, where a lane is a row.
//
// Near tile instructions a core has one port for products of 64-byte vectors instead of two (Granite Rapids, measured), so
// integers become floats by additions, which have another one. A tile that is stored right behind its product holds up all
// that follows: products are two blocks ahead of the floats, stores one.
#pragma once

namespace hetrun::cpu {
namespace {

// Few enough that the panel and the tokens' activations share the first-level cache; some more where no other chunk would follow.
constexpr size_t kPanelColumns = 512, kPanelMostColumns = 640;

constexpr size_t kPanelsTogether = 2;
constexpr int kTilePanelTokens = kPanelsTogether * kPanelTokens;
template <class>
constexpr int kTokensAtOnce = kTilePanelTokens;

// Tiles 0 to 3 are sums, of plane p of even and odd blocks in 2 p and 2 p + 1; 4 is activations, 5 weights.
struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
constexpr TileShapes kTileShapes = {1, 0, {}, {64, 64, 64, 64, 32, 64}, {16, 16, 16, 16, 16, 8}};

// The thread's tiles, for as long as this lives: what is in them is saved whenever the system takes the core.
class Tiles {
public:
    Tiles() { _tile_loadconfig(&kTileShapes); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// Integers up to 2^22 in size, added to these bits, are those of a float of 1.5 * 2^23 and as much more.
constexpr int32_t kFloatBits = 0x4b400000;
constexpr float kFloatBase = 12582912.0f;

// 16 rows from `w` on with 16 tokens from `a` on, n_steps blocks of 32, into the first n_tokens rows of out. `first`: it holds
// nothing yet.
template <class C>
void gemm_tile(const Panel<C>* w, const TilePanel* a, size_t n_steps, bool first, int n_tokens, float* out) {
    constexpr int T = kTilePanelTokens, P = kPlanes<C>;
    constexpr size_t kSpan = C::kBlock / 32, kStride = sizeof w->codes[0][0];
    alignas(64) int32_t sums[2][P][T][kLanes];
    alignas(64) float totals[kLateScale<C> ? T : 1][kLanes];
    Vf acc[T];  // of the super-block where that has one scale, else of all
    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
        const Vf before = first || t >= n_tokens ? Vf{} : load_floats(out + t * kPanelRows);
        acc[t] = kLateScale<C> ? Vf{} : before;
        if constexpr (kLateScale<C>) store_floats(totals[t], before);
    });
    const auto multiply = [&](auto odd, size_t b) HETRUN_INLINE_LAMBDA {
        _tile_loadd(4, a[kPanelsTogether * b].rows[0].codes, sizeof a->rows[0]);
        _tile_loadd(5, w[b].codes[0], kStride);
        if constexpr (odd) {
            _tile_zero(1);
            _tile_dpbssd(1, 4, 5);
        } else {
            _tile_zero(0);
            _tile_dpbssd(0, 4, 5);
        }
        if constexpr (P == 2) {
            _tile_loadd(5, w[b].codes[P - 1], kStride);
            if constexpr (odd) {
                _tile_zero(3);
                _tile_dpbssd(3, 4, 5);
            } else {
                _tile_zero(2);
                _tile_dpbssd(2, 4, 5);
            }
        }
    };
    const auto store = [&](auto odd) HETRUN_INLINE_LAMBDA {
        constexpr size_t kRow = sizeof sums[0][0][0];
        if constexpr (odd) {
            _tile_stored(1, sums[1][0], kRow);
            if constexpr (P == 2) _tile_stored(3, sums[1][P - 1], kRow);
        } else {
            _tile_stored(0, sums[0][0], kRow);
            if constexpr (P == 2) _tile_stored(2, sums[0][P - 1], kRow);
        }
    };
    const auto add = [&](auto odd, size_t b) HETRUN_INLINE_LAMBDA {
        const Vf scale = load_floats(w[b].scale);
        const auto of_token = [&](int number, int t) HETRUN_INLINE_LAMBDA {
            return splat_at(&a[kPanelsTogether * b + static_cast<size_t>(t) / kPanelTokens].rows[number].of_tokens[t % kPanelTokens]);
        };
        const auto floats = [&](const int32_t* from) HETRUN_INLINE_LAMBDA {
            return as_floats(splat_int(kFloatBits) + load_ints(from)) - splat(kFloatBase);
        };
        unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
            Vf dot = floats(sums[odd][0][t]);
            if constexpr (P == 2) dot = fmadd(dot, splat(128.0f), floats(sums[odd][P - 1][t]));
            const Vf a_scale = of_token(TilePanel::kScale, t);
            acc[t] = fmadd(dot, kLateScale<C> ? a_scale : scale * a_scale, acc[t]);
        });
        if constexpr (C::kMin == 32) {
            const Vf minimum = load_floats(w[b].minimum);
            unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                acc[t] = fmadd(minimum, of_token(C::kHalfSum ? TilePanel::kHalfSum32 : TilePanel::kSum32, t), acc[t]);
            });
        }
        if constexpr (C::kMin == 16) {
            unrolled<2>([&](auto half) HETRUN_INLINE_LAMBDA {
                const Vf minimum = load_floats(w[b].minimum16[half]);
                unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA { acc[t] = fmadd(minimum, of_token(TilePanel::kSum16 + half, t), acc[t]); });
            });
        }
        if constexpr (kLateScale<C> && odd) {
            if (b % kSpan == kSpan - 1) {
                unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
                    store_floats(totals[t], fmadd(acc[t], scale, load_floats(totals[t])));
                    acc[t] = Vf{};
                });
            }
        }
    };
    constexpr std::integral_constant<int, 0> kEven;
    constexpr std::integral_constant<int, 1> kOdd;
    multiply(kEven, 0);
    if (n_steps > 1) multiply(kOdd, 1);
    store(kEven);
    for (size_t b = 0; b < n_steps; b += 2) {
        if (b + 2 < n_steps) multiply(kEven, b + 2);
        if (b + 1 < n_steps) store(kOdd);
        add(kEven, b);
        if (b + 1 == n_steps) break;
        if (b + 3 < n_steps) multiply(kOdd, b + 3);
        if (b + 2 < n_steps) store(kEven);
        add(kOdd, b + 1);
    }
    unrolled<T>([&](auto t) HETRUN_INLINE_LAMBDA {
        if (t >= n_tokens) return;
        store_floats(out + t * kPanelRows, kLateScale<C> ? load_floats(totals[kLateScale<C> ? t : 0]) : acc[t]);
    });
}

// The tokens from `a` on, n_tokens or 16 of them.
template <class C>
HETRUN_INLINE void gemm_tokens(const Panel<C>* w, const PanelBlock* a, size_t n_steps, bool first, size_t n_vectors,
                               size_t n_tokens, float* out) {
    static_assert(kLanes == 16, "rows of a tile");
    const int own = n_tokens < kTilePanelTokens ? static_cast<int>(n_tokens) : kTilePanelTokens;
    for (size_t v = 0; v < n_vectors; ++v) {
        const auto* rows = reinterpret_cast<const Panel<C>*>(reinterpret_cast<const uint8_t*>(w) + v * sizeof(Vi));
        gemm_tile<C>(rows, reinterpret_cast<const TilePanel*>(a), n_steps, first, own, out + v * kLanes);
    }
}

}  // namespace
}  // namespace hetrun::cpu
