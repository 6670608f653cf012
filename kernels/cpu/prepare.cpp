#include "prepare.h"

#include <cstring>

namespace hetrun::cpu {

namespace {

// The nearest BF16, ties to even; a NaN stays one.
inline uint16_t nearest_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return static_cast<uint16_t>((nan ? bits | 0x00400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

void prepare_row(const Kernels& kernels, const float* x, const PreparedLayout& layout, uint8_t* out) {
    if (layout.has_codes()) kernels.prepare_int8(x, layout, out);
    if (!layout.has_floats()) return;
    const size_t n = layout.n;
    float* copy = reinterpret_cast<float*>(out + layout.floats);
    std::memcpy(copy, x, n * sizeof(float));
    std::memset(copy + n, 0, (round_up(n, 16) - n) * sizeof(float));
    if (!kernels.bf16_activations) return;
    uint16_t* rounded = reinterpret_cast<uint16_t*>(out + layout.bf16);
    for (size_t i = 0; i < n; ++i) rounded[i] = nearest_bf16(x[i]);
    std::memset(rounded + n, 0, (round_up(n, 32) - n) * sizeof(uint16_t));
}

}  // namespace hetrun::cpu
