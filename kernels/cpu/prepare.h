// A row of activations as the matmul kernels want it.
#pragma once

#include "kernels.h"

namespace hetrun::cpu {

// The n floats at x in the parts that `layout` has: codes where `int8`, the floats where `floats`.
void prepare_row(const Kernels& kernels, const float* x, const PreparedLayout& layout, bool int8, bool floats, uint8_t* out);

}  // namespace hetrun::cpu
