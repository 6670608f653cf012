// The published designs that this engine is measured against, in the same memory.
#pragma once

#include <cstdint>

#include "timing.h"

namespace hetrun::u280 {

double flightllm_token_s(const MemoryTiming& memory, uint32_t n_past);

struct AccllmMeasures {
    bool pruned, two_bit, kv4, packed;
};
double accllm_token_s(const MemoryTiming& memory, const AccllmMeasures& measures, uint32_t n_past);

}  // namespace hetrun::u280
