// Masters that read HBM through its switches: what a pattern of addresses and a distance cost.
#pragma once

#include <cstdint>

#include "timing.h"

namespace hetrun::u280 {

// Master i reads pseudo-channel (i + shift) % 32: n_bursts of burst_bytes, `stride` bytes apart, `outstanding` at a time.
struct Reads {
    uint32_t n_masters, shift, burst_bytes, n_bursts, outstanding;
    int64_t clock_ps;  // of the masters' ports, 64 bytes a clock
    uint64_t stride;
};

struct Rate {
    double bytes_per_s, latency_s;  // of all masters; mean of a burst
};

Rate read_rate(const MemoryTiming& memory, const Reads& reads);

}  // namespace hetrun::u280
