// A row of activations as the matmul kernels want it.
#pragma once

#include "kernels.h"

namespace hetrun::cpu {

// The floats at x in the parts that `layout` has.
void prepare_row(const Kernels& kernels, const float* x, const PreparedLayout& layout, uint8_t* out);

}  // namespace hetrun::cpu
