// One token with whole rows of packed weights, for vectors of a few lanes: several of them pass together, so that whole cache
// lines are read and activations are spread over the lanes once for all. Requests for memory are spread as in gemv.h.
#pragma once

namespace hetrun::cpu {
namespace {

// Share I of N of the requests for memory that a block makes.
template <class C, size_t I, size_t N>
HETRUN_INLINE void fetch_share(const uint8_t* block, bool fetch) {
    constexpr size_t kLines = (C::kBytes + 63) / 64;
    if (!fetch) return;
#pragma GCC unroll 64
    for (size_t i = kLines * I / N; i < kLines * (I + 1) / N; ++i) __builtin_prefetch(block + kAheadBytes<C> + 64 * i);
}

// The sums of two halves, each by its scale.
template <class C, int S>
HETRUN_INLINE Vi scaled(Vi low, Vi high, const Lanes& p) {
#ifdef HETRUN_DOT_PAIRS
    if constexpr (C::kPairs) return dot_pairs((low & splat_int(0xffff)) | high << 16, C::template pairs<S>(p));
#endif
    return low * C::template scale16<S, 0>(p) + high * C::template scale16<S, 1>(p);
}

// V vectors of rows with 32 columns.
template <class C, int S, int V>
HETRUN_INLINE void gemv_step(const Lanes (&p)[V], const Head (&head)[V], const RowSums& row, size_t b, bool fetch,
                             Vf (&acc)[V]) {
    // What is loaded here stays here: loads of all steps at once would fill the registers several times over.
    asm volatile("" ::: "memory");
    const uint8_t* a = row.codes + 32 * b;
    Dots<C::kBits, C::kScales16 ? 4 : 8> low[V], high[V];
    unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
        constexpr int K = decltype(v)::value;
        low[K].begin(dot_start<C::kBits, C::kShift>(C::kScales16 ? row.neg16 + 2 * b : row.neg32 + b));
        if constexpr (C::kScales16) high[K].begin(dot_start<C::kBits, C::kShift>(row.neg16 + 2 * b + 1));
    });
    unrolled<4>([&](auto j) HETRUN_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        fetch_share<C, 4 * S + J, 4 * C::kBlock / 32>(p[0].block, fetch);
        const Vi first = splat_word(a + 4 * J), second = splat_word(a + 4 * (J + 4));
        unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
            constexpr int K = decltype(v)::value;
            low[K].add(C::template code<S, J>(p[K]), first);
            (C::kScales16 ? high : low)[K].add(C::template code<S, J + 4>(p[K]), second);
        });
    });
    const Vf a_scale = splat_at(row.scale + b);
    unrolled<V>([&](auto v) HETRUN_INLINE_LAMBDA {
        constexpr int K = decltype(v)::value;
        if constexpr (C::kScales16) {
            const Vi sum = scaled<C, S>(low[K].total(), high[K].total(), p[K]);
            acc[K] = fmadd(to_floats(sum), kLateScale<C> ? a_scale : head[K].d * a_scale, acc[K]);
        } else {
            acc[K] = fmadd(to_floats(low[K].total()), C::template scale<S>(p[K], head[K]) * a_scale, acc[K]);
        }
        if constexpr (C::kMin == 32) acc[K] = fmadd(C::template minimum<S>(p[K], head[K]), splat_at(row.sum32 + b), acc[K]);
        if constexpr (C::kMin == 16) {
            acc[K] = fmadd(C::template minimum16<S, 0>(p[K], head[K]), splat_at(row.sum16 + 2 * b), acc[K]);
            acc[K] = fmadd(C::template minimum16<S, 1>(p[K], head[K]), splat_at(row.sum16 + 2 * b + 1), acc[K]);
        }
    });
}

template <class C>
void gemv(const GemvArgs& g) {
    const PreparedLayout& l = *g.layout;
    const RowSums row = row_sums<C>(g);
    constexpr size_t kSteps = C::kBlock / 32;
    constexpr int V = kGemvVectors;
    const size_t n_blocks = l.n / C::kBlock;
    for (size_t group = 0; group < g.n_groups; ++group) {
        for (size_t lane = 0; lane < 16; lane += V * kLanes) {
            Lanes p[V];
            Vf acc[V];
            for (int v = 0; v < V; ++v) {
                const uint8_t* block = g.groups + group * g.group_bytes;
                p[v] = {block, lane + v * kLanes, block + n_blocks * C::kBytes};
                acc[v] = Vf{};
            }
            for (size_t b = 0; b < n_blocks; ++b) {
                Head head[V];
                Vf part[V];
                for (int v = 0; v < V; ++v) {
                    head[v] = C::head(p[v]);
                    part[v] = kLateScale<C> ? Vf{} : acc[v];
                }
                unrolled<kSteps>([&](auto s) HETRUN_INLINE_LAMBDA {
                    constexpr size_t kStep = decltype(s)::value;
                    gemv_step<C, kStep>(p, head, row, kSteps * b + kStep, lane == 0, part);
                });
                for (int v = 0; v < V; ++v) {
                    acc[v] = kLateScale<C> ? fmadd(part[v], head[v].d, acc[v]) : part[v];
                    p[v].block += C::kBytes;
                }
            }
            for (int v = 0; v < V; ++v) store_floats(g.out + 16 * group + lane + v * kLanes, acc[v]);
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
