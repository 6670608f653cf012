// One token with whole rows of packed weights: memory is the limit.
#pragma once

namespace hetrun::cpu {
namespace {

// Bytes ahead of their use for which memory is asked: what a core wants in the time that it takes to answer. Requests are
// spread over all that is computed of a block: where none is made for a while memory idles (Q2_K at 31 instead of 28 GB/s).
//
// Processors differ in what they may be asked for (two threads, GB/s, measured). On a Granite Rapids lines come into the
// second-level cache, as on their way to the first they hold up what is being read (Q6_K at 29 instead of 18); nearer to their
// use the first level asks for them, from which much is unpacked at once (Q3_K 30.5 instead of 27.4, Q4_K 32.3 and 29.9, Q6_K
// 29.9 and 28.6, Q8_0 32.7 and 31.2, but Q4_0 31.8 and 32.1). A Zen 5 takes them into the first level at once: decode of whole
// files, tokens/s, Q4_K_M 108 instead of 83, Q3_K_S 142 and 132, Q2_K 158 and 148. Of small blocks past the second level (Q8_0
// 72 instead of 67, Q4_0 119 and 114), but not of super-blocks (Q4_K_M 82 instead of 85, where memory is slow).
#ifdef HETRUN_TILES
constexpr size_t kFarBytes = 4096;
template <class C>
constexpr size_t kNearBytes = C::kBytes > 512 ? 2048 : 0;
template <class C>
constexpr int kFarLevel = 2;
#else
constexpr size_t kFarBytes = 6144;
template <class C>
constexpr size_t kNearBytes = 0;
template <class C>
constexpr int kFarLevel = C::kBlock == 256 ? 3 : 0;  // of __builtin_prefetch: 0 is the first level alone
#endif

template <class C, int S, int J>
HETRUN_INLINE Vi placed_code(const Lanes& p) {
    if constexpr (C::kTogether > 1) {
        return C::template placed<S, J>(p);
    } else {
        return C::template code<S, J>(p);
    }
}

template <class C>
constexpr int placed_by(int s) {
    if constexpr (C::kTogether > 1) {
        return C::placed_shift(s);
    } else {
        return 0 * s;
    }
}

// Adds block b of 32 of a row, sub-block S of its super-block, from the sums of its halves. neg_pairs: kPairs' offsets.
template <class C, int S>
HETRUN_INLINE Vf gemv_add(const Lanes& p, const Head& head, const RowSums& row, size_t b, Vi low, Vi high,
                          const int16_t* neg_pairs, Vf acc) {
    constexpr int kPlaced = placed_by<C>(S);
    const Vf a_scale = splat_at(row.scale + b);
    if constexpr (C::kPairs) {
        Vs both = reinterpret_cast<Vs>((low >> kPlaced & splat_int(0xffff)) | high << (16 - kPlaced));
        if constexpr (C::kShift) both += reinterpret_cast<Vs>(splat_word(neg_pairs + 2 * S));
        const Vi sum = dot_pairs(reinterpret_cast<Vi>(both), C::template pairs<S>(p));
        acc = fmadd(to_floats(sum), kLateScale<C> ? a_scale : head.d * a_scale, acc);
    } else if constexpr (C::kScales16) {
        const Vi sum = (low >> kPlaced) * C::template scale16<S, 0>(p) + (high >> kPlaced) * C::template scale16<S, 1>(p);
        acc = fmadd(to_floats(sum), kLateScale<C> ? a_scale : head.d * a_scale, acc);
    } else {
        Vi sum;
        if constexpr (C::kPlacedHalves) {
            sum = (low >> C::placed_shift(S)) + (high >> C::placed_shift(S, 1));
        } else {
            sum = (low + high) >> kPlaced;
        }
        acc = fmadd(to_floats(sum), C::template scale<S>(p, head) * a_scale, acc);
    }
    if constexpr (C::kMin == 32) acc = fmadd(C::template minimum<S>(p, head), splat_at(row.sum32 + b), acc);
    if constexpr (C::kMin == 16) {
        acc = fmadd(C::template minimum16<S, 0>(p, head), splat_at(row.sum16 + 2 * b), acc);
        acc = fmadd(C::template minimum16<S, 1>(p, head), splat_at(row.sum16 + 2 * b + 1), acc);
    }
    return acc;
}

// A packed block: N sub-blocks at a time, so that the words that they share are loaded once.
template <class C>
HETRUN_INLINE Vf gemv_block(const Lanes& p, const RowSums& row, size_t b, bool fetch, Vf acc) {
    constexpr int N = C::kTogether;
    constexpr size_t kSteps = C::kBlock / 32, kLines = (C::kBytes + 63) / 64;
    constexpr size_t kGroupSlots = 8 + N, kSlots = kGroupSlots * kSteps / N;  // dot products of four columns, additions
    const Head head = C::head(p);
    Vf part = kLateScale<C> ? Vf{} : acc;
    alignas(32) int16_t neg_pairs[2 * kSteps];
    if constexpr (C::kPairs && C::kShift) {
        for (size_t i = 0; i < 2 * kSteps; ++i) neg_pairs[i] = static_cast<int16_t>(row.neg16[2 * kSteps * b + i] * (1 << C::kShift));
    }
    const auto fetch_share = [&](auto slot) HETRUN_INLINE_LAMBDA {
        constexpr size_t kSlot = decltype(slot)::value;
        if (!fetch) return;
#pragma GCC unroll 64
        for (size_t i = kLines * kSlot / kSlots; i < kLines * (kSlot + 1) / kSlots; ++i) {
            __builtin_prefetch(p.block + kFarBytes + 64 * i, 0, kFarLevel<C>);
            if (kNearBytes<C> > 0) __builtin_prefetch(p.block + kNearBytes<C> + 64 * i);
        }
    };
    unrolled<kSteps / N>([&](auto group) HETRUN_INLINE_LAMBDA {
        constexpr int First = N * decltype(group)::value;
        const size_t block = kSteps * b + First;
        Vi sums[2][N];
        unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
            constexpr int J = decltype(j)::value, H = J / 4;
            fetch_share(std::integral_constant<size_t, kGroupSlots * First / N + J>{});
            unrolled<N>([&](auto q) HETRUN_INLINE_LAMBDA {
                constexpr int Q = decltype(q)::value, S = First + Q, kPlaced = placed_by<C>(S);
                if constexpr (J % 4 == 0) {
                    if constexpr (C::kPairs) {
                        sums[H][Q] = Vi{};
                    } else if constexpr (C::kScales16) {
                        sums[H][Q] = dot_start<C::kBits, C::kShift, kPlaced>(row.neg16 + 2 * (block + Q) + H);
                    } else {
                        sums[H][Q] = H == 0 ? dot_start<C::kBits, C::kShift, kPlaced>(row.neg32 + block + Q) : Vi{};
                    }
                }
                sums[H][Q] = dot<C::kBits>(sums[H][Q], placed_code<C, S, J>(p), splat_word(row.codes + 32 * (block + Q) + 4 * J));
            });
        });
        unrolled<N>([&](auto q) HETRUN_INLINE_LAMBDA {
            constexpr int Q = decltype(q)::value;
            fetch_share(std::integral_constant<size_t, kGroupSlots * First / N + 8 + Q>{});
            part = gemv_add<C, First + Q>(p, head, row, block + Q, sums[0][Q], sums[1][Q], neg_pairs, part);
        });
    });
    return kLateScale<C> ? fmadd(part, head.d, acc) : part;
}

template <class C>
void gemv(const GemvArgs& g) {
    const PreparedLayout& l = *g.layout;
    const RowSums row = row_sums<C>(g);
    const size_t n_blocks = l.n / C::kBlock;
    for (size_t group = 0; group < g.n_groups; ++group) {
        for (size_t lane = 0; lane < 16; lane += kLanes) {
            const uint8_t* block = g.groups + group * g.group_bytes;
            Lanes p = {block, lane, block + n_blocks * C::kBytes};
            Vf acc = {};
            for (size_t b = 0; b < n_blocks; ++b, p.block += C::kBytes)
                acc = gemv_block<C>(p, row, b, lane == 0, acc);
            store_floats(g.out + 16 * group + lane, acc);
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
