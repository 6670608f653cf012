// 32 packed rows, decoded into panels for the blocked matmul.
#pragma once

namespace hetrun::cpu {
namespace {

// 32 columns of 32 rows, decoded. Planes: bytes of a code.
template <size_t Planes>
struct PanelWeights {
    uint8_t codes[Planes][8][kPanelRows][4];
    float scale[kPanelRows];
    union {
        float minimum[kPanelRows];
        float minimum16[2][kPanelRows];
        float scale16[2][kPanelRows];  // integers
    };
};

#ifdef HETRUN_TILES
// Tiles multiply signed bytes and make sums of whole blocks of 32 alone: scales of 16 columns go into the codes, two bytes where
// one cannot hold the product.
template <class C>
constexpr size_t kPlanes = C::kScales16 && !C::kFold ? 2 : 1;
#else
template <class C>
constexpr size_t kPlanes = 1;
#endif
template <class C>
using Panel = PanelWeights<kPlanes<C>>;

// Where codes of 8 bits take longer, no fold makes them.
template <class C>
constexpr bool kFolds = [] {
    if constexpr (C::kFold) return kWideFolds || C::kPanelBits < 8;
    return false;
}();

template <bool Wanted, class C>
struct FoldOf {
    static constexpr int kShift = C::kShift;
    static constexpr int kBits = C::kBits;
};
template <class C>
struct FoldOf<true, C> {
    static constexpr int kShift = C::kPanelShift;
    static constexpr int kBits = C::kPanelBits;
};

typedef uint16_t Vw __attribute__((vector_size(sizeof(Vi))));
typedef uint8_t Vb __attribute__((vector_size(sizeof(Vi))));

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

// Products of codes and scales: the first plane 128 times the second, each a signed byte.
template <class C>
HETRUN_INLINE void store_planes(Vi codes, Vi scale, Panel<C>& to, int j, size_t row) {
    const Vs factor = reinterpret_cast<Vs>((scale & splat_int(0xffff)) | scale << 16);
    const auto product = [&](Vi two) HETRUN_INLINE_LAMBDA {
        return (reinterpret_cast<Vs>(two & splat_int(0x00ff00ff)) - static_cast<int16_t>(1 << C::kShift)) * factor;
    };
    const Vs even = product(codes), odd = product(codes >> 8);
    const Vs even_high = (even + static_cast<int16_t>(64)) >> 7, odd_high = (odd + static_cast<int16_t>(64)) >> 7;
    const auto store = [&](size_t plane, Vs low_bytes, Vs high_bytes) HETRUN_INLINE_LAMBDA {
        store_ints(to.codes[plane][j] + row, reinterpret_cast<Vi>((low_bytes & static_cast<int16_t>(0xff)) | high_bytes << 8));
    };
    store(0, even_high, odd_high);
    store(1, even - (even_high << 7), odd - (odd_high << 7));
}

template <class C, int S>
HETRUN_INLINE void decode_step(const Lanes& p, const Head& head, Panel<C>& to, size_t row) {
    unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        Vi codes = C::template code<S, J>(p);
        if constexpr (kPlanes<C> == 2) {
            store_planes<C>(codes, C::template scale16<S, J / 4>(p), to, J, row);
        } else {
            if constexpr (kFolds<C>) codes = folded<C>(codes, C::template scale16<S, J / 4>(p));
#ifdef HETRUN_TILES
            constexpr int kShift = FoldOf<kFolds<C>, C>::kShift;
            if constexpr (kShift != 0) codes = reinterpret_cast<Vi>(reinterpret_cast<Vb>(codes) - static_cast<uint8_t>(1 << kShift));
#endif
            store_ints(to.codes[0][J] + row, codes);
        }
    });
    if constexpr (C::kScales16) {
        if constexpr (kFolds<C>) {
            store_floats(to.scale + row, C::kPanelNegative ? -head.d : head.d);
        } else if constexpr (kPlanes<C> == 2) {
            store_floats(to.scale + row, head.d);
        } else {
            store_floats(to.scale + row, head.d);
            store_floats(to.scale16[0] + row, to_floats(C::template scale16<S, 0>(p)));
            store_floats(to.scale16[1] + row, to_floats(C::template scale16<S, 1>(p)));
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
void decode_panel(const uint8_t* block, size_t n_blocks, const uint8_t* row_scales, size_t row, Panel<C>* to) {
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

}  // namespace
}  // namespace hetrun::cpu
