// Loops that the fabric runs as pipelines: a loop's rate stands in the source once, for Vitis and for who counts cycles.
//
//   for (...) {
//       HETRUN_FABRIC_PIPELINE(2);  // II = 2
//
// HETRUN_FABRIC_COUNT (tests) adds II to the thread's pipeline_cycles() for each iteration: what the loops take but for their depths.
#pragma once

#include <cstdint>

#if defined(__SYNTHESIS__)
#define HETRUN_FABRIC_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define HETRUN_FABRIC_PIPELINE(ii) HETRUN_FABRIC_PRAGMA(HLS PIPELINE II = ii)
#elif defined(HETRUN_FABRIC_COUNT)
namespace hetrun::fabric {
inline uint64_t& pipeline_cycles() {
    thread_local uint64_t cycles = 0;
    return cycles;
}
}  // namespace hetrun::fabric
#define HETRUN_FABRIC_PIPELINE(ii) ::hetrun::fabric::pipeline_cycles() += (ii)
#else
#define HETRUN_FABRIC_PIPELINE(ii) static_cast<void>(ii)
#endif
