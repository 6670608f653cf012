// One row of packed weights as floats, the same that dequantize_codes gives of the row that GGUF has.
#pragma once

namespace hetrun::cpu {
namespace {

// 32 columns of the row in lane `own` of the vectors.
template <class C, int S>
HETRUN_INLINE void lookup_step(const Lanes& p, const Head& head, size_t own, float* out) {
    alignas(64) uint8_t codes[8][kLanes][4];
    unrolled<8>([&](auto j) HETRUN_INLINE_LAMBDA {
        constexpr int J = decltype(j)::value;
        store_ints(codes[J], C::template code<S, J>(p));
    });
    float scale[2], minimum[2] = {};
    if constexpr (C::kScales16) {
        scale[0] = head.d[own] * static_cast<float>(C::template scale16<S, 0>(p)[own]);
        scale[1] = head.d[own] * static_cast<float>(C::template scale16<S, 1>(p)[own]);
    } else {
        scale[0] = scale[1] = C::template scale<S>(p, head)[own];
    }
    int offset = C::kShift ? 1 << C::kShift : 0;
    if constexpr (C::kZeroPoint) offset = C::zero(p)[own];
    if constexpr (C::kMin == 32 && !C::kZeroPoint) minimum[0] = minimum[1] = C::template minimum<S>(p, head)[own];
    if constexpr (C::kMin == 16) {
        minimum[0] = C::template minimum16<S, 0>(p, head)[own];
        minimum[1] = C::template minimum16<S, 1>(p, head)[own];
    }
    for (size_t i = 0; i < 32; ++i) {
        const int code = codes[i / 4][own][i % 4] - offset;
        const float x = scale[i / 16] * static_cast<float>(code);
        out[i] = C::kMin && !C::kZeroPoint ? x + minimum[i / 16] : x;
    }
}

template <class C>
void lookup(const uint8_t* group, size_t row, size_t n, float* out) {
    constexpr size_t kSteps = C::kBlock / 32;
    Lanes p = {group, row / kLanes * kLanes, group + n / C::kBlock * C::kBytes};
    for (size_t b = 0; b < n / C::kBlock; ++b, p.block += C::kBytes) {
        const Head head = C::head(p);
        unrolled<kSteps>([&](auto s) HETRUN_INLINE_LAMBDA {
            constexpr int S = decltype(s)::value;
            lookup_step<C, S>(p, head, row % kLanes, out + C::kBlock * b + 32 * S);
        });
    }
}

}  // namespace
}  // namespace hetrun::cpu
