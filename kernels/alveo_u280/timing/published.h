// The published designs that this engine is measured against, in the same memory. What is known of them is not enough for a model of
// every cycle: streams are simulated burst by burst, all else is said to be calibrated where it is.
#pragma once

#include <cstdint>

#include "timing.h"

namespace hetrun::u280 {

// FlightLLM on a U280, Llama-2-7B: a decoded token behind n_past others.
//
// Run from its published demo, one layer's program at a time: what does not depend on n_past is one number, calibrated at 128 tokens.
// The slope is not: it is the KV cache in 8 bits, read from 8 pseudo-channels by readers with 4 bursts of 512 bytes outstanding.
double flightllm_token_s(const MemoryTiming& memory, uint32_t n_past);

// AccLLM (arXiv 2505.03745), Llama-2-7B: a decoded token behind n_past others (2,046: the whole window), with some of its four measures.
//
// Bytes of weights and KV from 32 pseudo-channels, or products on its DSPs, whichever take longer, and what overlaps with neither.
// Two numbers are calibrated, on the time with all measures and on what packing gains: that time, and how busy the DSPs are.
struct AccllmMeasures {
    bool pruned;   // 2:4
    bool two_bit;  // weights of 2 bits in groups of 64, else 8
    bool kv4;      // else 16 bits
    bool packed;   // two products a DSP
};
double accllm_token_s(const MemoryTiming& memory, const AccllmMeasures& measures, uint32_t n_past);

}  // namespace hetrun::u280
