#include "secda.h"

#include <algorithm>

#include "dram.h"

namespace hetrun::pynq {

SecdaTiming secda_timing() {
    return {
        4,            // v3 of the published source
        1024,         // published source
        512,
        16,           // published source: II = 16 a super-block
        30,           // published source: cycles an output = 16 * blocks + 30
        400'000'000,  // calibrated, declared beforehand: one Cortex-A9's memcpy from cached to uncached memory
        10'000'000,   // calibrated, declared beforehand: a pynq-style call from C++
        3,            // load, compute, store
    };
}

namespace {

constexpr uint32_t kInputBlockWords = 73;  // Q8_K: 292 bytes
constexpr uint32_t kInputHeaderWords = 6, kDmaBurstBytes = 64;

// Words over `dmas` streams of 32 bits, as fast as the streams and the memory allow.
int64_t stream_ps(const BoardTiming& board, uint32_t dmas, uint64_t words) {
    Dram dram(board);
    const int64_t burst_ps = static_cast<int64_t>(kDmaBurstBytes / 4) * board.clock_ps;
    std::vector<int64_t> free(dmas, 0);
    int64_t end = 0;
    for (uint64_t sent = 0, burst = 0; sent < words; sent += kDmaBurstBytes / 4, ++burst) {
        int64_t& stream = free[burst % dmas];
        const int64_t served = dram.serve(stream, static_cast<uint32_t>(burst * kDmaBurstBytes), kDmaBurstBytes);
        stream = std::max(stream + burst_ps, served);
        end = std::max(end, stream);
    }
    return end + board.read_latency_ps;
}

}  // namespace

SecdaResult simulate_secda(const BoardTiming& board, const SecdaTiming& design, const SecdaWork& work) {
    SecdaResult r{};
    r.tile_rows = design.weight_blocks / work.n_blocks;
    r.n_tiles = (work.n_rows + r.tile_rows - 1) / r.tile_rows;
    r.compute_cycles = uint64_t{work.n_rows} * work.n_tokens * (uint64_t{design.cycles_of_block} * work.n_blocks + design.cycles_of_output);
    r.input_words = uint64_t{work.n_tokens} * work.n_blocks * kInputBlockWords + kInputHeaderWords;
    r.weight_words = uint64_t{work.n_rows} * work.n_blocks * work.block_words;
    const uint64_t output_words = uint64_t{work.n_rows} * work.n_tokens;
    r.dma_ps = stream_ps(board, design.dmas, r.weight_words) + stream_ps(board, 1, r.input_words) + stream_ps(board, design.dmas, output_words);
    r.compute_ps = static_cast<int64_t>(r.compute_cycles) * board.clock_ps;
    if (work.copied) r.copy_ps = static_cast<int64_t>(r.weight_words * 4) * (1'000'000'000'000 / design.copy_bytes_per_s);
    r.call_ps = design.call_ps * design.calls_of_tile * r.n_tiles;
    return r;
}

}  // namespace hetrun::pynq
