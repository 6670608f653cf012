// Matmul of packed weights (pack.h): one token with whole rows (GEMV), and 32 rows with all tokens by way of panels (GEMM).
//
// A lane is a row. Both take a row's blocks of 32 in order, with the same products and roundings, so that they give the same
// bits: acc = fma(integer dot, weight scale * activation scale, acc), then acc = fma(minimum, activation sum, acc).
// Codes are unsigned; an offset of 2^shift that GGUF subtracts is taken back from the integers by the activations' sums.
#pragma once

#include <type_traits>
#include <utility>

namespace hetrun::cpu {
namespace {

#define HETRUN_INLINE inline __attribute__((always_inline))
#define HETRUN_INLINE_LAMBDA __attribute__((always_inline))

HETRUN_INLINE Vi load_ints(const void* p) {
    Vi v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
HETRUN_INLINE void store_ints(void* p, Vi v) { std::memcpy(p, &v, sizeof v); }
HETRUN_INLINE Vf to_floats(Vi v) { return __builtin_convertvector(v, Vf); }
HETRUN_INLINE Vi splat_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return splat_int(word);
}
HETRUN_INLINE Vf splat_at(const float* p) { return splat(*p); }

constexpr int32_t kNibbles = 0x0f0f0f0f, kTwoBits = 0x03030303, kOneBit = 0x01010101;

// f(0), f(1), ... f(N - 1), each with its number as a type: loops that must be unrolled.
template <class F, size_t... I>
HETRUN_INLINE void unrolled_over(F&& f, std::index_sequence<I...>) {
    (f(std::integral_constant<int, static_cast<int>(I)>{}), ...);
}
template <size_t N, class F>
HETRUN_INLINE void unrolled(F&& f) {
    unrolled_over(f, std::make_index_sequence<N>{});
}

// A packed block as the lanes of one vector see it.
struct Lanes {
    const uint8_t* block;
    size_t lane;  // the first
    HETRUN_INLINE Vi word(size_t offset) const { return load_ints(block + offset + 4 * lane); }
    HETRUN_INLINE Vf half(size_t offset) const { return load_half(block + offset + 2 * lane); }
    HETRUN_INLINE Vi u8(size_t offset) const { return load_u8(block + offset + lane); }
    HETRUN_INLINE Vi i8(size_t offset) const { return load_i8(block + offset + lane); }
};

struct Head {
    Vf d, m;
};

// kShift: log2 of the offset of the codes, 0 for none.   kMin: minima meet sums of 32 or 16 activations.   kHalfSum: of Q8_1.
// kScales16: integer scales of 16 codes.   kFold: they are multiplied into the panel's codes.   kWide: codes of 8 bits.
struct Traits {
    static constexpr size_t kBlock = 32;
    static constexpr int kShift = 0, kMin = 0;
    static constexpr bool kHalfSum = false, kScales16 = false, kFold = false, kWide = false;
};
struct SuperTraits : Traits {
    static constexpr size_t kBlock = 256;
};

template <size_t Words>
struct Nibbles32 : Traits {  // codes at Words, the first half of the 32 in the low nibbles
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(Words + 64 * (J % 4));
        return J < 4 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
    }
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S>
    static HETRUN_INLINE Vf scale(const Lanes&, const Head& h) {
        return h.d;
    }
};

struct PackedQ4_0 : Nibbles32<32> {
    static constexpr size_t kBytes = 288;
    static constexpr int kShift = 3;
};

struct PackedQ4_1 : Nibbles32<64> {
    static constexpr size_t kBytes = 320;
    static constexpr int kMin = 32;
    static constexpr bool kHalfSum = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), p.half(32)}; }
    template <int S>
    static HETRUN_INLINE Vf minimum(const Lanes&, const Head& h) {
        return h.m;
    }
};

template <size_t High>
struct FiveBits32 : Nibbles32<High + 64> {
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return Nibbles32<High + 64>::template code<S, J>(p) | (p.word(High) >> J & splat_int(kOneBit)) << 4;
    }
};

struct PackedQ5_0 : FiveBits32<32> {
    static constexpr size_t kBytes = 352;
    static constexpr int kShift = 4;
};

struct PackedQ5_1 : FiveBits32<64> {
    static constexpr size_t kBytes = 384;
    static constexpr int kMin = 32;
    static constexpr bool kHalfSum = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), p.half(32)}; }
    template <int S>
    static HETRUN_INLINE Vf minimum(const Lanes&, const Head& h) {
        return h.m;
    }
};

struct PackedQ8_0 : Traits {
    static constexpr size_t kBytes = 544;
    static constexpr int kShift = 7;
    static constexpr bool kWide = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return p.word(32 + 64 * J);
    }
    template <int S>
    static HETRUN_INLINE Vf scale(const Lanes&, const Head& h) {
        return h.d;
    }
};

struct SixBitScales : SuperTraits {  // 8 scales and 8 minima of 6 bits at 64
    static constexpr int kMin = 32;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), -p.half(32)}; }
    template <int S>
    static HETRUN_INLINE Vf scale(const Lanes& p, const Head& h) {
        if (S < 4) return h.d * to_floats(p.u8(64 + 16 * (S % 4)) & splat_int(63));
        return h.d * to_floats((p.u8(64 + 16 * (8 + S % 4)) & splat_int(15)) | p.u8(64 + 16 * (S % 4)) >> 6 << 4);
    }
    template <int S>
    static HETRUN_INLINE Vf minimum(const Lanes& p, const Head& h) {
        if (S < 4) return h.m * to_floats(p.u8(64 + 16 * (4 + S % 4)) & splat_int(63));
        return h.m * to_floats(p.u8(64 + 16 * (8 + S % 4)) >> 4 | p.u8(64 + 16 * (4 + S % 4)) >> 6 << 4);
    }
};

struct PackedQ4_K : SixBitScales {
    static constexpr size_t kBytes = 2304;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(256 + 64 * (8 * (S / 2) + J));
        return S % 2 == 0 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
    }
};

struct PackedQ5_K : SixBitScales {
    static constexpr size_t kBytes = 2816;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(768 + 64 * (8 * (S / 2) + J));
        const Vi low = S % 2 == 0 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
        return low | (p.word(256 + 64 * J) >> S & splat_int(kOneBit)) << 4;
    }
};

struct PackedQ2_K : SuperTraits {
    static constexpr size_t kBytes = 1344;
    static constexpr int kMin = 16;
    static constexpr bool kScales16 = true, kFold = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), -p.half(32)}; }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return p.word(320 + 64 * (8 * (S / 4) + J)) >> 2 * (S % 4) & splat_int(kTwoBits);
    }
    template <int S, int H>
    static HETRUN_INLINE Vi scale16(const Lanes& p) {
        return p.u8(64 + 16 * (2 * S + H)) & splat_int(15);
    }
    template <int S, int H>
    static HETRUN_INLINE Vf minimum16(const Lanes& p, const Head& h) {
        return h.m * to_floats(p.u8(64 + 16 * (2 * S + H)) >> 4);
    }
    // Products of codes and scales are at most 45.
    static constexpr int kPanelShift = 0;
    static constexpr bool kPanelWide = false, kPanelNegative = false;
};

struct PackedQ3_K : SuperTraits {
    static constexpr size_t kBytes = 1760;
    static constexpr int kShift = 2;
    static constexpr bool kScales16 = true, kFold = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi low = p.word(736 + 64 * (8 * (S / 4) + J)) >> 2 * (S % 4) & splat_int(kTwoBits);
        return low | (p.word(224 + 64 * J) >> S & splat_int(kOneBit)) << 2;
    }
    template <int S, int H>
    static HETRUN_INLINE Vi scale16(const Lanes& p) {
        constexpr int I = 2 * S + H;
        const Vi byte = p.u8(32 + 16 * (I % 8));
        const Vi nibble = I < 8 ? byte & splat_int(15) : byte >> 4;
        return (nibble | (p.u8(32 + 16 * (8 + I % 4)) >> 2 * (I / 4) & splat_int(3)) << 4) - splat_int(32);
    }
    // -scale * (code - 4) lies in [-128, 124], the positive product would reach 128.
    static constexpr int kPanelShift = 7;
    static constexpr bool kPanelWide = true, kPanelNegative = true;
};

struct PackedQ6_K : SuperTraits {
    static constexpr size_t kBytes = 3360;
    static constexpr int kShift = 5;
    static constexpr bool kScales16 = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        constexpr int Q = S % 4;
        const Vi v = p.word(1312 + 64 * (16 * (S / 4) + 8 * (Q % 2) + J));
        const Vi low = Q < 2 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
        return low | (p.word(288 + 64 * (8 * (S / 4) + J)) >> 2 * Q & splat_int(kTwoBits)) << 4;
    }
    template <int S, int H>
    static HETRUN_INLINE Vi scale16(const Lanes& p) {
        return p.i8(32 + 16 * (2 * S + H));
    }
};

// acc + codes * activations, four of each a lane, of codes that had 2^shift added. `negated`: of the activations' sum.
template <bool Wide>
HETRUN_INLINE Vi dot(Vi acc, Vi codes, Vi activations) {
    if constexpr (Wide && !kWideDot) {
        return dot_signed(acc, codes ^ splat_int(static_cast<int32_t>(0x80808080)), activations);
    } else {
        return dot_unsigned(acc, codes, activations);
    }
}
template <bool Wide, int Shift>
HETRUN_INLINE Vi dot_start(const int32_t* negated) {
    if constexpr (Shift == 0 || (Wide && !kWideDot)) {
        return Vi{};
    } else {
        return splat_int(*negated) << Shift;
    }
}

// Where the sums of one prepared row lie.
struct RowSums {
    const uint8_t* codes;
    const float *scale, *sum32, *sum16;
    const int32_t *neg32, *neg16;
};

template <class C, int S>
HETRUN_INLINE Vf gemv_step(const Lanes& p, const Head& head, const RowSums& row, size_t b, Vf acc) {
    const uint8_t* a = row.codes + 32 * b;
    Vi low, high;
    if constexpr (C::kScales16) {
        low = dot_start<C::kWide, C::kShift>(row.neg16 + 2 * b);
        high = dot_start<C::kWide, C::kShift>(row.neg16 + 2 * b + 1);
    } else {
        low = dot_start<C::kWide, C::kShift>(row.neg32 + b);
        high = Vi{};
    }
    unrolled<4>([&](auto j) HETRUN_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        low = dot<C::kWide>(low, C::template code<S, J>(p), splat_word(a + 4 * J));
        high = dot<C::kWide>(high, C::template code<S, J + 4>(p), splat_word(a + 4 * (J + 4)));
    });
    const Vf a_scale = splat_at(row.scale + b);
    if constexpr (C::kScales16) {
        const Vi sum = low * C::template scale16<S, 0>(p) + high * C::template scale16<S, 1>(p);
        acc = fmadd(to_floats(sum), head.d * a_scale, acc);
    } else {
        acc = fmadd(to_floats(low + high), C::template scale<S>(p, head) * a_scale, acc);
    }
    if constexpr (C::kMin == 32) acc = fmadd(C::template minimum<S>(p, head), splat_at(row.sum32 + b), acc);
    if constexpr (C::kMin == 16) {
        acc = fmadd(C::template minimum16<S, 0>(p, head), splat_at(row.sum16 + 2 * b), acc);
        acc = fmadd(C::template minimum16<S, 1>(p, head), splat_at(row.sum16 + 2 * b + 1), acc);
    }
    return acc;
}

template <class C>
void gemv(const GemvArgs& g) {
    const PreparedLayout& l = *g.layout;
    const auto floats = [&](size_t offset) { return reinterpret_cast<const float*>(g.prepared + offset); };
    const auto ints = [&](size_t offset) { return reinterpret_cast<const int32_t*>(g.prepared + offset); };
    const RowSums row = {g.prepared,      floats(l.scale), floats(C::kHalfSum ? l.half_sum32 : l.sum32), floats(l.sum16),
                         ints(l.neg32), ints(l.neg16)};
    constexpr size_t kSteps = C::kBlock / 32;
    const size_t n_blocks = l.n / C::kBlock;
    for (size_t group = 0; group < g.n_groups; ++group) {
        for (size_t lane = 0; lane < 16; lane += kLanes) {
            Lanes p = {g.groups + group * g.group_bytes, lane};
            Vf acc = {};
            for (size_t b = 0; b < n_blocks; ++b, p.block += C::kBytes) {
                if (lane == 0) {
#pragma GCC unroll 64
                    for (size_t i = 0; i < C::kBytes; i += 64) __builtin_prefetch(p.block + kPrefetchBytes + i);
                }
                const Head head = C::head(p);
                unrolled<kSteps>([&](auto s) HETRUN_INLINE_LAMBDA {
                    acc = gemv_step<C, decltype(s)::value>(p, head, row, kSteps * b + decltype(s)::value, acc);
                });
            }
            store_floats(g.out + 16 * group + lane, acc);
        }
    }
}

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
