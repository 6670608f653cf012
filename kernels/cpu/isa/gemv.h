// One token with whole rows of packed weights: memory is the limit.
#pragma once

namespace hetrun::cpu {
namespace {

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

}  // namespace
}  // namespace hetrun::cpu
