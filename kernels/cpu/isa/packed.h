// Types of packed weights (pack.h), and the integer dot product that GEMV (gemv.h) and GEMM (gemm.h) share.
//
// A lane is a row. Both take a row's blocks of 32 in order, with the same products and roundings, so that they give the same
// bits: acc = fma(integer dot, weight scale * activation scale, acc), then acc = fma(minimum, activation sum, acc). Where one
// scale holds for a super-block (kLateScale), part = fma(integer dot, activation scale, part) over it from 0, then
// acc = fma(part, weight scale, acc).
// Codes are unsigned; an offset of 2^shift that GGUF subtracts is taken back from the integers by the activations' sums.
// Where the dot product has room for it, GEMV leaves codes where they stand in their bytes, and shifts the sums instead.
#pragma once

namespace hetrun::cpu {
namespace {

typedef int16_t Vs __attribute__((vector_size(sizeof(Vi))));

constexpr int32_t kNibbles = 0x0f0f0f0f, kTwoBits = 0x03030303, kOneBit = 0x01010101;
constexpr int32_t bytes_of(int32_t byte) { return static_cast<int32_t>(static_cast<uint32_t>(byte) * 0x01010101u); }

// A packed block as the lanes of one vector see it.
struct Lanes {
    const uint8_t* block;
    size_t lane;              // the first
    const uint8_t* row_scales;  // float32, of the rows of the group; of types that have them
    HETRUN_INLINE Vi word(size_t offset) const { return load_ints(block + offset + 4 * lane); }
    HETRUN_INLINE Vf half(size_t offset) const { return load_half(block + offset + 2 * lane); }
    HETRUN_INLINE Vi u8(size_t offset) const { return load_u8(block + offset + lane); }
    HETRUN_INLINE Vi i8(size_t offset) const { return load_i8(block + offset + lane); }
    HETRUN_INLINE Vi u8_pairs(size_t offset) const { return load_u8_pairs(block + offset + 2 * lane); }  // two bytes a lane, as 16 bits
};

struct Head {
    Vf d, m;
};

// kBits: of a code.   kShift: log2 of the codes' offset, 0 for none.   kMin: minima meet sums of 32 or 16 activations.   kHalfSum: of Q8_1.
// kScales16: integer scales of 16 codes.   kFold: they are multiplied into the panel's codes, then of kPanelBits.
// kPairs: scales and sums of 16 codes fit 16 bits.   kTogether: sub-blocks of 32 whose codes share words.
// placed<S, J> is code<S, J> times 2^placed_shift(S), at most 8 bits of each byte; kPlacedHalves: by S and J / 4.
// kRowScales: the scales of the 16 rows stand behind the blocks of a group.   kZeroPoint: the minimum takes it back.
struct Traits {
    static constexpr size_t kBlock = 32;
    static constexpr int kShift = 0, kMin = 0, kTogether = 1;
    static constexpr bool kHalfSum = false, kScales16 = false, kFold = false, kPairs = false;
    static constexpr bool kRowScales = false, kZeroPoint = false, kPlacedHalves = false;
    // Of sub-block S; most types have one for all.
    template <int S>
    static HETRUN_INLINE Vf scale(const Lanes&, const Head& h) {
        return h.d;
    }
    template <int S>
    static HETRUN_INLINE Vf minimum(const Lanes&, const Head& h) {
        return h.m;
    }
};
struct SuperTraits : Traits {
    static constexpr size_t kBlock = 256;
};
template <class C>
constexpr bool kLateScale = C::kScales16 && C::kMin == 0;

template <size_t Words>
struct Nibbles32 : Traits {  // codes at Words, the first half of the 32 in the low nibbles
    static constexpr int kBits = 4;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(Words + 64 * (J % 4));
        return J < 4 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
    }
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
};

struct PackedQ4_0 : Nibbles32<32> {
    static constexpr size_t kBytes = 288;
    static constexpr int kShift = 3;
};

constexpr uint8_t kNonlinearCodes[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};  // kNonlinear + 128

// Nibbles name one of 16 values, codes of 8 bits.
struct PackedIQ4_NL : Nibbles32<32> {
    static constexpr size_t kBytes = 288;
    static constexpr int kShift = 7;
    static constexpr int kBits = 8;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return table_bytes(kNonlinearCodes, Nibbles32<32>::template code<S, J>(p));
    }
};

constexpr uint8_t kE2m1Codes[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};  // kE2m1Doubled + 16

struct PackedMXFP4 : Nibbles32<16> {
    static constexpr size_t kBytes = 272;
    static constexpr int kBits = 5, kShift = 4;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return table_bytes(kE2m1Codes, Nibbles32<16>::template code<S, J>(p));
    }
    static HETRUN_INLINE Head head(const Lanes& p) {
        const Vi e = p.u8(0);  // of 2^(e - 128), a subnormal below 2
        return {as_floats(e < 2 ? (e + 1) << 21 : (e - 1) << 23), Vf{}};
    }
};

struct PackedQ4_1 : Nibbles32<64> {
    static constexpr size_t kBytes = 320;
    static constexpr int kMin = 32;
    static constexpr bool kHalfSum = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), p.half(32)}; }
};

template <size_t High>
struct FiveBits32 : Nibbles32<High + 64> {
    static constexpr int kBits = 5;
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
};

struct PackedQ8_0 : Traits {
    static constexpr size_t kBytes = 544;
    static constexpr int kShift = 7;
    static constexpr int kBits = 8;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return p.word(32 + 64 * J);
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
    static constexpr int kBits = 4, kTogether = 2;
    static constexpr int placed_shift(int s) { return s % 2 * 4; }
    template <int S, int J>
    static HETRUN_INLINE Vi placed(const Lanes& p) {
        return p.word(256 + 64 * (8 * (S / 2) + J)) & splat_int(bytes_of(15 << placed_shift(S)));
    }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(256 + 64 * (8 * (S / 2) + J));
        return S % 2 == 0 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
    }
};

struct PackedQ5_K : SixBitScales {
    static constexpr size_t kBytes = 2816;
    static constexpr int kBits = 5;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(768 + 64 * (8 * (S / 2) + J));
        const Vi low = S % 2 == 0 ? v & splat_int(kNibbles) : v >> 4 & splat_int(kNibbles);
        return low | (p.word(256 + 64 * J) >> S & splat_int(kOneBit)) << 4;
    }
};

struct PackedIQ4_XS : SuperTraits {
    static constexpr size_t kBytes = 2176;
    static constexpr int kShift = 7;
    static constexpr int kBits = 8;
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        const Vi v = p.word(128 + 64 * (4 * S + J % 4));
        return table_bytes(kNonlinearCodes, (J < 4 ? v : v >> 4) & splat_int(kNibbles));
    }
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S>
    static HETRUN_INLINE Vf scale(const Lanes& p, const Head& h) {
        const Vi low = p.word(64) >> 4 * S & splat_int(15), high = p.u8_pairs(32) >> (2 * (S % 4) + 16 * (S / 4)) & splat_int(3);
        return h.d * to_floats((low | high << 4) - splat_int(32));
    }
};

template <size_t Words, class Base>
struct TwoBits256 : Base {  // codes at Words, those of four sub-blocks in a word
    static constexpr int kBits = 2, kTogether = 4;
    static constexpr int placed_shift(int s) { return s % 4 * 2; }
    static HETRUN_INLINE Vi word(const Lanes& p, int s, int j) { return p.word(Words + 64 * static_cast<size_t>(8 * (s / 4) + j)); }
    template <int S, int J>
    static HETRUN_INLINE Vi placed(const Lanes& p) {
        return word(p, S, J) & splat_int(bytes_of(3 << placed_shift(S)));
    }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return word(p, S, J) >> placed_shift(S) & splat_int(kTwoBits);
    }
};

struct PackedTQ2_0 : TwoBits256<32, SuperTraits> {
    static constexpr size_t kBytes = 1056;
    static constexpr int kMin = 32;
    static constexpr bool kZeroPoint = true;
    static HETRUN_INLINE Head head(const Lanes& p) {
        const Vf d = p.half(0);
        return {d, -d};
    }
    static HETRUN_INLINE Vi zero(const Lanes&) { return splat_int(1); }
};

using PackedTQ1_0 = PackedTQ2_0;  // pack.h says why

// Scales of 16 codes in pairs: both of a sub-block of 32 in a lane, 16 bits each.
template <class C>
struct ScalePairs : SuperTraits {
    static constexpr bool kScales16 = true, kFold = true, kPairs = true;
    template <int S, int H>
    static HETRUN_INLINE Vi scale16(const Lanes& p) {
        const Vi pair = C::template pairs<S>(p);
        return H == 0 ? pair << 16 >> 16 : pair >> 16;
    }
};

struct PackedQ2_K : TwoBits256<320, ScalePairs<PackedQ2_K>> {
    static constexpr size_t kBytes = 1344;
    static constexpr int kMin = 16;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), -p.half(32)}; }
    template <int S>
    static HETRUN_INLINE Vi pairs(const Lanes& p) {
        return p.u8_pairs(64 + 32 * S) & splat_int(0x000f000f);
    }
    template <int S, int H>
    static HETRUN_INLINE Vf minimum16(const Lanes& p, const Head& h) {
        const Vi pair = p.u8_pairs(64 + 32 * S);
        return h.m * to_floats(H == 0 ? pair >> 4 & splat_int(15) : pair >> 20);
    }
    // Products of codes and scales are at most 45.
    static constexpr int kPanelShift = 0;
    static constexpr int kPanelBits = 6;
    static constexpr bool kPanelNegative = false;
};

struct PackedQ3_K : ScalePairs<PackedQ3_K> {
    static constexpr size_t kBytes = 1760;
    static constexpr int kBits = 3, kShift = 2, kTogether = 8;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int J>
    static HETRUN_INLINE Vi word(const Lanes& p, int i) {
        return p.word(224 + 64 * (3 * J + i));
    }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        if (S < 6) return word<J>(p, S / 2) >> 3 * (S % 2) & splat_int(bytes_of(7));
        return (word<J>(p, S - 6) >> 5 & splat_int(bytes_of(6))) | (word<J>(p, 2) >> S & splat_int(kOneBit));
    }
    static constexpr int placed_shift(int s) { return s < 6 ? s % 2 * 3 : 5; }
    template <int S, int J>
    static HETRUN_INLINE Vi placed(const Lanes& p) {
        if (S < 6) return word<J>(p, S / 2) & splat_int(bytes_of(7 << placed_shift(S)));
        return (word<J>(p, S - 6) & splat_int(bytes_of(0xc0))) | (word<J>(p, 2) >> (S - 5) & splat_int(bytes_of(0x20)));
    }
    template <int S>
    static HETRUN_INLINE Vi pairs(const Lanes& p) {
        constexpr int P = S / 2;
        const Vi byte = p.u8_pairs(32 + 32 * (S % 4)), high = p.u8_pairs(32 + 32 * (4 + S % 2));
        const Vi nibble = (P < 2 ? byte : byte >> 4) & splat_int(0x000f000f);
        const Vi two = (P < 2 ? high << (4 - 2 * P) : high >> (2 * P - 4)) & splat_int(0x00300030);
        return reinterpret_cast<Vi>(reinterpret_cast<Vs>(nibble | two) - static_cast<int16_t>(32));
    }
    // -scale * (code - 4) lies in [-128, 124], the positive product would reach 128.
    static constexpr int kPanelShift = 7;
    static constexpr int kPanelBits = 8;
    static constexpr bool kPanelNegative = true;
};

struct PackedQ6_K : SuperTraits {
    static constexpr size_t kBytes = 3360;
    static constexpr int kBits = 6, kShift = 5, kTogether = 4;
    static constexpr bool kScales16 = true;
    static HETRUN_INLINE Head head(const Lanes& p) { return {p.half(0), Vf{}}; }
    template <int S, int J>
    static HETRUN_INLINE Vi word(const Lanes& p, int i) {
        return p.word(288 + 64 * (24 * (S / 4) + 3 * J + i));
    }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        if (S % 4 < 3) return word<S, J>(p, S % 4) & splat_int(bytes_of(63));
        return (word<S, J>(p, 0) >> 6 & splat_int(kTwoBits)) | (word<S, J>(p, 1) >> 4 & splat_int(bytes_of(12))) |
               (word<S, J>(p, 2) >> 2 & splat_int(bytes_of(48)));
    }
    static constexpr int placed_shift(int s) { return s % 4 < 3 ? 0 : 2; }
    template <int S, int J>
    static HETRUN_INLINE Vi placed(const Lanes& p) {
        if (S % 4 < 3) return code<S, J>(p);
        return (word<S, J>(p, 0) >> 4 & splat_int(bytes_of(12))) | (word<S, J>(p, 1) >> 2 & splat_int(bytes_of(48))) |
               (word<S, J>(p, 2) & splat_int(bytes_of(0xc0)));
    }
    template <int S, int H>
    static HETRUN_INLINE Vi scale16(const Lanes& p) {
        return p.i8(32 + 16 * (2 * S + H));
    }
};

// Groups of 64 columns with a zero point: x = row scale * scale * (code - zero). Sub-block S and half H of it have bits of
// their own in each word.
struct PackedW2 : Traits {
    static constexpr size_t kBlock = 64, kBytes = 288;
    static constexpr int kBits = 2, kMin = 32, kTogether = 2;
    static constexpr bool kRowScales = true, kZeroPoint = true, kPlacedHalves = true;
    static HETRUN_INLINE Head head(const Lanes& p) {
        const Vi pair = p.u8_pairs(0);  // 8 bits of the scale; its other 6 and the zero point, from bit 16 on
        const Vf scale = to_floats((pair & splat_int(0xff)) | (pair >> 8 & splat_int(0x3f00)));
        const Vf d = scale * load_floats(reinterpret_cast<const float*>(p.row_scales) + p.lane);
        return {d, -to_floats(pair >> 22) * d};
    }
    static HETRUN_INLINE Vi zero(const Lanes& p) { return p.u8_pairs(0) >> 22; }
    static constexpr int placed_shift(int s, int half = 0) { return 4 * s + 2 * half; }
    template <int S, int J>
    static HETRUN_INLINE Vi placed(const Lanes& p) {
        return p.word(32 + 64 * (J % 4)) & splat_int(bytes_of(3 << placed_shift(S, J / 4)));
    }
    template <int S, int J>
    static HETRUN_INLINE Vi code(const Lanes& p) {
        return p.word(32 + 64 * (J % 4)) >> placed_shift(S, J / 4) & splat_int(kTwoBits);
    }
};

using PackedW2S24 = PackedW2;  // pack.h says why

// Where the sums of one prepared row lie.
struct RowSums {
    const uint8_t* codes;
    const float *scale, *sum32, *sum16;
    const int32_t *neg32, *neg16;
};

template <class C>
HETRUN_INLINE RowSums row_sums(const GemvArgs& g) {
    const PreparedLayout& l = *g.layout;
    const auto floats = [&](size_t offset) { return reinterpret_cast<const float*>(g.prepared + offset); };
    const auto ints = [&](size_t offset) { return reinterpret_cast<const int32_t*>(g.prepared + offset); };
    return {g.prepared, floats(l.scale), floats(C::kHalfSum ? l.half_sum32 : l.sum32), floats(l.sum16), ints(l.neg32), ints(l.neg16)};
}

// acc + codes * activations, four of each a lane, of codes that had 2^shift added. `negated`: of the activations' sum.
template <int Bits>
HETRUN_INLINE Vi dot(Vi acc, Vi codes, Vi activations) {
    if constexpr (Bits == 8 && !kWideDot) {
        return dot_signed(acc, codes ^ splat_int(static_cast<int32_t>(0x80808080)), activations);
    } else {
        return dot_unsigned(acc, codes, activations);
    }
}
// Shift: of the codes' offset.   Placed: of the codes in their bytes.
template <int Bits, int Shift, int Placed = 0>
HETRUN_INLINE Vi dot_start(const int32_t* negated) {
    if constexpr (Shift == 0 || (Bits == 8 && !kWideDot)) {
        return Vi{};
    } else {
        return splat_int(*negated) << (Shift + Placed);
    }
}

}  // namespace
}  // namespace hetrun::cpu
