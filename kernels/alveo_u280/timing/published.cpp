#include "published.h"

#include "reader.h"

namespace hetrun::u280 {

namespace {

constexpr int64_t kClockPs = 1'000'000'000'000 / 225'000'000;  // of both
constexpr uint64_t kLayers = 32, kWidth = 4096;
constexpr double kLayerWeights = 32 * (4.0 * 4096 * 4096 + 3.0 * 4096 * 11008), kHeadWeights = 32000.0 * 4096;

// So many beats of a channel by a reader with as many bursts outstanding, from an idle memory on.
double stream_s(const MemoryTiming& memory, uint32_t outstanding, uint64_t n_beats) {
    EngineTiming engine = engine_timing();
    engine.clock_ps = kClockPs;
    engine.outstanding = outstanding;
    Reader reader(memory, engine, 0);
    reader.add({0, static_cast<uint32_t>(n_beats), 0});
    const int64_t end = reader.take(0, static_cast<uint32_t>(n_beats), [](uint32_t i, uint32_t j) { return j - i; });
    return static_cast<double>(end) * 1e-12;
}

}  // namespace

double flightllm_token_s(const MemoryTiming& memory, uint32_t n_past) {
    constexpr uint32_t kKvChannels = 8, kOutstanding = 4;  // assumptions, declared beforehand
    constexpr double kRestS = 16.9484e-3;                  // calibrated: 17.506 ms at 128 tokens
    const uint64_t of_token = 2 * kWidth / kKvChannels;    // bytes of a layer in a channel
    const uint64_t n_beats = n_past * of_token / HETRUN_U280_BEAT_BYTES;
    return kRestS + kLayers * stream_s(memory, kOutstanding, n_beats);
}

double accllm_token_s(const MemoryTiming& memory, const AccllmMeasures& measures, uint32_t n_past) {
    constexpr uint32_t kDsps = 4497, kChannels = 32;       // arXiv 2505.03745
    constexpr double kDspShare = 0.566;                    // calibrated: packing gains 1.28
    constexpr double kRestS = 0.999e-3;                    // calibrated: 164 tokens/s with all measures
    // A weight that is kept takes its code and, pruned, 2 bits of index; a group of 64 kept ones of 2 bits 24 bits of scale and zero.
    const double kept = measures.pruned ? 0.5 : 1.0;
    const double bits = measures.two_bit ? 2 + 24.0 / 64 : 8;
    const double weights = kLayerWeights * kept * (bits + (measures.pruned ? 2 : 0)) / 8 + kHeadWeights;
    const double kv = 2.0 * kLayers * kWidth * n_past * (measures.kv4 ? 4 : 16) / 8;
    const double memory_s = stream_s(memory, 8, static_cast<uint64_t>((weights + kv) / kChannels / HETRUN_U280_BEAT_BYTES));
    const double products = kLayerWeights * kept + kHeadWeights + 2.0 * kLayers * kWidth * n_past;
    const double compute_s = products / (kDsps * 225e6 * kDspShare * (measures.packed ? 2 : 1));
    return std::max(memory_s, compute_s) + kRestS;
}

}  // namespace hetrun::u280
