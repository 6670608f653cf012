#include "published.h"
namespace hetrun::u280 {
double flightllm_token_s(const MemoryTiming&, uint32_t) { return 0; }
double accllm_token_s(const MemoryTiming&, const AccllmMeasures&, uint32_t) { return 0; }
}
