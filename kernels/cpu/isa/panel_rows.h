// Rows of 8 tokens into a panel, a token at a time, by the kernel that prepares single rows.
#pragma once

namespace hetrun::cpu {
namespace {

void prepare_panel(const float* const* rows, const float* norm, float eps, size_t n, uint8_t* panel, size_t stride) {
    const PreparedLayout layout(32, true, false);
    alignas(64) uint8_t prepared[1024];
    const auto number = [&](size_t offset, size_t i) { return reinterpret_cast<const float*>(prepared + offset)[i]; };
    const auto integer = [&](size_t offset, size_t i) { return reinterpret_cast<const int32_t*>(prepared + offset)[i]; };
    for (size_t t = 0; t < kPanelTokens; ++t) {
        const float factor = norm ? rms_factor(rows[t], n, eps) : 1.0f;
        for (size_t b = 0; b < n / 32; ++b) {
            const float* from = rows[t] + 32 * b;
            float normed[32];
            for (size_t i = 0; norm && i < 32; ++i) normed[i] = from[i] * factor * norm[32 * b + i];
            prepare_int8(norm ? normed : from, layout, prepared);
            PanelBlock& to = *reinterpret_cast<PanelBlock*>(panel + b * stride);
            for (size_t j = 0; j < 8; ++j) std::memcpy(to.codes[j][t], prepared + 4 * j, 4);
            to.scale[t] = number(layout.scale, 0);
            to.half_sum32[t] = number(layout.half_sum32, 0);
            to.sum32[t] = number(layout.sum32, 0);
            to.neg32[t] = integer(layout.neg32, 0);
            for (size_t i = 0; i < 2; ++i) {
                to.neg16[i][t] = integer(layout.neg16, i);
                to.sum16[i][t] = number(layout.sum16, i);
            }
        }
    }
}

}  // namespace
}  // namespace hetrun::cpu
